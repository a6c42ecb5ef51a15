"""Classification training: recipe, data, loop, checkpoints and logs, behind ``attnzoo train``."""
