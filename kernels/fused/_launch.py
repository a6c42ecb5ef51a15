"""What fused ops share around their kernels: whether they can run, and how one is launched. Imports no Triton."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..._requirements import triton_problem
from ..dispatch import get_backend

# The widest head that the kernels take; float32 needs more registers for each channel.
MAX_WIDTH = {torch.float16: 128, torch.bfloat16: 128, torch.float32: 64}
# AMD's matrix units have float32; NVIDIA's have TF32, of which three products are as good.
FLOAT32_PRECISION = "ieee" if torch.version.hip else "tf32x3"
# Thirty-two for each multiprocessor of the largest devices, which have a dozen and more at a time.
WARPS = 4224
# A part of fewer tokens would store more of a sum than it loads of tokens.
_FEWEST_TOKENS = 64


@torch.compiler.assume_constant_result
def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on tensors of the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@torch.compiler.assume_constant_result
def _triton_problem() -> str | None:
    return triton_problem()


@torch.compiler.assume_constant_result
def _compute_capability(index: int | None) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


def why_not_fused(x: torch.Tensor, widths: Sequence[int] = ()) -> str | None:
    """The reason why no fused kernel runs on ``x``, or None.

    Args:
        x: one of the op's inputs, for its device and dtype.
        widths: channels of a head, of each input.
    """
    if x.dtype not in MAX_WIDTH:
        return f"no kernel for {x.dtype}, only for float16, bfloat16 and float32"
    most = MAX_WIDTH[x.dtype]
    if any(n > most for n in widths):
        return f"no kernel for heads of {max(widths)} channels in {x.dtype}, only up to {most}"
    # The interpreter is for tests: only who asks for it gets it.
    simulated = x.device.type == "cpu" and get_backend() == "triton" and interpreted()
    if x.device.type != "cuda" and not simulated:
        return f"needs a CUDA device, not {x.device.type}"
    if problem := _triton_problem():
        return problem
    if not simulated and torch.version.hip is None:
        capability = _compute_capability(x.device.index)
        if capability < (8, 0):
            return f"needs compute capability 8.0, the device has {capability[0]}.{capability[1]}"
    return None


def out_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that a kernel stores its result for ``dtype`` in: the interpreter truncates to bfloat16, where a GPU
    rounds."""
    return torch.float32 if dtype == torch.bfloat16 and interpreted() else dtype


def dot_options(dtype: torch.dtype) -> dict[str, Any]:
    """The constants that every kernel with dot products takes.

    UPCAST: convert to float32 right after loading, as the interpreter computes wrongly in bfloat16. PRECISION: of dot
    products.
    """
    return {
        "UPCAST": interpreted() and dtype == torch.bfloat16,
        "PRECISION": FLOAT32_PRECISION if dtype == torch.float32 else "ieee",
    }


def on_amd() -> bool:
    """Whether kernels are for AMD's devices, whose warps are twice as wide."""
    return FLOAT32_PRECISION == "ieee"


def product_options(dtype: torch.dtype) -> dict[str, Any]:
    """The constants of kernels that compute in float32 and multiply as :mod:`._products` says.

    GIVEN: tensors are given in bfloat16. UPCAST: as in :func:`dot_options`.
    """
    if dtype == torch.float32:
        return {"PRECISION": FLOAT32_PRECISION, "GIVEN": False, "UPCAST": False}
    given = dtype == torch.bfloat16
    return {"PRECISION": "bf16" if given else "bf16_rounded", "GIVEN": given, "UPCAST": interpreted()}


def block_width(channels: int) -> int:
    """The power of two, at least 16, that holds ``channels``."""
    return max(16, 1 << (channels - 1).bit_length())


def parts_of_tokens(x: torch.Tensor, block: int, warps: int) -> tuple[int, int]:
    """(parts of the tokens, tokens of a part) of ``[B, N, heads, D]`` for programs of as many warps, so that few heads
    of many tokens still fill a GPU; a part is whole blocks."""
    tokens, programs = x.shape[1], max(1, WARPS // (warps * max(1, x.shape[0] * x.shape[2])))
    part_tokens = max(-(-tokens // programs), min(tokens, _FEWEST_TOKENS))
    part_tokens = -(-part_tokens // block) * block
    return -(-tokens // part_tokens), part_tokens


def factors_of(divisors: Sequence[int], most: int) -> tuple[int, ...] | None:
    """What :func:`._attention.quotient` multiplies numbers up to ``most`` with; None where that would not be exact.

    The factor is 2 ** 30 / d rounded up, so that the product is at most n * (d - 1) / d too large: as long as that is
    below 2 ** 30 / d, no quotient changes. A division takes some twenty instructions.
    """
    if most >= 2**29 or any(most * (d - 1) >= 2**30 for d in divisors):
        return None
    return tuple(-(-(2**30) // d) for d in divisors)


def with_strides(x: torch.Tensor) -> tuple:
    """``x`` and its strides as one argument of a kernel."""
    return (x, *x.stride())


@dataclass(frozen=True)
class Launch:
    """A kernel with its arguments: run on a device, or compiled ahead of time from meta tensors.

    Attributes:
        kernel: the jitted function.
        grid: programs along each axis.
        arguments: its arguments by name, constants included.
        num_warps, num_stages: as Triton names them.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 2

    @property
    def options(self) -> dict[str, Any]:
        # Triton's default for fusing multiplications and additions changes with its version.
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True}

    def run(self, like: torch.Tensor) -> None:
        """Launches it on the device of ``like``; nothing where the grid is empty."""
        if all(self.grid):
            with torch.cuda.device_of(like):
                self.kernel[self.grid](**self.arguments, **self.options)


@dataclass(frozen=True)
class Case:
    """What the ahead-of-time gate compiles: every fused module has a list ``CASES`` of these.

    Attributes:
        name: of the problem; with the kernel's name it makes the row of the table.
        build: (dtype, channels of a head) → the launches on meta tensors.
        widths: channels of a head that the full sweep tries, in every dtype.
        every_run: the (dtype, channels) that every run of the tests compiles.
        allowed: "kernel dtype width" → why it may spill, where it may.
    """

    name: str
    build: Callable[[torch.dtype, int], Sequence[Launch]]
    widths: tuple[int, ...] = (16, 32, 64, 128)
    every_run: tuple[tuple[str, int], ...] = (("bf16", 32), ("fp32", 64))
    allowed: dict[str, str] = field(default_factory=dict)
