"""Dynamic depth-wise convolution: a kernel of its own for every position and head, over clamped windows.

The aggregation of ContMix: Lou and Yu, "OverLoCK: An Overview-first-Look-Closely-next ConvNet with Context-Mixing
Dynamic Kernels", arXiv:2502.20087, section 3.3. Windows are neighborhood attention's (arXiv:2204.07143), with whose
code (``na2d_av`` of NATTEN) the published models compute it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ._checks import check_device, check_switch, check_tensor, compute_dtype, per_axis, shown
from ._dynamic_conv_tiles import tiled_dynamic_conv
from ._linear import full_precision
from .dispatch import Implementation, Op
from .fused._launch import why_not_fused


def dynamic_depthwise_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    kernel_size: int | Sequence[int] | None = None,
    *,
    rel_pos_bias: torch.Tensor | None = None,
    softmax: bool = False,
) -> torch.Tensor:
    """Weighted sum of each position's window, with weights given for every position and head.

    Along an axis of length L position i has the K positions from s = clamp(i - K // 2, 0, L - K) on: at borders the
    window is shifted, not cut. With S the window, row-major,

        out[i] = sum over j in S(i) of w[i, j] * x[j]

    where w is ``weight``, plus ``rel_pos_bias[head, j - i + K - 1]`` where given, its softmax over the window where
    asked for. Bias and softmax are float32 (float64 for float64 inputs), products x's dtype, also under autocast.

    Args:
        x: values ``[B, H, W, heads, D]``; float16, bfloat16, float32 or float64.
        weight: ``[B, H, W, heads, Kh * Kw]`` of any floating-point dtype.
        kernel_size: window, one size or (Kh, Kw), odd; None is the square window that ``weight`` has.
        rel_pos_bias: ``[heads, 2 * Kh - 1, 2 * Kw - 1]`` of any floating-point dtype.
        softmax: normalise the weights of each window.

    Returns:
        ``[B, H, W, heads, D]`` of x's dtype.

    Raises:
        TypeError: no tensors, not floating point, or a size that is no int.
        ValueError: wrong ranks, shapes that do not match, different devices, an even or non-positive kernel size, or
            an axis shorter than the kernel.
    """
    return _op(x, weight, kernel_size, rel_pos_bias=rel_pos_bias, softmax=softmax)


def _prepare(
    x: torch.Tensor,
    weight: torch.Tensor,
    kernel_size: int | Sequence[int] | None = None,
    *,
    rel_pos_bias: torch.Tensor | None = None,
    softmax: bool = False,
) -> tuple:
    check_tensor("x", x)
    check_switch("softmax", softmax)
    check_tensor("weight", weight)
    check_device("weight", weight, "x", x)
    for name, tensor in (("x", x), ("weight", weight)):
        if tensor.ndim != 5:
            raise ValueError(f"{name} must be [B, H, W, heads, channels], got shape {tuple(tensor.shape)}")
    if x.shape[3] == 0:
        raise ValueError(f"x needs at least one head, got shape {tuple(x.shape)}")
    if weight.shape[:-1] != x.shape[:-1]:
        raise ValueError(
            f"weight must have x's shape {tuple(x.shape)} but for the last axis, got {tuple(weight.shape)}"
        )
    if kernel_size is None:
        kernel_size = round(int(weight.shape[-1]) ** 0.5)
    kernel = per_axis("kernel_size", kernel_size, 2)
    if any(n < 1 or n % 2 == 0 for n in kernel):
        raise ValueError(f"kernel_size must be odd and positive, got {shown(kernel_size)}")
    if weight.shape[-1] != kernel[0] * kernel[1]:
        raise ValueError(f"weight has {weight.shape[-1]} values a position, but kernel_size is {kernel}")
    if x.shape[1] < kernel[0] or x.shape[2] < kernel[1]:
        raise ValueError(f"x of {tuple(x.shape[1:3])} positions is smaller than kernel_size {kernel}")
    if rel_pos_bias is not None:
        check_tensor("rel_pos_bias", rel_pos_bias)
        check_device("rel_pos_bias", rel_pos_bias, "x", x)
        shape = (x.shape[3], 2 * kernel[0] - 1, 2 * kernel[1] - 1)
        if tuple(rel_pos_bias.shape) != shape:
            raise ValueError(f"rel_pos_bias must have shape {shape}, got {tuple(rel_pos_bias.shape)}")
    return x, weight, kernel, rel_pos_bias, softmax


def _reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    kernel: tuple[int, int],
    bias: torch.Tensor | None,
    softmax: bool,
) -> torch.Tensor:
    """The definition: gathers the window of every position."""
    dtype = compute_dtype(x.dtype)
    starts = [
        (torch.arange(n, device=x.device) - k // 2).clamp(0, n - k) for n, k in zip(x.shape[1:3], kernel, strict=True)
    ]
    rows, cols = (start[:, None] + torch.arange(k, device=x.device) for start, k in zip(starts, kernel, strict=True))
    weight = weight.to(dtype).unflatten(-1, kernel)
    if bias is not None:
        row_offset, col_offset = (
            index - torch.arange(len(index), device=x.device)[:, None] + k - 1
            for index, k in zip((rows, cols), kernel, strict=True)
        )
        weight = weight + bias.to(dtype)[:, row_offset[:, None, :, None], col_offset[None, :, None, :]].movedim(0, 2)
    if softmax:
        weight = weight.flatten(-2).softmax(-1).unflatten(-1, kernel)
    window = x.to(dtype)[:, rows[:, None, :, None], cols[None, :, None, :]]
    with full_precision(x.device):
        return torch.einsum("bhwnij,bhwijnd->bhwnd", weight, window).to(x.dtype)


def _triton(x: torch.Tensor, *problem: Any) -> torch.Tensor:
    from .fused.dynamic_conv import fused_dynamic_conv

    return fused_dynamic_conv(x, *problem)


def _why_not_triton(x: torch.Tensor, weight: torch.Tensor, *problem: Any) -> str | None:
    return why_not_fused(x, (x.shape[-1],)) or why_not_fused(weight)


_op = Op(
    "dynamic_depthwise_conv",
    _prepare,
    triton=Implementation(_triton, _why_not_triton),
    torch=Implementation(tiled_dynamic_conv),
    reference=Implementation(_reference),
)
