"""Pipelines are built once a test: each test may change them."""

import sys
from pathlib import Path

import pytest

# The folder of this file, for its helper module.
sys.path.insert(0, str(Path(__file__).parent))

import pipelines


@pytest.fixture
def pipe():
    return pipelines.pipeline()


@pytest.fixture
def unet():
    return pipelines.unet()


@pytest.fixture
def plain(pipe):
    """What the unpatched pipeline draws at 128 x 128."""
    return pipelines.latents_of(pipe)
