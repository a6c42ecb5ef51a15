"""Bi-level routing attention as Triton kernels, forward and backward, once the regions are chosen.

The keys and values of the chosen regions are read where they lie, one region after the other: the gather that costs
the PyTorch form most of its time and memory does not happen. The gradients of keys and values go through the inverse
list, from each region to those that chose it, without atomics. Definition and source: :mod:`..routing`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from . import _routing_kernels as kernels
from ._launch import Case, Launch, block_width, dot_options, factors_of, out_dtype, with_strides


def fused_routed_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, chosen: torch.Tensor, regions: tuple[int, int], scale: float
) -> torch.Tensor:
    """Attention of each region's tokens to those of its chosen regions.

    Args:
        q: queries ``[B, H, W, heads, D]``.
        k: keys, of q's shape.
        v: values ``[B, H, W, heads, Dv]``.
        chosen: int32 ``[B, regions, topk]``, row-major numbers of the regions that each region attends to.
        regions: (rows, columns) of regions.
        scale: factor of the scores.

    Returns:
        ``[B, H, W, heads, Dv]``.
    """
    return _forward(q, k, v, chosen, list(regions), scale)[0]


@torch.library.custom_op("attnzoo::routing_forward", mutates_args=())
def _forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, chosen: torch.Tensor, regions: list[int], scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """``(out, lse)``: lse ``[B, heads, H, W]`` is the log2 of the sum of 2 ** scores, float32."""
    out = q.new_empty((*q.shape[:-1], v.shape[-1]), dtype=out_dtype(q.dtype))
    lse = q.new_empty((q.shape[0], q.shape[3], *q.shape[1:3]), dtype=torch.float32)
    problem = (regions, chosen.shape[-1], scale)
    tokens = {"q": q, "k": k, "v": v, "out": out}
    _launch(kernels.forward_kernel, problem, tokens, {"chosen": chosen.contiguous(), "lse": lse}).run(q)
    return out.to(q.dtype), lse


@_forward.register_fake
def _(q, k, v, chosen, regions, scale):
    lse = q.new_empty((q.shape[0], q.shape[3], *q.shape[1:3]), dtype=torch.float32)
    return q.new_empty((*q.shape[:-1], v.shape[-1])), lse


@torch.library.custom_op("attnzoo::routing_backward", mutates_args=())
def _backward(
    d_out: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    chosen: torch.Tensor,
    regions: list[int],
    scale: float,
    out: torch.Tensor,
    lse: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k and v."""
    gradients = tuple(x.new_empty(x.shape, dtype=out_dtype(x.dtype)) for x in (q, k, v))
    tokens = {"q": q, "k": k, "v": v, "d_out": d_out}
    for launch in _backward_launches((regions, chosen.shape[-1], scale), tokens, chosen, out, lse, gradients):
        launch.run(q)
    d_q, d_k, d_v = gradients
    return d_q.to(q.dtype), d_k.to(k.dtype), d_v.to(v.dtype)


@_backward.register_fake
def _(d_out, q, k, v, chosen, regions, scale, out, lse):
    return tuple(x.new_empty(x.shape) for x in (q, k, v))


def _save(ctx: Any, inputs: tuple, output: tuple) -> None:
    q, k, v, chosen, ctx.regions, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, chosen, *output)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, d_out: torch.Tensor, _: torch.Tensor | None) -> tuple:
    q, k, v, chosen, out, lse = ctx.saved_tensors
    return *_backward(d_out, q, k, v, chosen, ctx.regions, ctx.scale, out, lse), None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)


def _invert(chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """From each region to those that chose it, int32.

    Returns:
        the owners of all choices ``[B, regions * topk]``, sorted by the region chosen, and where each region's begin
        ``[B, regions + 1]``.
    """
    count, topk = chosen.shape[1:]
    regions, order = chosen.flatten(1).sort(dim=1, stable=True)
    edges = torch.arange(count + 1, dtype=chosen.dtype, device=chosen.device).expand(len(chosen), -1)
    ends = torch.searchsorted(regions, edges.contiguous(), out_int32=True)
    return order.div(topk, rounding_mode="floor").int(), ends


def _backward_launches(
    problem: tuple,
    tokens: dict[str, torch.Tensor],
    chosen: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    gradients: tuple[torch.Tensor, ...],
) -> Iterator[Launch]:
    """In the order in which they have to run: the first one stores delta."""
    d_q, d_k, d_v = gradients
    sums = {"lse": lse, "delta": torch.empty_like(lse)}
    others = {**sums, "chosen": chosen.contiguous(), "CORRECT": out.dtype != torch.float32}
    yield _launch(kernels.query_gradient_kernel, problem, {**tokens, "out": out, "d_q": d_q}, others)
    choosers, ends = _invert(chosen)
    others = {**sums, "choosers": choosers, "ends": ends}
    yield _launch(kernels.key_value_gradient_kernel, problem, {**tokens, "d_k": d_k, "d_v": d_v}, others)


def _launch(jitted: Any, problem: tuple, tokens: dict[str, torch.Tensor], others: dict[str, Any]) -> Launch:
    """The launch of a kernel on maps of ``tokens``, and ``others`` as they are."""
    (regions, topk, scale), (q, v) = problem, (tokens["q"], tokens["v"])
    batch, height, width, heads, channels = q.shape
    cell = (height // regions[0], width // regions[1])
    tile, block, warps, stages = _tiles(cell[0] * cell[1], max(channels, v.shape[-1]), q.dtype, jitted)
    slices = -(-cell[0] * cell[1] // tile)
    programs = batch * regions[0] * regions[1] * slices * heads
    # The kernels know them by their places.
    divisors = (heads, slices, regions[0] * regions[1], regions[1], cell[1], cell[0] * cell[1])
    arguments = {
        **{name: with_strides(x) for name, x in tokens.items()},
        **others,
        "scale": scale,
        "heads": heads,
        "slices": slices,
        "topk": topk,
        "counts": tuple(regions),
        "cell": cell,
        "factors": factors_of(divisors, max(programs, regions[0] * regions[1] * topk * cell[0] * cell[1])),
        "TILE": tile,
        "BLOCK": block,
        "WIDTH": channels,
        "V_WIDTH": v.shape[-1],
        "D": block_width(channels),
        "DV": block_width(v.shape[-1]),
        **dot_options(q.dtype),
    }
    return Launch(jitted, (programs,), arguments, warps, stages)


def _tiles(tokens: int, width: int, dtype: torch.dtype, jitted: Any) -> tuple[int, int, int, int]:
    """Tokens of a tile and of a block, warps and stages: those that the ahead-of-time gate compiles without spills."""
    if dtype == torch.float32:
        # Three TF32 products a product: the parts of their operands take the registers.
        tile = min(32, block_width(tokens))
        return tile, 16, 8 if width > 32 and tile > 16 else 4, 2
    pair = jitted is kernels.key_value_gradient_kernel
    tile = min(32 if width > 64 and pair else 64, block_width(tokens))
    if tile <= 16 and width <= 64:
        # More warps would have to exchange each query's sums.
        return (tile, 32, 1, 2) if width <= 32 else (tile, 64, 2, 2)
    if width <= 32:
        return tile, 64, 4, 3 if pair else 2
    return tile, 32, 8 if tile > 16 else 4, 2


def _case(size: int, regions: int, topk: int, batch: int = 2) -> Callable[..., list[Launch]]:
    def build(dtype: torch.dtype, width: int) -> list[Launch]:
        q, k, v = torch.empty(batch, size, size, 3, 4, width, dtype=dtype, device="meta").unbind(3)
        out, d_out, *gradients = (torch.empty_like(q, memory_format=torch.contiguous_format) for _ in range(5))
        lse = torch.empty(batch, 4, size, size, device="meta")
        chosen = torch.empty(batch, regions**2, topk, dtype=torch.int32, device="meta")
        problem, tokens = ([regions, regions], topk, 0.25), {"q": q, "k": k, "v": v}
        forward = _launch(kernels.forward_kernel, problem, {**tokens, "out": out}, {"chosen": chosen, "lse": lse})
        rest = _backward_launches(problem, {**tokens, "d_out": d_out}, chosen, out, lse, tuple(gradients))
        return [forward, *rest]

    return build


CASES = [
    Case("routing_64_tokens", _case(56, 7, 4), every_run=(("bf16", 64), ("fp32", 32))),
    Case("routing_16_tokens", _case(28, 7, 4), every_run=(("bf16", 32),)),
    Case("routing_4_tokens", _case(14, 7, 16), every_run=(("bf16", 32),)),
    # So many programs that they divide to find their places.
    Case("routing_many", _case(56, 7, 4, batch=2**22), widths=(32,), every_run=(("bf16", 32),)),
]
