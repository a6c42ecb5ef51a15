"""Large-kernel attention: a map multiplied by a depth-wise convolution of itself with a large, decomposed kernel.

Guo et al., "Visual Attention Network", arXiv:2202.09741, equations 1 and 2.

There is no Triton form: by the bytes that it moves one could be at most 1.6 times as fast as cuDNN's convolutions, and
whether it would be no GPU has been asked yet.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ._checks import check_dtype, is_traced, is_transformed, may_overwrite, needs_gradient, shown
from ._chunks import in_chunks
from ._opaque import exports
from .dispatch import Implementation, Op

# oneDNN's kernels for depth-wise convolutions know dilation, but beside a row they add only so many zeros, no more than
# the row is long, and with AVX-512 to rows of less than eight only four. Where more are asked for, a form takes over
# that takes ten times as long. Below a row there may be any number.
_ZEROS_BESIDE = {"AVX512": 6, "AVX2": 4}.get(torch.backends.cpu.get_cpu_capability(), 3)
_ZEROS_BESIDE_SHORT = min(4, _ZEROS_BESIDE)
_SHORT = 8
# On any processor.
_ZEROS_BESIDE_LEAST = 3
# With fewer positions in all, the backward of many tiny maps costs more than it saves.
_FEW_POSITIONS = 200
# Without a gradient a third of the batch is worked on at once: two buffers then take less than the result, as
# _chunks.buffer_bytes has it. Batches below _LEAST_BYTES are taken whole: every call of a convolution costs 50 µs.
_PARTS = 3
_LEAST_BYTES = 2**21
_BUFFER_BYTES = 2**22
# A dilation that reaches beyond the map leaves phases of zeros, at most this many times the map.
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
    padding = tuple(n // 2 * dilation for n in weight.shape[2:])
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


def _torch(
    x: torch.Tensor,
    local_weight: torch.Tensor,
    dilated_weight: torch.Tensor,
    point_weight: torch.Tensor,
    local_bias: torch.Tensor | None,
    dilated_bias: torch.Tensor | None,
    point_bias: torch.Tensor | None,
    dilation: int,
) -> torch.Tensor:
    """On a CPU channels last, a few images at a time, and the dilated convolution as oneDNN has kernels for it."""
    parameters = (local_weight, dilated_weight, point_weight, local_bias, dilated_bias, point_bias)
    # vmap knows no layouts.
    if x.device.type != "cpu" or is_transformed():
        return _reference(x, *parameters, dilation)
    if all(isinstance(n, int) for n in x.shape[2:]):
        parameters = (local_weight, _meeting(dilated_weight, x, dilation), *parameters[2:])
    if may_overwrite(x) and x.numel() and not torch.is_autocast_enabled("cpu"):
        return _in_place(x, *parameters, dilation).permute(0, 3, 1, 2)
    # Exported programs are seldom differentiated, and may be of open size, which has no phases.
    gradient = needs_gradient((x, *parameters)) and not (is_traced(x) and exports())
    if gradient and not is_traced(x) and not _has_phases(x, dilation):
        return _reference(x.contiguous(), *parameters, dilation)
    out = in_chunks(
        lambda images: _channels_last(images, *parameters, dilation, gradient), (x,), x[:1].numel() * x.element_size()
    )
    return out.permute(0, 3, 1, 2)


def _meeting(weight: torch.Tensor, x: torch.Tensor, dilation: int) -> torch.Tensor:
    """The taps of a dilated kernel that meet x ``[B, C, H, W]`` anywhere: all others only see the zeros around it."""
    reach = weight.shape[-1] // 2
    top, left = (reach - min(reach, (n - 1) // dilation) for n in x.shape[2:])
    return weight[:, :, top : 2 * reach + 1 - top, left : 2 * reach + 1 - left]


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
    """x ``[B, C, H, W]`` → ``[B, H, W, C]`` without a gradient: chunks share their buffer."""
    batch, channels, height, width = x.shape
    image_bytes = x[0].numel() * x.element_size()
    parts = 1 if batch * image_bytes <= _LEAST_BYTES else _PARTS
    images = max(1, min(-(-batch // parts), _BUFFER_BYTES // image_bytes))
    out = x.new_empty(batch, height, width, channels)
    beside = _beside(dilated_weight, dilation, min(width, _ZEROS_BESIDE if width >= _SHORT else _ZEROS_BESIDE_SHORT))
    buffer = x.new_empty(images, height, width + 2 * beside, channels)
    parameters = (local_weight, dilated_weight, point_weight, local_bias, dilated_bias, point_bias)
    for source, result in zip(x.permute(0, 2, 3, 1).split(images), out.split(images), strict=True):
        # A map with channels last is read where it is, another one is turned over into its place in the result.
        source = source if source.is_contiguous() else result.copy_(source)
        _gate(source, result, buffer[: len(source)], parameters, dilation)
    return out


def _beside(weight: torch.Tensor, dilation: int, most: int) -> int:
    """Zeros that have to stand on either side of every row, for oneDNN to add no more than ``most`` itself."""
    reach = weight.shape[-1] // 2 * dilation
    return reach - min(reach, most)


def _gate(
    x: torch.Tensor,
    out: torch.Tensor,
    buffer: torch.Tensor,
    parameters: tuple[torch.Tensor | None, ...],
    dilation: int,
) -> None:
    """x ``[B, H, W, C]`` by its attention into ``out``; ``buffer`` ``[B, H, W + 2 * beside, C]`` is overwritten."""
    local_weight, dilated_weight, point_weight, local_bias, dilated_bias, point_bias = parameters
    near = _depthwise(x.permute(0, 3, 1, 2), local_weight, local_bias).permute(0, 2, 3, 1)
    beside = (buffer.shape[2] - x.shape[2]) // 2
    if beside:
        buffer[:, :, :beside] = 0
        buffer[:, :, -beside:] = 0
        buffer[:, :, beside:-beside] = near
        near = buffer
    far = _dilated(near, dilated_weight, dilated_bias, dilation, beside).reshape(-1, x.shape[3])
    # What the convolution read is not needed any more: its place takes the product.
    product = buffer.flatten()[: x.numel()].view(far.shape)
    point = point_weight.flatten(1).t()
    if point_bias is None:
        torch.mm(far, point, out=product)
    else:
        torch.addmm(point_bias, far, point, out=product)
    torch.mul(x, product.view_as(x), out=out)


def _dilated(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, dilation: int, beside: int
) -> torch.Tensor:
    """The dilated convolution of x ``[B, H, W + 2 * beside, C]``, zeros and all → ``[B, H, W, C]``."""
    below, within = (n // 2 * dilation for n in weight.shape[2:])
    maps = x.permute(0, 3, 1, 2)
    padding = (below, within - beside)
    return F.conv2d(maps, weight, bias, padding=padding, dilation=dilation, groups=len(weight)).permute(0, 2, 3, 1)


def _channels_last(
    x: torch.Tensor,
    local_weight: torch.Tensor,
    dilated_weight: torch.Tensor,
    point_weight: torch.Tensor,
    local_bias: torch.Tensor | None,
    dilated_bias: torch.Tensor | None,
    point_bias: torch.Tensor | None,
    dilation: int,
    gradient: bool,
) -> torch.Tensor:
    """x ``[B, C, H, W]`` → ``[B, H, W, C]``."""
    x = x.contiguous(memory_format=torch.channels_last)
    near = _depthwise(x, local_weight, local_bias)
    x = x.permute(0, 2, 3, 1)
    if gradient and dilation > 1:
        far = _depthwise(_to_phases(near, dilation), dilated_weight, dilated_bias).permute(0, 2, 3, 1)
        # Phases are still contiguous here; cropped to the map's size they would be copied for this product.
        far = F.linear(far, point_weight.flatten(1), point_bias)
        return x * _from_phases(far, dilation)[:, : x.shape[1], : x.shape[2]]
    # A program may have an open width, and run on another processor.
    beside = _beside(dilated_weight, dilation, _ZEROS_BESIDE_LEAST)
    near = F.pad(near.permute(0, 2, 3, 1), (0, 0, beside, beside))
    far = _dilated(near, dilated_weight, dilated_bias, dilation, beside)
    return x * F.linear(far, point_weight.flatten(1), point_bias)


def _has_phases(x: torch.Tensor, dilation: int) -> bool:
    """Whether a backward by phases is worth it: they hold enough of x ``[B, C, H, W]``, and not mostly zeros."""
    batch, _, height, width = x.shape
    grown = -(-height // dilation) * dilation * -(-width // dilation) * dilation
    return batch * height * width >= _FEW_POSITIONS and grown <= _MOST_GROWN * height * width


def _to_phases(x: torch.Tensor, dilation: int) -> torch.Tensor:
    """``[B, C, H, W]`` → ``[B * dilation ** 2, C, H / dilation, W / dilation]``; zeros at the end as needed.

    Positions of one phase, row and column modulo the dilation, only meet each other: to them a dilated convolution is a
    dense one. In the backward oneDNN has kernels for that alone.
    """
    x = F.pad(x.permute(0, 2, 3, 1), (0, 0, 0, -x.shape[3] % dilation, 0, -x.shape[2] % dilation))
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // dilation, dilation, width // dilation, dilation, channels)
    return x.permute(0, 2, 4, 1, 3, 5).flatten(0, 2).permute(0, 3, 1, 2)


def _from_phases(x: torch.Tensor, dilation: int) -> torch.Tensor:
    """Undoes :func:`_to_phases`, zeros included, with channels last on both sides."""
    x = x.unflatten(0, (-1, dilation, dilation))
    return x.permute(0, 3, 1, 4, 2, 5).flatten(3, 4).flatten(1, 2)


_op = Op("large_kernel_attention", _prepare, torch=Implementation(_torch), reference=Implementation(_reference))
