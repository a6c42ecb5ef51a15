"""The layers that ``attnzoo bench layers`` times, and what is aimed at for them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class LayerCase:
    """A layer at a shape.

    Attributes:
        name: its class in :mod:`attnzoo.layers`.
        label: the shape, in words.
        arguments: of the class.
        shape: of the input, without the batch.
        published: the published form, named as in ``published_layers``.
        inputs: how many times the layer takes the input.
        mlp_ratio: hidden width of the MLP over the width, in a block.
        block: the class in :mod:`attnzoo.layers` of a block that has the layer in it, with its path there, for a layer
            that is not put between norms and residuals; it takes the same arguments but those in ``alone``.
        alone: further arguments of a layer that is not in a block.
        selects: whether it chooses what takes part, so that another rounding can choose otherwise.
        goal: how many times as fast as its published form the layer is meant to be on a CPU.
        block_goals: how many times as fast as another form a block with the layer is meant to be on a GPU.
    """

    name: str
    label: str
    arguments: Mapping[str, Any]
    shape: tuple[int, ...]
    published: str
    inputs: int = 1
    mlp_ratio: float = 4.0
    block: tuple[str, str] | None = None
    alone: Mapping[str, Any] = field(default_factory=dict)
    selects: bool = False
    goal: float | None = None
    block_goals: Mapping[str, float] = field(default_factory=dict)


def _routing(side: int, dim: int, topk: int, goal: float, block_goal: float) -> LayerCase:
    heads = dim // 32
    return LayerCase(
        "BiLevelRoutingAttention",
        f"{side}×{side}, {heads} heads of 32, top {topk} of 49",
        dict(dim=dim, num_heads=heads, num_regions=7, topk=topk),
        (side, side, dim),
        "routing",
        mlp_ratio=3.0,
        selects=True,
        goal=goal,
        block_goals={"published": block_goal},
    )


def _neighborhood(side: int, dim: int, dilation: int) -> LayerCase:
    heads = dim // 32
    return LayerCase(
        "NeighborhoodAttention",
        f"{side}×{side}, {heads} heads of 32, 7×7, dilation {dilation}",
        dict(dim=dim, num_heads=heads, dilation=dilation),
        (side, side, dim),
        "neighborhood",
        mlp_ratio=3.0,
        block_goals={"torch": 2.0},
    )


def _magnitude_aware(side: int, dim: int) -> LayerCase:
    heads = dim // 64
    return LayerCase(
        "MagnitudeAwareLinearAttention",
        f"{side}×{side}, {heads} heads of 64",
        dict(dim=dim, num_heads=heads),
        (side, side, dim),
        "magnitude_aware",
        mlp_ratio=3.5,
        block_goals={"published": 2.3},
    )


CASES = (
    _routing(56, 64, 1, 1.6, 1.8),
    _routing(28, 128, 4, 1.6, 2.5),
    _routing(14, 256, 16, 2.2, 5.0),
    _neighborhood(56, 64, 1),
    _neighborhood(56, 64, 8),
    _magnitude_aware(56, 64),
    _magnitude_aware(28, 128),
    LayerCase(
        "ContMix",
        "14×14, 256 channels, 8 groups, 13×13 and 5×5",
        dict(dim=256, kernel_size=13, num_heads=4),
        (256, 14, 14),
        "contmix",
        inputs=3,
        block=("ContMixBlock", "attn.contmix"),
        alone=dict(value_proj=True),
        block_goals={"published": 1.9},
    ),
    LayerCase(
        "SparsifinerAttention",
        "197 tokens, 6 heads of 64, predictor and all",
        dict(dim=384, num_heads=6, grid_size=(14, 14)),
        (197, 384),
        "sparsifiner",
        selects=True,
        goal=4.0,
    ),
)
