"""Dynamic depth-wise convolution: a kernel of its own for every position and head, over clamped windows.

The aggregation of ContMix: Lou and Yu, "OverLoCK: An Overview-first-Look-Closely-next ConvNet with Context-Mixing Dynamic
Kernels", arXiv:2502.20087, equation 3. Windows are neighborhood attention's (arXiv:2204.07143), which the published
code computes it with (``na2d_av`` of NATTEN).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from ._checks import compute_dtype, per_axis
from .dispatch import Implementation, Op

# Positions per tile and axis where the windows do not cover the axis anyway. A longer tile multiplies more zeros, a
# shorter one copies more of x; a small window wants a small tile.
_TILE = 8
_SMALL_TILE, _SMALL_KERNEL = 4, 7
# Bytes of matrices that one call works on in eager mode, so that they stay in a core's cache.
_CHUNK_BYTES = 2**21


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
    asked for. Bias and softmax are computed in float32 (float64 for float64 inputs).

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
    _check_tensor("x", x, x)
    _check_tensor("weight", weight, x)
    for name, tensor in (("x", x), ("weight", weight)):
        if tensor.ndim != 5:
            raise ValueError(f"{name} must be [B, H, W, heads, channels], got shape {tuple(tensor.shape)}")
    if weight.shape[:-1] != x.shape[:-1]:
        raise ValueError(
            f"weight must have x's shape {tuple(x.shape)} but for the last axis, got {tuple(weight.shape)}"
        )
    if kernel_size is None:
        kernel_size = round(int(weight.shape[-1]) ** 0.5)
    kernel = per_axis("kernel_size", kernel_size, 2)
    if any(n < 1 or n % 2 == 0 for n in kernel):
        raise ValueError(f"kernel_size must be odd and positive, got {kernel_size!r}")
    if weight.shape[-1] != kernel[0] * kernel[1]:
        raise ValueError(f"weight has {weight.shape[-1]} values a position, but kernel_size is {kernel}")
    if x.shape[1] < kernel[0] or x.shape[2] < kernel[1]:
        raise ValueError(f"x of {tuple(x.shape[1:3])} positions is smaller than kernel_size {kernel}")
    if rel_pos_bias is not None:
        _check_tensor("rel_pos_bias", rel_pos_bias, x)
        shape = (x.shape[3], 2 * kernel[0] - 1, 2 * kernel[1] - 1)
        if tuple(rel_pos_bias.shape) != shape:
            raise ValueError(f"rel_pos_bias must have shape {shape}, got {tuple(rel_pos_bias.shape)}")
    return x, weight, kernel, rel_pos_bias, bool(softmax)


def _check_tensor(name: str, tensor: torch.Tensor, x: torch.Tensor) -> None:
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {tensor.dtype}")
    if tensor.device != x.device:
        raise ValueError(f"{name} is on {tensor.device} but x is on {x.device}")


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
    return torch.einsum("bhwnij,bhwijnd->bhwnd", weight, window).to(x.dtype)


@dataclass(frozen=True)
class _Axis:
    """An axis cut into n tiles of T positions; S positions hold all windows of a tile.

    Attributes:
        queries: ``[n, T]`` positions; the last tile is moved back to the end of the axis.
        keys: ``[n, S]`` positions.
        slots: ``[n, T, K]``, where among a tile's keys each window lies.
        place: ``[L]``, where among all queries each position is found.
        starts: ``[L]``, where in the bias axis the window of each position begins.
    """

    queries: np.ndarray
    keys: np.ndarray
    slots: np.ndarray
    place: np.ndarray
    starts: np.ndarray


@lru_cache(maxsize=256)
def _axis(length: int, kernel: int) -> _Axis:
    size = min(length, _SMALL_TILE if kernel < _SMALL_KERNEL else _TILE)
    if length <= kernel + size - 1:
        size = length
    first = np.minimum(np.arange(0, length, size), length - size)
    reach = min(length, size + kernel - 1)
    queries = first[:, None] + np.arange(size)
    origin = np.clip(first - kernel // 2, 0, length - reach)
    window = np.clip(np.arange(length) - kernel // 2, 0, length - kernel)
    place = np.empty(length, dtype=np.int64)
    place[queries.ravel()] = np.arange(queries.size)
    return _Axis(
        queries,
        origin[:, None] + np.arange(reach),
        (window[queries] - origin[:, None])[:, :, None] + np.arange(kernel),
        place,
        window - np.arange(length) + kernel - 1,
    )


@torch.compiler.assume_constant_result
def _table(length: int, kernel: int, name: str, device: torch.device) -> torch.Tensor:
    return torch.as_tensor(getattr(_axis(length, kernel), name), device=device)


def _tiled(
    x: torch.Tensor,
    weight: torch.Tensor,
    kernel: tuple[int, int],
    bias: torch.Tensor | None,
    softmax: bool,
) -> torch.Tensor:
    """Tiles: the windows' weights are written into matrices [positions, keys] of a tile, which multiply its keys."""
    # Heads first is how the layers' products leave the weights, and what softmax and the tiles' products want.
    weight = weight.permute(0, 3, 1, 2, 4)
    if torch.compiler.is_compiling() or x.device.type != "cpu" or x.numel() == 0:
        return _aggregate(x, weight, kernel, bias, softmax)
    rows, cols = (_axis(int(n), k) for n, k in zip(x.shape[1:3], kernel, strict=True))
    matrix = rows.queries.size * cols.queries.size * rows.keys.shape[1] * cols.keys.shape[1] * x.element_size()
    heads = max(1, min(x.shape[3], _CHUNK_BYTES // matrix))
    images = max(1, _CHUNK_BYTES // (matrix * x.shape[3]))
    biases = (None,) * x.shape[3] if bias is None else bias.split(heads)
    parts = [
        torch.cat(
            [
                _aggregate(*part, kernel, head_bias, softmax)
                for *part, head_bias in zip(images_x.split(heads, 3), images_weight.split(heads, 1), biases, strict=False)
            ],
            dim=3,
        )
        for images_x, images_weight in zip(x.split(images), weight.split(images), strict=True)
    ]
    return torch.cat(parts)


def _aggregate(
    x: torch.Tensor,
    weight: torch.Tensor,
    kernel: tuple[int, int],
    bias: torch.Tensor | None,
    softmax: bool,
) -> torch.Tensor:
    """x ``[B, H, W, heads, D]`` and weight ``[B, heads, H, W, window]`` → ``[B, H, W, heads, D]``."""
    axes = tuple((int(n), k) for n, k in zip(x.shape[1:3], kernel, strict=True))
    weight = _weights(weight, axes, bias, softmax).to(x.dtype)
    rows, cols = (_axis(*axis) for axis in axes)
    for dim, (axis, plan) in enumerate(zip(axes, (rows, cols), strict=True)):
        if plan.queries.size != axis[0]:
            weight = weight.index_select(2 + dim, _table(*axis, "queries", x.device).flatten())
        if plan.keys.size != axis[0]:
            x = x.index_select(1 + dim, _table(*axis, "keys", x.device).flatten())
    # [B, heads, tiles of rows, tiles of columns, rows of a tile, columns of a tile, window]
    weight = weight.unflatten(3, cols.queries.shape).unflatten(2, rows.queries.shape).transpose(3, 4)
    values = x.unflatten(2, cols.keys.shape).unflatten(1, rows.keys.shape).permute(0, 5, 1, 3, 2, 4, 6).flatten(4, 5)
    if values.shape[4] != weight.shape[6]:
        weight = _spread(weight, axes, values.shape[4])
    out = (weight.flatten(4, 5) @ values).unflatten(4, (rows.queries.shape[1], cols.queries.shape[1]))
    out = out.permute(0, 2, 4, 3, 5, 1, 6).flatten(3, 4).flatten(1, 2)
    for dim, (axis, plan) in enumerate(zip(axes, (rows, cols), strict=True)):
        if plan.queries.size != axis[0]:
            out = out.index_select(1 + dim, _table(*axis, "place", x.device))
    return out


def _weights(
    weight: torch.Tensor, axes: tuple[tuple[int, int], ...], bias: torch.Tensor | None, softmax: bool
) -> torch.Tensor:
    """``[B, heads, H, W, window]`` with bias and softmax."""
    dtype = compute_dtype(weight.dtype)
    if bias is not None:
        windows = bias.to(dtype)
        # Two row copies in place of a gather of single elements.
        for dim, (axis, kernel) in enumerate(((axis, axis[1]) for axis in axes), 1):
            windows = windows.unfold(dim, kernel, 1).index_select(dim, _table(*axis, "starts", weight.device))
        weight = weight + windows.flatten(3)
    return weight.softmax(-1, dtype=dtype) if softmax else weight


def _spread(weight: torch.Tensor, axes: tuple[tuple[int, int], ...], keys: int) -> torch.Tensor:
    """Window weights ``[..., n, m, T, U, window]`` → ``[..., n, m, T, U, keys]`` of their tile, zero outside windows."""
    rows, cols = (_table(*axis, "slots", weight.device) for axis in axes)
    columns = _axis(*axes[1]).keys.shape[1]
    slots = rows[:, None, :, None, :, None] * columns + cols[None, :, None, :, None, :]
    return weight.new_zeros(*weight.shape[:-1], keys).scatter(-1, slots.flatten(4).expand(weight.shape), weight)


_op = Op("dynamic_depthwise_conv", _prepare, torch=Implementation(_tiled), reference=Implementation(_reference))
