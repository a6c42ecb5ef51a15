"""What ``attnzoo demo-dense`` is made of: training through MMEngine, and the picture of the results."""
