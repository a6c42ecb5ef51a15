"""The gate has a process of its own: Triton compiles or interprets, and the driver is a stub."""

import os

import pytest

if os.environ.get("TRITON_INTERPRET") == "1":
    raise pytest.UsageError("tests/aot compiles kernels: run it without TRITON_INTERPRET=1")
