"""The page of ``attnzoo app``: models at hand, what they see in a photograph, and the server."""
