"""UPerNet (Xiao et al. 2018, arXiv 1807.10221, section 3): pyramid pooling, a feature pyramid, all levels fused."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._parts import classifier, conv, resize

_POOLS = (1, 2, 3, 6)


class PyramidPooling(nn.Module):
    """The pyramid pooling module of PSPNet (Zhao et al. 2017, arXiv 1612.01105): a map beside its averages over grids.

    Args:
        in_channels: channels of the map.
        channels: channels of each average and of the result.
        pools: sides of the grids.
    """

    def __init__(self, in_channels: int, channels: int, pools: Sequence[int] = _POOLS) -> None:
        super().__init__()
        self.pools = tuple(pools)
        self.convs = nn.ModuleList(conv(in_channels, channels, 1) for _ in pools)
        self.fuse = conv(in_channels + len(self.pools) * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] → [B, channels, H, W]."""
        size = x.shape[-2:]
        grids = (F.adaptive_avg_pool2d(x, pool) for pool in self.pools)
        pooled = [resize(project(grid), size) for project, grid in zip(self.convs, grids, strict=True)]
        return self.fuse(torch.cat([x, *pooled], dim=1))


class UPerNet(nn.Module):
    """Pyramid pooling on the coarsest map, a top-down path over the others, and a fusion of all at the finest size.

    Args:
        in_channels: channels of the backbone's maps, finest first.
        strides: their strides; not used, all decoders take them.
        num_classes: logits a pixel.
        channels: width throughout; 512 in the published dense models.
        dropout: of channels before the classifier.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        channels: int = 512,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        *finer, coarsest = in_channels
        self.pooling = PyramidPooling(coarsest, channels)
        self.laterals = nn.ModuleList(conv(width, channels, 1) for width in finer)
        self.convs = nn.ModuleList(conv(channels, channels) for _ in finer)
        self.fuse = conv(len(in_channels) * channels, channels)
        self.classifier = classifier(channels, num_classes, dropout)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Levels [B, C_i, H_i, W_i], finest first → logits [B, num_classes, H, W] at the finest one's size."""
        *finer, coarsest = maps
        top = self.pooling(coarsest)
        levels = [top]
        for i in reversed(range(len(finer))):
            top = self.laterals[i](finer[i]) + resize(top, finer[i].shape[-2:])
            levels.insert(0, self.convs[i](top))
        size = maps[0].shape[-2:]
        return self.classifier(self.fuse(torch.cat([resize(x, size) for x in levels], dim=1)))
