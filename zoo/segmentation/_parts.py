"""What the decoders share: a convolution with its norm, resizing, and the classifier."""

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

_GROUPS = 32
# A group of a map of one pixel still has something to normalise.
_SMALLEST_GROUP = 4


def conv(in_channels: int, channels: int, kernel_size: int = 3) -> nn.Sequential:
    """Convolution, GroupNorm, ReLU. The published decoders' BatchNorm would need large batches, and fails on a batch
    of one where a map is pooled to one pixel."""
    groups = max(1, math.gcd(_GROUPS, channels // _SMALLEST_GROUP))
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, kernel_size, padding=kernel_size // 2, bias=False),
        nn.GroupNorm(groups, channels),
        nn.ReLU(inplace=True),
    )


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """A map [B, C, H, W] at another size, bilinear."""
    return x if tuple(x.shape[-2:]) == tuple(size) else F.interpolate(x, tuple(size), mode="bilinear")


def classifier(channels: int, num_classes: int, dropout: float) -> nn.Sequential:
    """Dropout of whole channels and a logit a class for every pixel."""
    head = nn.Conv2d(channels, num_classes, 1)
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
    return nn.Sequential(nn.Dropout2d(dropout), head)
