"""What ``attnzoo bench`` measures, one subject a file."""
