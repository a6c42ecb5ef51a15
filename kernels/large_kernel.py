"""Large-kernel attention: a map multiplied by a depth-wise convolution of itself with a large, decomposed kernel.

Guo et al., "Visual Attention Network", arXiv:2202.09741, equations 1 and 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
import torch.nn.functional as F

from ._checks import check_dtype, is_traced, is_transformed, may_overwrite, shown
from ._chunks import in_chunks
from ._opaque import exports
from .dispatch import Implementation, Op

# With fewer positions in all, the backward of many tiny maps costs more than it saves.
_FEW_POSITIONS = 200
# Without a gradient a third of the batch is worked on at once: two buffers then take less than the result, as
# _chunks.buffer_bytes has it. Batches below _LEAST_BYTES are taken whole: every call of a convolution costs 50 µs.
_PARTS = 3
_LEAST_BYTES = 2**21
_BUFFER_BYTES = 2**22
# A dilation that reaches beyond the map leaves phases of zeros.
_MOST_GROWN = 4


def large_kernel_attention(
    x: torch.Tensor,
    local_weight: torch.Tensor,
    dilated_weight: torch.Tensor,
    point_weight: torch.Tensor,
    local_bias: torch.Tensor | None = None,
    dilated_bias: torch.Tensor | None = None,
    point_bias: torch.Tensor | None = None,
    *,
    dilation: int = 3,
) -> torch.Tensor:
    """``x * point(dilated(local(x)))``: three convolutions whose result gates their input.

    ``local`` is a depth-wise convolution, ``dilated`` a depth-wise one with dilation, ``point`` a 1×1 convolution; all
    keep the size, with zeros around the map. There is no activation: the attention map is not normalised.

    Args:
        x: map ``[B, C, H, W]``; float16, bfloat16, float32 or float64.
        local_weight: ``[C, 1, k, k]``, k odd; VAN: 5. Weights and biases of any floating-point dtype are used in x's.
        dilated_weight: ``[C, 1, K, K]``, K odd; VAN: 7.
        point_weight: ``[C, C, 1, 1]``.
        local_bias: ``[C]``, as the other biases.
        dilation: spacing of the dilated convolution's taps.

    Returns:
        ``[B, C, H, W]`` of x's dtype.

    Raises:
        TypeError: no tensors, not floating point, or a dilation that is no int.
        ValueError: wrong ranks, shapes that do not match, different devices, an even kernel, or a dilation below 1.
    """
    return _op(x, local_weight, dilated_weight, point_weight, local_bias, dilated_bias, point_bias, dilation=dilation)


def _prepare(
    x: torch.Tensor,
    local_weight: torch.Tensor,
    dilated_weight: torch.Tensor,
    point_weight: torch.Tensor,
    local_bias: torch.Tensor | None = None,
    dilated_bias: torch.Tensor | None = None,
    point_bias: torch.Tensor | None = None,
    *,
    dilation: int = 3,
) -> tuple:
    weights = {"local_weight": local_weight, "dilated_weight": dilated_weight, "point_weight": point_weight}
    biases = {"local_bias": local_bias, "dilated_bias": dilated_bias, "point_bias": point_bias}
    given = {"x": x, **weights, **{name: bias for name, bias in biases.items() if bias is not None}}
    for name, tensor in given.items():
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {tensor.dtype}")
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device} but x is on {x.device}")
    check_dtype("x", x)
    if x.ndim != 4 or 0 in x.shape[1:]:
        raise ValueError(f"x must be [B, C, H, W] with a channel and a position, got shape {tuple(x.shape)}")
    channels = x.shape[1]
    for name, weight in weights.items():
        shape = tuple(weight.shape)
        wanted = (channels, channels, 1, 1) if name == "point_weight" else (channels, 1, *shape[-1:] * 2)
        if shape != wanted or shape[-1] % 2 == 0:
            kind = f"({channels}, {channels}, 1, 1)" if name == "point_weight" else f"({channels}, 1, k, k) with k odd"
            raise ValueError(f"{name} must have shape {kind}, got {shape}")
    for name, bias in biases.items():
        if bias is not None and tuple(bias.shape) != (channels,):
            raise ValueError(f"{name} must have shape ({channels},), got {tuple(bias.shape)}")
    if isinstance(dilation, bool) or not isinstance(dilation, int):
        raise TypeError(f"dilation must be an int, got {shown(dilation)}")
    if dilation < 1:
        raise ValueError(f"dilation must be at least 1, got {shown(dilation)}")
    parameters = (local_weight, dilated_weight, point_weight, local_bias, dilated_bias, point_bias)
    return x, *(None if tensor is None else tensor.to(x.dtype) for tensor in parameters), dilation


def _depthwise(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, dilation: int = 1) -> torch.Tensor:
    padding = weight.shape[-1] // 2 * dilation
    return F.conv2d(x, weight, bias, padding=padding, dilation=dilation, groups=weight.shape[0])


def _reference(
    x: torch.Tensor,
    local_weight: torch.Tensor,
    dilated_weight: torch.Tensor,
    point_weight: torch.Tensor,
    local_bias: torch.Tensor | None,
    dilated_bias: torch.Tensor | None,
    point_bias: torch.Tensor | None,
    dilation: int,
) -> torch.Tensor:
    """The definition."""
    attention = _depthwise(x, local_weight, local_bias)
    attention = _depthwise(attention, dilated_weight, dilated_bias, dilation)
    return x * F.conv2d(attention, point_weight, point_bias)


def _by_phases(
    x: torch.Tensor,
    local_weight: torch.Tensor,
    dilated_weight: torch.Tensor,
    point_weight: torch.Tensor,
    local_bias: torch.Tensor | None,
    dilated_bias: torch.Tensor | None,
    point_bias: torch.Tensor | None,
    dilation: int,
) -> torch.Tensor:
    """Channels last, a few images at a time, and the dilated convolution as a dense one of every phase of the map.

    oneDNN has no fast path for dilated depth-wise convolutions: on a CPU they take about twenty times the dense one's
    time. Positions of one phase (row and column modulo the dilation) only meet each other.
    """
    parameters = (local_weight, dilated_weight, point_weight, local_bias, dilated_bias, point_bias)
    # vmap knows no layouts.
    if x.device.type != "cpu" or (not is_traced(x) and is_transformed()):
        return _reference(x, *parameters, dilation)
    # How phases are filled up is a matter of the size: a program of open size has none.
    if is_traced(x) and exports() and not all(isinstance(n, int) for n in x.shape[2:]):
        return _reference(x, *parameters, dilation)
    if not is_traced(x) and _grown(x, dilation) > _MOST_GROWN:
        return _reference(x, *parameters, dilation)
    if may_overwrite(x) and x.numel() and not torch.is_autocast_enabled("cpu"):
        return _in_place(x, *parameters, dilation).permute(0, 3, 1, 2)
    if not is_traced(x) and x.shape[0] * x.shape[2] * x.shape[3] < _FEW_POSITIONS:
        return _reference(x.contiguous(), *parameters, dilation)
    out = in_chunks(
        lambda images: _channels_last(images, *parameters, dilation), (x,), x[:1].numel() * x.element_size()
    )
    return out.permute(0, 3, 1, 2)


def _grown(x: torch.Tensor, dilation: int) -> float:
    """How many times as large a map is whose phases are filled up with zeros."""
    height, width = (-(-n // dilation) * dilation for n in x.shape[2:])
    return height * width / (x.shape[2] * x.shape[3])


def _in_place(
    x: torch.Tensor,
    local_weight: torch.Tensor,
    dilated_weight: torch.Tensor,
    point_weight: torch.Tensor,
    local_bias: torch.Tensor | None,
    dilated_bias: torch.Tensor | None,
    point_bias: torch.Tensor | None,
    dilation: int,
) -> torch.Tensor:
    """x ``[B, C, H, W]`` → ``[B, H, W, C]`` without a gradient: chunks share their buffers, phases are copied once."""
    batch, channels, height, width = x.shape
    image_bytes = x[0].numel() * x.element_size()
    parts = 1 if batch * image_bytes <= _LEAST_BYTES else _PARTS
    images = max(1, min(-(-batch // parts), _BUFFER_BYTES // image_bytes))
    out = x.new_empty(batch, height, width, channels)
    buffer = x.new_empty(images, dilation, dilation, -(-height // dilation), -(-width // dilation), channels)
    parameters = (local_weight, dilated_weight, point_weight, local_bias, dilated_bias, point_bias)
    for source, result in zip(x.permute(0, 2, 3, 1).split(images), out.split(images), strict=True):
        # A map with channels last is read where it is, another one is turned over into its place in the result.
        source = source if source.is_contiguous() else result.copy_(source)
        _gate(source, result, buffer[: len(source)], parameters, dilation)
    return out


def _gate(
    x: torch.Tensor,
    out: torch.Tensor,
    buffer: torch.Tensor,
    parameters: tuple[torch.Tensor | None, ...],
    dilation: int,
) -> None:
    """x ``[B, H, W, C]`` by its attention into ``out``; ``buffer`` ``[B, d, d, H / d, W / d, C]`` is overwritten."""
    local_weight, dilated_weight, point_weight, local_bias, dilated_bias, point_bias = parameters
    far = _depthwise(_local_phases(x, buffer, local_weight, local_bias), dilated_weight, dilated_bias)
    far = far.permute(0, 2, 3, 1).contiguous()
    # What was computed from is not needed any more: its place takes what follows, twice.
    attention, product = (memory.flatten()[: x.numel()].view(-1, x.shape[3]) for memory in (buffer, far))
    for phase, each in _phases(attention.view(x.shape), far.view_as(buffer), dilation):
        each.copy_(phase)
    point = point_weight.flatten(1).t()
    if point_bias is None:
        torch.mm(attention, point, out=product)
    else:
        torch.addmm(point_bias, attention, point, out=product)
    torch.mul(x, product.view_as(x), out=out)


def _local_phases(
    x: torch.Tensor, buffer: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """The local convolution of x ``[B, H, W, C]``, phases in ``buffer`` as in :func:`_gate` → ``[B * d * d, C, …]``.

    Where the dilation does not divide the map its last phases are shorter: zeros fill them up.
    """
    dilation = buffer.shape[1]
    buffer[:, x.shape[1] % dilation or dilation :, :, -1] = 0
    buffer[:, :, x.shape[2] % dilation or dilation :, :, -1] = 0
    attention = _depthwise(x.permute(0, 3, 1, 2), weight, bias).permute(0, 2, 3, 1).contiguous()
    for phase, each in _phases(attention, buffer, dilation):
        phase.copy_(each)
    return buffer.flatten(0, 2).permute(0, 3, 1, 2)


def _phases(whole: torch.Tensor, split: torch.Tensor, dilation: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Views of split ``[B, d, d, H / d, W / d, C]`` and of the same in whole ``[B, H, W, C]``, both contiguous.

    Where the dilation does not divide the map the phases of its last rows and columns are views of their own.
    """
    strides, (*_, row, col, _) = whole.stride(), split.stride()
    for top, rows, row_phases in _periods(whole.shape[1], dilation):
        for left, cols, col_phases in _periods(whole.shape[2], dilation):
            shape = (len(whole), row_phases, col_phases, rows, cols, whole.shape[3])
            place = split.storage_offset() + top // dilation * row + left // dilation * col
            source = whole.storage_offset() + top * strides[1] + left * strides[2]
            steps = (*strides[:3], dilation * strides[1], dilation * strides[2], 1)
            yield split.as_strided(shape, split.stride(), place), whole.as_strided(shape, steps, source)


@lru_cache(maxsize=256)
def _periods(length: int, dilation: int) -> tuple[tuple[int, int, int], ...]:
    """An axis as (first position, periods, phases of each): its whole periods, and what is left of one."""
    whole, rest = divmod(length, dilation)
    return tuple(each for each in ((0, whole, dilation), (whole * dilation, 1, rest)) if each[1] and each[2])


def _channels_last(
    x: torch.Tensor,
    local_weight: torch.Tensor,
    dilated_weight: torch.Tensor,
    point_weight: torch.Tensor,
    local_bias: torch.Tensor | None,
    dilated_bias: torch.Tensor | None,
    point_bias: torch.Tensor | None,
    dilation: int,
) -> torch.Tensor:
    """x ``[B, C, H, W]`` → ``[B, H, W, C]``."""
    x = x.contiguous(memory_format=torch.channels_last)
    attention = _depthwise(x, local_weight, local_bias)
    phases = dilation > 1
    if phases:
        attention = _depthwise(_to_phases(attention, dilation), dilated_weight, dilated_bias)
    else:
        attention = _depthwise(attention, dilated_weight, dilated_bias, dilation)
    # Phases are still contiguous here; cropped to the map's size they would be copied for this product.
    attention = F.linear(attention.permute(0, 2, 3, 1), point_weight.flatten(1), point_bias)
    if phases:
        attention = _from_phases(attention, dilation)[:, : x.shape[2], : x.shape[3]]
    return x.permute(0, 2, 3, 1) * attention


def _to_phases(x: torch.Tensor, dilation: int) -> torch.Tensor:
    """``[B, C, H, W]`` → ``[B * dilation ** 2, C, H / dilation, W / dilation]``; zeros at the end as needed."""
    x = F.pad(x.permute(0, 2, 3, 1), (0, 0, 0, -x.shape[3] % dilation, 0, -x.shape[2] % dilation))
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // dilation, dilation, width // dilation, dilation, channels)
    return x.permute(0, 2, 4, 1, 3, 5).flatten(0, 2).permute(0, 3, 1, 2)


def _from_phases(x: torch.Tensor, dilation: int) -> torch.Tensor:
    """Undoes :func:`_to_phases`, zeros included, with channels last on both sides."""
    x = x.unflatten(0, (-1, dilation, dilation))
    return x.permute(0, 3, 1, 4, 2, 5).flatten(3, 4).flatten(1, 2)


_op = Op("large_kernel_attention", _prepare, torch=Implementation(_by_phases), reference=Implementation(_reference))
