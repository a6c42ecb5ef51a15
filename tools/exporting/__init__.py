"""What ``attnzoo export`` is made of: tracing, ONNX files, the check of what was written, and 8-bit weights."""
