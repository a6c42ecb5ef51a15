"""What stands between a backbone and torchvision's heads: the feature pyramid, and anchors and pooling that know
its strides.

torchvision guesses strides from sizes, at the first image for its pooling; a map whose size was rounded up, as on
small images, then counts with a wrong stride. Here they are told.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7
from torchvision.ops.poolers import initLevelMapper

from .._levels import Levels, as_list


class FeaturePyramid(nn.Module):
    """A backbone under a feature pyramid network (Lin et al. 2017, arXiv 1612.03144) with coarser levels on top.

    Args:
        maps: the backbone with its channels and strides.
        out_channels: channels of every level.
        p6p7: two more levels by convolutions of stride 2 (Lin et al. 2017, arXiv 1708.02002); else one by subsampling.
    """

    def __init__(self, maps: Levels, out_channels: int = 256, p6p7: bool = False) -> None:
        super().__init__()
        self.body = maps.body
        self.names = [str(i) for i in range(len(maps.channels))]
        extra = LastLevelP6P7(out_channels, out_channels) if p6p7 else LastLevelMaxPool()
        self.fpn = FeaturePyramidNetwork(maps.channels, out_channels, extra)
        self.out_channels = out_channels
        coarsest = maps.strides[-1]
        self.strides = [*maps.strides, 2 * coarsest, *([4 * coarsest] if p6p7 else [])]

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        """[B, C, H, W] → levels [B, out_channels, H_i, W_i] by name, finest first; those of the backbone are 0, 1, …"""
        return self.fpn(OrderedDict(zip(self.names, as_list(self.body(x)), strict=True)))


class PyramidAnchors(AnchorGenerator):
    """torchvision's anchors, at the pyramid's own strides.

    Args:
        sizes: side lengths of the square anchors of every level, in pixels.
        aspect_ratios: heights over widths, the same on every level.
        strides: pixels between anchors, one a level.
    """

    def __init__(
        self, sizes: Sequence[Sequence[float]], aspect_ratios: Sequence[float], strides: Sequence[int]
    ) -> None:
        super().__init__(tuple(map(tuple, sizes)), (tuple(aspect_ratios),) * len(sizes))
        self.strides = list(strides)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """The anchors [N, 4] (x1, y1, x2, y2) of each image, level by level, in the images' dtype."""
        # The maps' own, as torchvision has it, rounds coordinates to eight bits under autocast to bfloat16.
        like = image_list.tensors
        self.set_cell_anchors(like.dtype, like.device)
        strides = [[torch.tensor(stride, device=like.device)] * 2 for stride in self.strides]
        anchors = torch.cat(self.grid_anchors([each.shape[-2:] for each in feature_maps], strides))
        return [anchors] * len(image_list.image_sizes)


class PyramidRoIAlign(MultiScaleRoIAlign):
    """torchvision's pooling from the level that a box's size calls for, with the pyramid's own strides.

    Args:
        strides: of the levels to pool from, each twice the one before.
        output_size: side of the pooled square.
    """

    def __init__(self, strides: Sequence[int], output_size: int) -> None:
        super().__init__([str(i) for i in range(len(strides))], output_size, sampling_ratio=2)
        self.scales = [1 / stride for stride in strides]
        finest, coarsest = (stride.bit_length() - 1 for stride in (strides[0], strides[-1]))
        self.map_levels = initLevelMapper(finest, coarsest, self.canonical_scale, self.canonical_level)
