"""Fused kernels under Triton's interpreter where there is no GPU, natively where there is one.

Triton reads TRITON_INTERPRET when it is first imported, and importing torchvision imports it: the variable has to be
set before pytest starts, and this folder has a process of its own.
"""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from attnzoo.kernels.fused._launch import Launch

if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    raise pytest.UsageError("no GPU is visible: run tests/interp by itself with TRITON_INTERPRET=1")


def _ranges(value: object) -> list[tuple[int, int]]:
    """Addresses (first, past the last) of the storages of all tensors in a kernel's argument."""
    if isinstance(value, torch.Tensor):
        storage = value.untyped_storage()
        return [(storage.data_ptr(), storage.data_ptr() + storage.nbytes())]
    return [each for part in value for each in _ranges(part)] if isinstance(value, tuple) else []


@pytest.fixture(autouse=True)
def memory_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a kernel reads or writes outside its arguments, which the interpreter lets pass."""
    if torch.cuda.is_available():
        return
    from triton.runtime.interpreter import InterpreterBuilder

    allowed: list[tuple[int, int]] = []
    run = Launch.run

    def watched_run(launch: Launch, like: torch.Tensor) -> None:
        allowed[:] = [each for value in launch.arguments.values() for each in _ranges(value)]
        run(launch, like)

    def watch(method: str, place_of_mask: int) -> None:
        real = getattr(InterpreterBuilder, method)

        def watched(builder: InterpreterBuilder, pointers: Any, *args: Any) -> Any:
            used = pointers.data[args[place_of_mask].data]
            inside = np.zeros(used.shape, bool)
            for first, past in allowed:
                inside |= (used >= first) & (used < past)
            assert inside.all(), f"{method}: {(~inside).sum()} addresses outside the kernel's arguments"
            return real(builder, pointers, *args)

        monkeypatch.setattr(InterpreterBuilder, method, watched)

    monkeypatch.setattr(Launch, "run", watched_run)
    watch("create_masked_load", 0)
    watch("create_masked_store", 1)


def _tf32_parts(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(high, low): what x is rounded to, and what is left of it, rounded too; nothing of what is not finite."""
    high = _to_tf32(x)
    with np.errstate(invalid="ignore"):
        return high, _to_tf32(np.nan_to_num(x - high, nan=0.0))


def _to_tf32(x: np.ndarray) -> np.ndarray:
    """float32 of ten bits of fraction; halves are rounded away from zero."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    rounded = ((bits + 0x1000) & 0xFFFFE000).astype(np.uint32).view(np.float32)
    return np.where(np.isfinite(x), rounded, x)


@pytest.fixture(autouse=True)
def ordered_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dot products that round by their factors alone, and to TF32 where a GPU's matrix units do.

    numpy's BLAS rounds by the shape and layout as well, otherwise on every processor: the scores that a backward
    recomputes are then not those of the forward, and what a test finds depends on the machine. Of the products of TF32
    the interpreter makes those of float32.
    """
    if torch.cuda.is_available():
        return
    from triton._C.libtriton import ir
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def create_dot(builder: InterpreterBuilder, a: Any, b: Any, d: Any, precision: Any, *options: Any) -> TensorHandle:
        factors = tuple(x.data.astype(d.data.dtype) for x in (a, b))
        pairs = [factors]
        if a.data.dtype == np.float32 and precision == ir.INPUT_PRECISION.TF32x3:
            (high_row, low_row), (high_column, low_column) = map(_tf32_parts, factors)
            pairs = [(low_row, high_column), (high_row, low_column), (high_row, high_column)]
        total = np.zeros_like(d.data)
        for rows, columns in pairs:
            for place in range(rows.shape[-1]):
                total += rows[..., :, place, None] * columns[..., None, place, :]
        return TensorHandle(total + d.data, d.dtype.scalar)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)


@pytest.fixture(autouse=True)
def poison() -> Iterator[None]:
    """Fills what torch.empty and its kind return with NaN, so that an output left unwritten shows."""
    filled = torch.utils.deterministic.fill_uninitialized_memory
    assert filled, "PyTorch fills uninitialized memory unless told not to"
    # Only that is wanted of it: on a GPU running sums and some gradients would be refused.
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(2).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
