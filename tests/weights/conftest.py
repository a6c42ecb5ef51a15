"""The misbehaving file server of tests/file_server.py, as fixtures."""

import pytest
from file_server import CONTENT, make_entry, names, server

__all__ = ["server"]


@pytest.fixture(name="make_entry")
def make_entry_fixture():
    return make_entry


@pytest.fixture(name="names")
def names_fixture():
    return names


@pytest.fixture
def content() -> bytes:
    return CONTENT
