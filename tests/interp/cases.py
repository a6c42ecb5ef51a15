"""Holds a fused op to float64 truth: at most twice the error of the plain PyTorch form in the same dtype."""

from collections.abc import Callable, Sequence

import torch
from parity import relative_error

from attnzoo.kernels import use_backend

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
GRADIENTS = ("contiguous", "expanded", "strided")
# What both forms may miss the truth by for no fault of theirs.
_FLOOR = 1e-6


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64).to(DEVICE, dtype)


def draw_packed(batch: int, space: Sequence[int], heads: int, width: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """q, k and v ``[B, *space, heads, D]`` as views of one projection ``[B, *space, 3, heads, D]``."""
    return list(draw(batch, *space, 3, heads, width, dtype=dtype).unbind(-3))


def draw_gradient(like: torch.Tensor, kind: str) -> torch.Tensor:
    """A gradient of the shape and dtype of ``like``, in one of the layouts ``GRADIENTS`` that autograd hands on."""
    if kind == "expanded":
        return draw(*like.shape[-2:], dtype=like.dtype).expand(like.shape)
    if kind == "strided":
        return draw(*like.shape[::-1], dtype=like.dtype).permute(*reversed(range(like.ndim)))
    return draw(*like.shape, dtype=like.dtype)


def outcome(
    op: Callable[..., torch.Tensor], backend: str, tensors: Sequence[torch.Tensor], d_out: torch.Tensor | None
) -> list[torch.Tensor]:
    """The op's result on ``tensors`` and, given ``d_out``, their gradients."""
    leaves = [x.detach().requires_grad_(d_out is not None) for x in tensors]
    with use_backend(backend):
        out = op(*leaves)
    return [out.detach(), *(torch.autograd.grad(out, leaves, d_out) if d_out is not None else ())]


def check(
    op: Callable[..., torch.Tensor], tensors: Sequence[torch.Tensor], gradient: str | None = "contiguous"
) -> None:
    """Compares the triton implementation with the torch one, both against the reference in float64.

    Args:
        op: a public function of attnzoo.kernels with all arguments but ``tensors`` bound.
        tensors: its floating-point tensors, each of which gets a gradient.
        gradient: layout of the output's gradient; None: forward only.
    """
    shape = outcome(op, "torch", tensors, None)[0]
    d_out = None if gradient is None else draw_gradient(shape, gradient)
    truth = outcome(op, "reference", [x.double() for x in tensors], None if d_out is None else d_out.double())
    plain = outcome(op, "torch", tensors, d_out)
    fused = outcome(op, "triton", tensors, d_out)
    for place, (right, usual, found) in enumerate(zip(truth, plain, fused, strict=True)):
        name = "output" if place == 0 else f"gradient of tensor {place - 1}"
        assert found.shape == usual.shape and found.dtype == usual.dtype, name
        error, bound = relative_error(found, right), 2 * relative_error(usual, right) + _FLOOR
        assert error <= bound, f"{name}: error {error:.2e}, allowed {bound:.2e}"
