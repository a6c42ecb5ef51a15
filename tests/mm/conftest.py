"""The misbehaving file server of tests/file_server.py, as a fixture."""

from file_server import server

__all__ = ["server"]
