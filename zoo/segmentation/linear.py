"""A decoder of global attention at linear cost. Ours: it is published nowhere, and no accuracy stands next to it."""

from collections.abc import Callable, Sequence

from timm.layers import DropPath, LayerNorm2d, Mlp
from torch import Tensor, nn

from ...layers import AgentAttention, FlowAttention, MagnitudeAwareLinearAttention
from .._levels import unknown
from ._parts import classifier, conv, resize

ATTENTIONS: dict[str, Callable[..., nn.Module]] = {
    "agent": AgentAttention,
    "flow": FlowAttention,
    "mala": MagnitudeAwareLinearAttention,
}


class _Block(nn.Module):
    """Position by a depth-wise convolution (Chu et al. 2021, arXiv 2102.10882), attention and MLP, on [B, H, W, C]."""

    def __init__(self, dim: int, attention: str, num_heads: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.position = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm1 = nn.LayerNorm(dim)
        self.attn = ATTENTIONS[attention](dim, num_heads=num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(mlp_ratio * dim))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.position(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class LinearAttentionDecoder(nn.Module):
    """Every pixel sees the whole image, at a cost linear in the pixels.

    Softmax attention over a map of stride 8 costs the square of its pixels, so decoders attend inside the coarsest map
    or pool to grids. Attention of linear cost does not have to. All maps are projected to one width and summed at one
    stride (the sum of projections is the projection of the concatenated maps, without them in memory), go through a
    few blocks of global attention, are brought to the finest map's size, where that map is added once more for its
    edges, and classified after a 3×3 convolution.

    This decoder is the zoo's own and unpublished. Its attentions are agent attention (Han et al. 2024, arXiv
    2312.08874), magnitude-aware linear attention (Fan et al. 2025, arXiv 2507.00698) and flow-attention (Wu et al.
    2022, arXiv 2202.06258).

    Args:
        in_channels: channels of the backbone's maps, finest first.
        strides: their strides.
        num_classes: logits a pixel.
        attention: ``agent``, ``mala`` or ``flow``.
        channels: width.
        depth: blocks.
        num_heads: heads; must divide ``channels``, for ``mala`` into multiples of 4.
        mlp_ratio: hidden width of an MLP over ``channels``.
        fusion_stride: stride at which the maps meet and attend, one of ``strides``; None is 8 where there is one.
        block_drop_path: stochastic depth of the last block, less in those before.
        dropout: of channels before the classifier.

    Raises:
        ValueError: an unknown attention, or a stride or number that does not fit.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        attention: str = "agent",
        channels: int = 256,
        depth: int = 2,
        num_heads: int = 8,
        mlp_ratio: float = 2.0,
        fusion_stride: int | None = None,
        block_drop_path: float = 0.0,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if attention not in ATTENTIONS:
            raise ValueError(unknown("attention", attention, ATTENTIONS))
        if depth < 1:
            raise ValueError(f"depth={depth} is below 1")
        if fusion_stride is None:
            fusion_stride = 8 if 8 in strides else strides[0]
        if fusion_stride not in strides:
            raise ValueError(f"fusion_stride={fusion_stride} is none of the backbone's strides {tuple(strides)}")
        self.level = list(strides).index(fusion_stride)
        self.projections = nn.ModuleList(
            _projection(width, channels, max(fusion_stride // stride, 1))
            for width, stride in zip(in_channels, strides, strict=True)
        )
        drops = [block_drop_path * (i + 1) / depth for i in range(depth)]
        self.blocks = nn.Sequential(*(_Block(channels, attention, num_heads, mlp_ratio, drop) for drop in drops))
        self.norm = LayerNorm2d(channels)
        self.detail = nn.Conv2d(in_channels[0], channels, 1)
        self.refine = conv(channels, channels)
        self.classifier = classifier(channels, num_classes, dropout)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Levels [B, C_i, H_i, W_i], finest first → logits [B, num_classes, H, W] at the finest one's size."""
        size = maps[self.level].shape[-2:]
        x = sum(resize(project(each), size) for project, each in zip(self.projections, maps, strict=True))
        x = self.blocks(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = resize(self.norm(x), maps[0].shape[-2:]) + self.detail(maps[0])
        return self.classifier(self.refine(x))


def _projection(in_channels: int, channels: int, factor: int) -> nn.Sequential:
    """Norm, and a convolution that merges patches of ``factor`` where a map is finer than the others' meeting place."""
    return nn.Sequential(LayerNorm2d(in_channels), nn.Conv2d(in_channels, channels, factor, stride=factor))
