"""Which map belongs to which attention, and how the map is made from the op's arguments."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...layers import CrossShapedWindowAttention, LocalWindowAttention, RelPosAttention, ShiftedWindowAttention
from .agent import AgentMap
from .base import AttentionMap, Pixel, cell_size
from .dynamic_conv import DynamicConvMap
from .linear import FlowMap, LinearMap, MagnitudeAwareMap
from .neighborhood import NeighborhoodMap
from .receptive_field import ReceptiveFieldMap
from .routing import RoutedMap
from .softmax import SoftmaxMap
from .sparse import SparseMap
from .tap import CONVOLUTION, SOFTMAX, Call
from .windows import WindowMap


@dataclass(frozen=True)
class Scene:
    """What a map needs beside the op's arguments."""

    model: nn.Module
    image: Tensor
    query: Pixel
    call: Call

    def common(self) -> dict:
        return dict(layer=self.call.layer, image_size=tuple(self.image.shape[-2:]), query=self.query)

    def grid(self, tokens: int) -> tuple[tuple[int, int], int]:
        """Rows and columns of the layer's tokens, and the class tokens before them."""
        given = self.call.inputs[0] if self.call.inputs else None
        if isinstance(given, Tensor) and given.ndim == 4 and tokens == given.shape[1] * given.shape[2]:
            return tuple(given.shape[1:3]), 0
        height, width = self.image.shape[-2:]
        patch = getattr(self.model, "patch_size", None)
        strides = ([patch] if isinstance(patch, int) else []) + [2**i for i in range(12)]
        for prefix in sorted({0, getattr(self.model, "num_prefix_tokens", 0)}, reverse=True):
            for stride in strides:
                rows, columns = -(-height // stride), -(-width // stride)
                if rows * columns + prefix == tokens:
                    return (rows, columns), prefix
        raise ValueError(f"{self.call.layer}: {tokens} tokens are no grid of an image of {height}x{width}")

    def size(self, padded: Sequence[int]) -> tuple[int, int]:
        """Rows and columns of the layer's map, which the op may have got with padding."""
        given = self.call.inputs[0]
        return tuple(min(have, most) for have, most in zip(given.shape[1:3], padded, strict=True))


def _one(*tensors: Tensor) -> dict[str, Tensor]:
    """q, k and v without the batch axis."""
    return {name: x[0] for name, x in zip("qkv", tensors, strict=True)}


def _neighborhood(scene: Scene, q, k, v, kernel, dilation, bias, scale) -> AttentionMap:
    settings = dict(kernel_size=kernel, dilation=dilation, rel_pos_bias=bias, scale=scale)
    size = tuple(q.shape[1:3])
    return NeighborhoodMap(
        **scene.common(), grid=scene.size(size), key_grid=size, heads=q.shape[3], **_one(q, k, v), **settings
    )


def _routed(scene: Scene, q, k, v, regions, topk, scale) -> AttentionMap:
    settings = dict(region_grid=regions, topk=topk, scale=scale)
    size = tuple(q.shape[1:3])
    return RoutedMap(
        **scene.common(), grid=scene.size(size), key_grid=size, heads=q.shape[3], **_one(q, k, v), **settings
    )


def _flat(scene: Scene, q: Tensor, k: Tensor, v: Tensor) -> dict:
    """What all maps of tokens in one row have; maps ``[B, H, W, heads, D]`` become such rows."""
    if q.ndim == 5:
        grid, prefix = tuple(q.shape[1:3]), 0
        q, k, v = (x.flatten(1, 2) for x in (q, k, v))
    else:
        grid, prefix = scene.grid(q.shape[1])
    key_grid = grid if k.shape[1] == q.shape[1] else _reduced(grid, k.shape[1] - prefix)
    common = dict(grid=grid, key_grid=key_grid, heads=q.shape[2], prefix=prefix, query_prefix=prefix)
    return dict(**scene.common(), **common, **_one(q, k, v))


def _reduced(grid: tuple[int, int], keys: int) -> tuple[int, int]:
    for factor in range(1, max(grid) + 1):
        rows, columns = (-(-side // factor) for side in grid)
        if rows * columns == keys:
            return rows, columns
    raise ValueError(f"{keys} keys are no reduced map of {grid[0]}x{grid[1]} tokens")


def _agent(scene: Scene, q, k, v, agent, agent_bias, query_bias, scale) -> AttentionMap:
    count = agent.shape[1]
    agent_grid = tuple(getattr(scene.call.module, "agent_grid", (1, count)))
    biases = {
        name: None if bias is None else bias.reshape(bias.shape[-3:])
        for name, bias in (("agent_bias", agent_bias), ("query_bias", query_bias))
    }
    return AgentMap(**_flat(scene, q, k, v), agent=agent[0], agent_grid=agent_grid, scale=scale, **biases)


def _sparse(scene: Scene, q, k, v, mask, bias, scale) -> AttentionMap:
    # The class token is a key but, in Sparsifiner, no query of the op.
    whole = _flat(scene, k, k, v)
    whole.update(q=q[0], query_prefix=whole["prefix"] - (k.shape[1] - q.shape[1]))
    if mask.dtype != torch.bool and k.shape[1] < 2**15:
        # A list of connections is the only thing kept that grows with pairs of tokens: two bytes each instead of eight.
        mask = mask.to(torch.int16)
    return SparseMap(**whole, mask=mask[0], scale=scale)


def _grouped(scene: Scene, q, k, v, groups, scale) -> AttentionMap:
    return SoftmaxMap(**_flat(scene, q, k, v), groups=groups, scale=scale)


def _strip(scene: Scene, q, k, v, scale) -> AttentionMap:
    return SoftmaxMap(**_flat(scene, q, k, v), scale=scale)


def _linear(scene: Scene, q, k, v, eps) -> AttentionMap:
    return LinearMap(**_flat(scene, q, k, v), eps=eps)


def _magnitude_aware(scene: Scene, q, k, v, rotation, scale, eps) -> AttentionMap:
    if rotation is not None:
        rotation = tuple(x.flatten(0, -2) for x in rotation)
    return MagnitudeAwareMap(**_flat(scene, q, k, v), rotation=rotation, scale=scale, eps=eps)


def _flow(scene: Scene, q, k, v, causal, eps, outer_eps) -> AttentionMap:
    return FlowMap(**_flat(scene, q, k, v), causal=causal, eps=eps, outer_eps=outer_eps)


def _dynamic_conv(scene: Scene, x, weight, kernel, bias, softmax) -> AttentionMap:
    size = tuple(x.shape[1:3])
    # ContMix enlarges maps that are smaller than its window.
    own, pixels = scene.call.inputs[0].shape[2:], scene.image.shape[-2:]
    cell = tuple(cell_size(p, n) * n / m for p, n, m in zip(pixels, own, size, strict=True))
    settings = dict(logits=weight[0], v=x[0], kernel_size=kernel, rel_pos_bias=bias, softmax=softmax, cell=cell)
    return DynamicConvMap(**scene.common(), grid=size, key_grid=size, heads=x.shape[3], **settings)


def _convolution(scene: Scene, x: Tensor, *_) -> AttentionMap:
    image_size = tuple(scene.image.shape[-2:])
    settings = dict(model=scene.model, module=scene.call.module, image=scene.image, key_cell=(1.0, 1.0))
    return ReceptiveFieldMap(**scene.common(), grid=tuple(x.shape[2:]), key_grid=image_size, heads=1, **settings)


def _softmax(scene: Scene, q, k, v, mask, is_causal, scale) -> AttentionMap:
    module = scene.call.module
    if isinstance(module, (ShiftedWindowAttention, CrossShapedWindowAttention, LocalWindowAttention)):
        return _windows(scene, module, q, k, v, mask)
    flat = _flat(scene, *(x.transpose(1, 2) for x in (q, k, v)))
    bias = None
    if isinstance(module, RelPosAttention):
        # Spread over all pairs again for every query, rather than kept for every layer.
        bias = lambda index: module.bias(*flat["grid"])[:, index].detach()  # noqa: E731
    elif mask is not None or is_causal:
        raise ValueError(f"{scene.call.layer}: no map of attention under a mask")
    return SoftmaxMap(**flat, scale=scale, bias=bias)


def _windows(scene: Scene, module: nn.Module, q, k, v, mask) -> AttentionMap:
    size = tuple(scene.call.inputs[0].shape[1:3])
    shift = 0
    if isinstance(module, CrossShapedWindowAttention):
        heads, side = module.num_heads // 2, module.split_size
        window = (size[0], side) if scene.call.layer.endswith(":vertical") else (side, size[1])
    else:
        heads, side = module.num_heads, module.window_size
        window = (side, side)
        if getattr(module, "shift", False) and min(size) > side:
            shift = side // 2
    padded = tuple(-(-length // n) * n for length, n in zip(size, window, strict=True))
    # Windows are a part of the batch axis, or heads of one window follow those of another.
    q, k, v = (x.flatten(0, 1).unflatten(0, (-1, heads)) for x in (q, k, v))
    if mask is not None:
        mask = mask.flatten(0, -3).unflatten(0, (-1, heads))
    settings = dict(window=window, shift=shift, mask=mask)
    return WindowMap(**scene.common(), grid=size, key_grid=padded, heads=heads, q=q, k=k, v=v, **settings)


BUILDERS: dict[str, Callable[..., AttentionMap]] = {
    "agent_attention": _agent,
    "bi_level_routing_attention": _routed,
    "dynamic_depthwise_conv": _dynamic_conv,
    "flow_attention": _flow,
    "grouped_query_attention": _grouped,
    "large_kernel_attention": _convolution,
    "linear_attention": _linear,
    "magnitude_aware_linear_attention": _magnitude_aware,
    "neighborhood_attention": _neighborhood,
    "sparse_attention": _sparse,
    "strip_attention": _strip,
    CONVOLUTION: _convolution,
    SOFTMAX: _softmax,
}
