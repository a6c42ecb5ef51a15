"""Neighborhood attention as Triton kernels, forward and backward, over one or two axes of space.

A tile of queries meets the keys that hold all its windows, block by block, under a running softmax; no score leaves
the chip. Keys and values are read from where they lie, so a packed projection needs no copy. The backward recomputes
the weights from the saved log-sums. The gradient of the bias is summed over images inside the kernel and over
positions by PyTorch, without atomics. Definition and source: :mod:`..neighborhood`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

from . import _neighborhood_kernels as kernels
from ._fold import fold
from ._launch import Case, Launch, block_width, dot_options, factors_of, out_dtype, with_strides

_SLOTS = 8


def fused_neighborhood_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    kernel: tuple[int, ...],
    dilation: tuple[int, ...],
    bias: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """The ``triton`` implementation of :func:`..neighborhood.neighborhood_attention`."""
    if q.ndim == 4:
        q, k, v = (x.unsqueeze(1) for x in (q, k, v))
        bias = None if bias is None else bias.unsqueeze(1)
        return _forward(q, k, v, [1, *kernel], [1, *dilation], bias, scale)[0].squeeze(1)
    return _forward(q, k, v, list(kernel), list(dilation), bias, scale)[0]


@torch.library.custom_op("attnzoo::neighborhood_forward", mutates_args=())
def _forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    kernel: list[int],
    dilation: list[int],
    bias: torch.Tensor | None,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``(out, lse)``: lse ``[B, heads, H, W]`` is the log2 of the sum of 2 ** scores, float32."""
    out = q.new_empty((*q.shape[:-1], v.shape[-1]), dtype=out_dtype(q.dtype))
    lse = q.new_empty((q.shape[0], q.shape[3], *q.shape[1:3]), dtype=torch.float32)
    problem = (kernel, dilation, bias, scale)
    _launch(kernels.forward_kernel, problem, {"q": q, "k": k, "v": v, "out": out}, {"lse": lse}).run(q)
    return out.to(q.dtype), lse


@_forward.register_fake
def _(q, k, v, kernel, dilation, bias, scale):
    lse = q.new_empty((q.shape[0], q.shape[3], *q.shape[1:3]), dtype=torch.float32)
    return q.new_empty((*q.shape[:-1], v.shape[-1])), lse


@torch.library.custom_op("attnzoo::neighborhood_backward", mutates_args=())
def _backward(
    d_out: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    kernel: list[int],
    dilation: list[int],
    bias: torch.Tensor | None,
    scale: float,
    out: torch.Tensor,
    lse: torch.Tensor,
    bias_gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k, v and bias; that of bias is empty unless ``bias_gradient``."""
    d_q, d_k, d_v = (x.new_empty(x.shape, dtype=out_dtype(x.dtype)) for x in (q, k, v))
    delta = torch.empty_like(lse)
    d_parts = lse.new_empty((min(_SLOTS, q.shape[0]), q.shape[3], *q.shape[1:3], *kernel)) if bias_gradient else None
    inputs, sums = {"q": q, "k": k, "v": v, "d_out": d_out}, {"lse": lse, "delta": delta}
    for launch in _backward_launches((kernel, dilation, bias, scale), inputs, sums, out, (d_q, d_k, d_v), d_parts):
        launch.run(q)
    d_bias = q.new_empty(0)
    if bias_gradient:
        d_bias = fold(d_parts.sum(0), kernel, dilation).to(bias.dtype)
    return d_q.to(q.dtype), d_k.to(k.dtype), d_v.to(v.dtype), d_bias


@_backward.register_fake
def _(d_out, q, k, v, kernel, dilation, bias, scale, out, lse, bias_gradient):
    d_bias = bias.new_empty(bias.shape) if bias_gradient else q.new_empty(0)
    return *(x.new_empty(x.shape) for x in (q, k, v)), d_bias


def _save(ctx: Any, inputs: tuple, output: tuple) -> None:
    q, k, v, ctx.kernel, ctx.dilation, bias, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, bias, *output)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, d_out: torch.Tensor, _: torch.Tensor | None) -> tuple:
    q, k, v, bias, out, lse = ctx.saved_tensors
    wants_bias = ctx.needs_input_grad[5]
    *d_qkv, d_bias = _backward(d_out, q, k, v, ctx.kernel, ctx.dilation, bias, ctx.scale, out, lse, wants_bias)
    return *d_qkv, None, None, d_bias if wants_bias else None, None


_forward.register_autograd(_differentiate, setup_context=_save)


def _backward_launches(
    problem: tuple,
    inputs: dict[str, torch.Tensor],
    sums: dict[str, torch.Tensor],
    out: torch.Tensor,
    gradients: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    d_parts: torch.Tensor | None,
) -> Iterator[Launch]:
    """In the order in which they have to run: the first one stores delta."""
    d_q, d_k, d_v = gradients
    others = {**sums, "CORRECT": out.dtype != torch.float32}
    yield _launch(kernels.query_gradient_kernel, problem, {**inputs, "out": out, "d_q": d_q}, others)
    yield _launch(kernels.key_value_gradient_kernel, problem, {**inputs, "d_k": d_k, "d_v": d_v}, sums)
    if d_parts is not None:
        others = {**sums, "d_parts": d_parts}
        yield _launch(kernels.bias_gradient_kernel, problem, inputs, others, d_parts.shape[0])


def _launch(
    jitted: Any,
    problem: tuple,
    tokens: dict[str, torch.Tensor],
    others: dict[str, Any],
    slots: int | None = None,
) -> Launch:
    """The launch of a kernel on maps of ``tokens``, and ``others`` as they are.

    With ``slots`` a program owns a slot instead of an image, and one block of keys, on the grid's second axis.
    """
    (kernel, dilation, bias, scale), (q, v) = problem, (tokens["q"], tokens["v"])
    batch, *size, heads, width = q.shape
    tile, block, warps = _tiles(kernel, max(width, v.shape[-1]), q.dtype, jitted)
    members = [-(-n // step) for n, step in zip(size, dilation, strict=True)]
    tiles = tuple(-(-n // each) for n, each in zip(members, tile, strict=True))
    programs = (batch if slots is None else slots) * heads * math.prod(tiles) * math.prod(dilation)
    arguments = {
        **{name: with_strides(x) for name, x in tokens.items()},
        **others,
        "bias": None if bias is None else bias.contiguous(),
        "scale": scale,
        "heads": heads,
        "size": tuple(size),
        "tiles": tiles,
        "factors": factors_of((heads, *tiles), programs),
        "KERNEL": tuple(kernel),
        "DILATION": tuple(dilation),
        "TILE": tile,
        "BLOCK": block,
        "WIDTH": width,
        "V_WIDTH": v.shape[-1],
        "D": block_width(width),
        "DV": block_width(v.shape[-1]),
        **dot_options(q.dtype),
    }
    blocks = 1
    if slots is not None:
        arguments |= {"batch": batch, "slots": slots}
        spans = (min(each + n - 1, longest) for each, n, longest in zip(tile, kernel, members, strict=True))
        blocks = math.prod(-(-span // each) for span, each in zip(spans, block, strict=True))
    return Launch(jitted, (programs, blocks), arguments, warps)


def _tiles(
    kernel: list[int], width: int, dtype: torch.dtype, jitted: Any
) -> tuple[tuple[int, int], tuple[int, int], int]:
    """Members of a tile and of a block, and warps: those that the ahead-of-time gate compiles without spills."""
    pair = jitted is kernels.key_value_gradient_kernel
    forward = jitted is kernels.forward_kernel
    queries, keys, warps = 64, 32, 4
    if dtype == torch.float32:
        # Three TF32 products a product: the parts of their operands take the registers.
        wide, bias, keys = width > 32, jitted is kernels.bias_gradient_kernel, 16
        if kernel[0] == 1:
            queries, warps = 32 if pair or (wide and bias) else 64, 8 if wide or forward or bias else 4
        else:
            queries, warps = 32 if pair or (wide and not forward) else 64, 8 if wide and not pair else 4
    elif width > 64:
        queries, keys, warps = 32 if pair or jitted is kernels.query_gradient_kernel else 64, 16, 8
    elif width > 32:
        queries, warps = 32 if pair else 64, 4 if pair or forward else 8
    if kernel[0] == 1:
        return (1, queries), (1, keys), warps
    return (queries // 8, 8), (keys // 16, 16), warps


def _case(
    size: tuple[int, int], kernel: list[int], dilation: list[int], batch: int = 2, biased: bool = True
) -> Callable[..., list[Launch]]:
    def build(dtype: torch.dtype, width: int) -> list[Launch]:
        def empty(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype, device="meta")

        q, k, v = empty(batch, *size, 3, 4, width).unbind(3)
        out, d_out, *gradients = (empty(batch, *size, 4, width) for _ in range(5))
        lse, delta = (empty(batch, 4, *size, dtype=torch.float32) for _ in range(2))
        bias = empty(4, *(2 * n - 1 for n in kernel), dtype=torch.float32) if biased else None
        problem, tokens = (kernel, dilation, bias, 0.25), {"q": q, "k": k, "v": v}
        d_parts = empty(2, 4, *size, *kernel, dtype=torch.float32) if biased else None
        forward = _launch(kernels.forward_kernel, problem, {**tokens, "out": out}, {"lse": lse})
        sums = {"lse": lse, "delta": delta}
        return [forward, *_backward_launches(problem, {**tokens, "d_out": d_out}, sums, out, tuple(gradients), d_parts)]

    return build


# Images of so many programs that they divide to find their places.
_MANY = 2**22
_ALLOWED = {"bias_gradient_kernel fp32 64": "16 bytes outside the loop, in float32 at the greatest width"}

CASES = [
    Case("neighborhood_2d", _case((56, 56), [7, 7], [8, 8]), allowed=_ALLOWED),
    Case("neighborhood_1d", _case((1, 784), [1, 7], [1, 2]), every_run=(("bf16", 32),), allowed=_ALLOWED),
    Case("neighborhood_plain", _case((56, 56), [7, 7], [8, 8], biased=False), widths=(32,), every_run=(("bf16", 32),)),
    Case(
        "neighborhood_many",
        _case((56, 56), [7, 7], [8, 8], batch=_MANY),
        widths=(32,),
        every_run=(("bf16", 32),),
        allowed={f"key_value_gradient_kernel {dtype} 32": "16 bytes on sm_100" for dtype in ("bf16", "fp16")},
    ),
]
