"""The fully convolutional head (Long, Shelhamer & Darrell 2015, arXiv 1411.4038) on one map of the backbone."""

from collections.abc import Sequence

from torch import Tensor, nn

from ._parts import classifier, conv


class FCN(nn.Module):
    """3×3 convolutions on the coarsest map and a classifier of its pixels; also the auxiliary head of other decoders.

    Args:
        in_channels: channels of the backbone's maps, finest first.
        strides: their strides; not used, all decoders take them.
        num_classes: logits a pixel.
        channels: width of the convolutions.
        num_convs: how many.
        level: which map, counted as in a list.
        dropout: of channels before the classifier.

    Raises:
        ValueError: the backbone has no such level.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        channels: int = 256,
        num_convs: int = 2,
        level: int = -1,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if not -len(in_channels) <= level < len(in_channels):
            raise ValueError(f"level={level}: the backbone has maps 0 to {len(in_channels) - 1}; -1 is the coarsest")
        self.level = level
        widths = [in_channels[level], *[channels] * num_convs]
        self.convs = nn.Sequential(*(conv(a, b) for a, b in zip(widths, widths[1:], strict=False)))
        self.classifier = classifier(widths[-1], num_classes, dropout)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Levels [B, C_i, H_i, W_i], finest first → logits [B, num_classes, H, W] at the size of the map in use."""
        return self.classifier(self.convs(maps[self.level]))
