"""The semantic branch of panoptic feature pyramid networks (Kirillov et al. 2019, arXiv 1901.02446, section 3)."""

import math
from collections import OrderedDict
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from ._parts import classifier, conv, resize


class SemanticFPN(nn.Module):
    """A feature pyramid whose levels are brought to the finest one's size, step by step, and summed (figure 3).

    Args:
        in_channels: channels of the backbone's maps, finest first.
        strides: their strides.
        num_classes: logits a pixel.
        fpn_channels: channels of the pyramid.
        channels: channels of the sum.
        dropout: of channels before the classifier.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        fpn_channels: int = 256,
        channels: int = 128,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.fpn = FeaturePyramidNetwork(list(in_channels), fpn_channels)
        steps = [round(math.log2(stride / strides[0])) for stride in strides]
        self.scales = nn.ModuleList(
            nn.ModuleList(conv(channels if i else fpn_channels, channels) for i in range(max(count, 1)))
            for count in steps
        )
        self.doublings = steps
        self.classifier = classifier(channels, num_classes, dropout)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Levels [B, C_i, H_i, W_i], finest first → logits [B, num_classes, H, W] at the finest one's size."""
        levels = self.fpn(OrderedDict((str(i), x) for i, x in enumerate(maps))).values()
        size = maps[0].shape[-2:]
        total = 0
        for x, convs, doublings in zip(levels, self.scales, self.doublings, strict=True):
            for each in convs:
                x = each(x)
                if doublings:
                    x = F.interpolate(x, scale_factor=2, mode="bilinear")
            total = total + resize(x, size)
        return self.classifier(total)
