"""What every model asks of its input before the first layer sees it."""

import torch
from torch import Tensor


def checked_image(x: Tensor, in_chans: int, min_size: int) -> Tensor:
    """The image [B, in_chans, H, W] as it is; B may be 0.

    Raises:
        TypeError: not floating point.
        ValueError: another shape, or a side below ``min_size`` pixels.
    """
    if not x.is_floating_point():
        raise TypeError(f"an image must be floating point, got {x.dtype}: divide by 255, normalise, then pass it")
    if x.ndim != 4 or x.shape[1] != in_chans:
        raise ValueError(f"an image must be [B, {in_chans}, H, W], got shape {tuple(x.shape)}")
    if x.shape[2] < min_size or x.shape[3] < min_size:
        raise ValueError(
            f"an image of {x.shape[2]}x{x.shape[3]} is too small; images of {min_size}x{min_size} and more work"
        )
    return x


def channels_last_on_cpu(x: Tensor) -> Tensor:
    """The image in the layout in which a CPU is through the model fastest, where no gradient and no program is made.

    Convolutions pass the layout of their input on: from an image with channels last no map is turned over and back.
    """
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing() or type(x) is not Tensor
    if traced or torch.is_grad_enabled() or x.device.type != "cpu":
        return x
    return x.contiguous(memory_format=torch.channels_last)
