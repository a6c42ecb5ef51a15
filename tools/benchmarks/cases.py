"""The ops at the shapes that the published models give them: images of 224 pixels, stage by stage."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from ... import kernels

Inputs = dict[str, Any]
Draw = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Case:
    """An op at one shape.

    Attributes:
        op: name of the function in ``attnzoo.kernels``.
        label: the shape.
        inputs: draws the op's arguments for a batch.
        flops: floating-point operations that one image needs at least, forward: those of products, not of exponentials.
        batch: images, unless asked otherwise.
        shared: tensors among the inputs that all images share.
        goals: how many times faster than a peer, by name, the forward is meant to be on a CPU; eager.
        backward_goals: the same for forward and backward.
        compiled_goals: the same for the forward under torch.compile.
    """

    op: str
    label: str
    inputs: Callable[[Draw, int], Inputs]
    flops: float
    batch: int = 8
    shared: frozenset[str] = frozenset()
    goals: dict[str, float] = field(default_factory=dict)
    backward_goals: dict[str, float] = field(default_factory=dict)
    compiled_goals: dict[str, float] = field(default_factory=dict)

    @property
    def function(self) -> Callable[..., torch.Tensor]:
        return getattr(kernels, self.op)

    def draw(self, batch: int, dtype: torch.dtype, device: torch.device) -> Inputs:
        """The op's arguments, the same for every run."""
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator).to(device, dtype)

        return self.inputs(draw, batch)

    def part(self, inputs: Inputs, images: slice) -> Inputs:
        """The arguments of some of the images."""
        return {
            name: value[images] if isinstance(value, torch.Tensor) and name not in self.shared else value
            for name, value in inputs.items()
        }


def converted(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    """The arguments with all floating-point tensors in another dtype."""

    def convert(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(convert(item) for item in value)
        return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    return {name: convert(value) for name, value in inputs.items()}


def floating(inputs: Inputs) -> dict[str, torch.Tensor]:
    """The tensors that can have a gradient."""
    return {k: v for k, v in inputs.items() if isinstance(v, torch.Tensor) and v.is_floating_point()}


def tensor_bytes(values: Iterable[Any]) -> int:
    """Bytes of all tensors among values and tuples of them."""
    sizes = (
        tensor_bytes(v) if isinstance(v, tuple) else v.nbytes if isinstance(v, torch.Tensor) else 0 for v in values
    )
    return sum(sizes)


def _qkv(draw: Draw, *shape: int) -> Inputs:
    return {name: draw(*shape) for name in "qkv"}


def _neighborhood(side: int, heads: int, dilation: int) -> Case:
    def inputs(draw: Draw, batch: int) -> Inputs:
        sizes = {"kernel_size": 7, "dilation": dilation, "rel_pos_bias": draw(heads, 13, 13)}
        return _qkv(draw, batch, side, side, heads, 32) | sizes

    return Case(
        "neighborhood_attention",
        f"{side}×{side}, {heads} heads of 32, 7×7, dilation {dilation}",
        inputs,
        4 * side**2 * 49 * heads * 32,
        shared=frozenset({"rel_pos_bias"}),
        goals={"natten": 100, "natten 0.14.6 (C++)": 15 if dilation == 8 else 5} if side == 56 else {},
        backward_goals={"gather": 7},
    )


def _routing(side: int, heads: int, topk: int) -> Case:
    def inputs(draw: Draw, batch: int) -> Inputs:
        return _qkv(draw, batch, side, side, heads, 32) | {"num_regions": 7, "topk": topk}

    return Case(
        "bi_level_routing_attention",
        f"{side}×{side}, {heads} heads of 32, top {topk} of 49",
        inputs,
        4 * side**2 * (topk * side**2 // 49) * heads * 32,
    )


def _large_kernel(side: int, channels: int, goal: float) -> Case:
    def inputs(draw: Draw, batch: int) -> Inputs:
        weights = {
            "local_weight": draw(channels, 1, 5, 5) / 5,
            "dilated_weight": draw(channels, 1, 7, 7) / 7,
            "point_weight": draw(channels, channels, 1, 1) / channels**0.5,
        }
        biases = {f"{name}_bias": draw(channels) for name in ("local", "dilated", "point")}
        return {"x": draw(batch, channels, side, side)} | weights | biases

    return Case(
        "large_kernel_attention",
        f"{side}×{side}, {channels} channels",
        inputs,
        2 * side**2 * channels * (channels + 5**2 + 7**2),
        shared=frozenset(f"{name}_{kind}" for name in ("local", "dilated", "point") for kind in ("weight", "bias")),
        goals={"published": goal},
    )


def _magnitude_aware(side: int, heads: int) -> Case:
    def inputs(draw: Draw, batch: int) -> Inputs:
        angle = draw(side, side, 32)
        return _qkv(draw, batch, side, side, heads, 64) | {"rotation": (angle.cos(), angle.sin())}

    return Case(
        "magnitude_aware_linear_attention",
        f"{side}×{side}, {heads} heads of 64",
        inputs,
        4 * side**2 * heads * 64**2,
        goals={"published": 1.5},
        compiled_goals={"published": 2},
    )


def _linear(side: int, heads: int, width: int) -> Case:
    def inputs(draw: Draw, batch: int) -> Inputs:
        maps = _qkv(draw, batch, side, side, heads, width)
        return maps | {"q": maps["q"].relu(), "k": maps["k"].relu(), "eps": 100.0}

    label = f"{side}×{side}, {heads} heads of {width}"
    return Case("linear_attention", label, inputs, 4 * side**2 * heads * width**2)


def _flow(tokens: int, heads: int, width: int, causal: bool, batch: int = 8) -> Case:
    def inputs(draw: Draw, batch: int) -> Inputs:
        options = {"causal": True} if causal else {"outer_eps": 1e-6}
        return _qkv(draw, batch, tokens, heads, width) | options

    return Case(
        "flow_attention",
        f"{tokens} tokens, {heads} heads of {width}" + (", causal" if causal else ""),
        inputs,
        4 * tokens * heads * width**2,
        batch,
        goals={"published": 150} if causal else {},
    )


def _agent(tokens: int, agents: int, heads: int, width: int) -> Case:
    def inputs(draw: Draw, batch: int) -> Inputs:
        biases = {"agent_bias": draw(heads, agents, tokens), "query_bias": draw(heads, tokens, agents)}
        return _qkv(draw, batch, tokens, heads, width) | {"agent": draw(batch, agents, heads, width)} | biases

    return Case(
        "agent_attention",
        f"{tokens} tokens, {agents} agents, {heads} heads of {width}",
        inputs,
        8 * tokens * agents * heads * width,
        shared=frozenset({"agent_bias", "query_bias"}),
        goals={"published": 1.5},
    )


def _sparse(draw: Draw, batch: int) -> Inputs:
    scores = draw(batch, 6, 197, 197)
    mask = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, scores.topk(50).indices, True)
    return _qkv(draw, batch, 197, 6, 64) | {"mask": mask}


def _grouped(draw: Draw, batch: int) -> Inputs:
    q, k, v = (draw(batch, 197, heads, 64) for heads in (6, 3, 3))
    return {"q": q, "k": k, "v": v, "groups": torch.tensor([0, 0, 0, 1, 1, 2], device=q.device)}


def _strip(side: int, heads: int) -> Case:
    def inputs(draw: Draw, batch: int) -> Inputs:
        q, k = draw(batch, side**2, heads, 1), draw(batch, 49, heads, 1)
        return {"q": q, "k": k, "v": draw(batch, 49, heads, 64)}

    label = f"{side**2} tokens to 49, {heads} heads of 1 and 64"
    return Case("strip_attention", label, inputs, 2 * side**2 * 49 * heads * 65)


def _dynamic(side: int, kernel: int, heads: int, width: int) -> Case:
    def inputs(draw: Draw, batch: int) -> Inputs:
        weight = draw(batch, side, side, heads, kernel**2).softmax(-1)
        return {"x": draw(batch, side, side, heads, width), "weight": weight}

    return Case(
        "dynamic_depthwise_conv",
        f"{side}×{side}, {heads} heads of {width}, {kernel}×{kernel}",
        inputs,
        2 * side**2 * kernel**2 * heads * width,
        batch=2,
        goals={"published": 50},
    )


CASES = (
    _neighborhood(56, 2, 1),
    _neighborhood(56, 2, 8),
    _neighborhood(28, 4, 1),
    _neighborhood(14, 8, 1),
    _routing(56, 2, 1),
    _routing(28, 4, 4),
    _routing(14, 8, 16),
    _large_kernel(56, 64, 6),
    _large_kernel(28, 128, 3.5),
    _large_kernel(14, 320, 3.5),
    _large_kernel(7, 512, 3.5),
    _magnitude_aware(56, 1),
    _magnitude_aware(28, 2),
    _linear(56, 1, 64),
    _linear(56, 3, 32),
    _flow(3136, 1, 64, causal=False),
    _flow(3136, 3, 32, causal=False),
    _flow(512, 8, 64, causal=True, batch=2),
    _agent(3136, 9, 3, 32),
    _agent(784, 16, 6, 32),
    _agent(196, 49, 5, 64),
    _agent(197, 49, 6, 64),
    Case(
        "sparse_attention",
        "197 tokens, 6 heads of 64, 50 kept a row",
        _sparse,
        4 * 197 * 50 * 384,
    ),
    Case(
        "grouped_query_attention",
        "197 tokens, 6 query heads on 3 of 64, groups of 3, 2 and 1",
        _grouped,
        4 * 197**2 * 384,
        shared=frozenset({"groups"}),
        goals={"published": 1},
    ),
    _strip(56, 1),
    _dynamic(56, 17, 2, 16),
    _dynamic(28, 15, 4, 16),
    _dynamic(14, 13, 8, 16),
)
OPS = tuple(dict.fromkeys(case.op for case in CASES))
