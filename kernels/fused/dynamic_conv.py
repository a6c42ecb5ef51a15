"""Dynamic depth-wise convolution as Triton kernels, forward and backward.

The weights of a tile's windows, spread over the positions that these reach, are one factor of a banded product on the
matrix units, made block by block and never stored; bias and softmax are taken in on the way. The backward recomputes
the softmax from the saved log-sums and stores every gradient once: no atomics. The gradient of the bias is a sum of the
weights' gradient. Definition and source: :mod:`..dynamic_conv`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from . import _dynamic_conv_kernels as kernels
from ._fold import fold
from ._launch import Case, Launch, block_width, dot_options, factors_of, out_dtype, with_strides

_TILE = 8


def fused_dynamic_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    kernel: tuple[int, int],
    bias: torch.Tensor | None,
    softmax: bool,
) -> torch.Tensor:
    """The ``triton`` implementation of :func:`..dynamic_conv.dynamic_depthwise_conv`."""
    return _forward(x, weight, list(kernel), bias, softmax)[0]


@torch.library.custom_op("attnzoo::dynamic_conv_forward", mutates_args=())
def _forward(
    x: torch.Tensor, weight: torch.Tensor, kernel: list[int], bias: torch.Tensor | None, softmax: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """``(out, lse)``: lse ``[B, heads, H, W]``, log2 of each window's sum of 2 ** scores, is empty without softmax."""
    out = x.new_empty(x.shape, dtype=out_dtype(x.dtype))
    lse = x.new_empty(_lse_shape(x, softmax), dtype=torch.float32)
    _launch(kernels.forward_kernel, (kernel, bias, softmax, lse), x=x, weight=weight, out=out).run(x)
    return out.to(x.dtype), lse


@_forward.register_fake
def _(x, weight, kernel, bias, softmax):
    return x.new_empty(x.shape), x.new_empty(_lse_shape(x, softmax), dtype=torch.float32)


@torch.library.custom_op("attnzoo::dynamic_conv_backward", mutates_args=())
def _backward(
    d_out: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    kernel: list[int],
    bias: torch.Tensor | None,
    softmax: bool,
    out: torch.Tensor,
    lse: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of x, weight and bias; that of bias is empty without one."""
    problem = (kernel, bias, softmax, lse)
    # The gradient of the bias is summed from that of the weights, in no less than its own precision.
    wide = weight.dtype if bias is None else torch.promote_types(weight.dtype, bias.dtype)
    d_x = x.new_empty(x.shape, dtype=out_dtype(x.dtype))
    d_weight = weight.new_empty(weight.shape, dtype=out_dtype(wide))
    maps = {"x": x, "weight": weight, "out": out, "d_out": d_out, "d_weight": d_weight}
    _launch(kernels.weight_gradient_kernel, problem, **maps).run(x)
    _launch(kernels.value_gradient_kernel, problem, weight=weight, d_out=d_out, d_x=d_x).run(x)
    d_bias = x.new_empty(0)
    if bias is not None:
        windows = d_weight.sum(0, dtype=torch.float32).permute(2, 0, 1, 3).unflatten(-1, kernel)
        d_bias = fold(windows, kernel, (1, 1)).to(bias.dtype)
    return d_x.to(x.dtype), d_weight.to(weight.dtype), d_bias


@_backward.register_fake
def _(d_out, x, weight, kernel, bias, softmax, out, lse):
    d_bias = x.new_empty(0) if bias is None else bias.new_empty(bias.shape)
    return x.new_empty(x.shape), weight.new_empty(weight.shape), d_bias


def _save(ctx: Any, inputs: tuple, output: tuple) -> None:
    x, weight, ctx.kernel, bias, ctx.softmax = inputs
    ctx.save_for_backward(x, weight, bias, *output)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, d_out: torch.Tensor, _: torch.Tensor | None) -> tuple:
    x, weight, bias, out, lse = ctx.saved_tensors
    d_x, d_weight, d_bias = _backward(d_out, x, weight, ctx.kernel, bias, ctx.softmax, out, lse)
    return d_x, d_weight, None, None if bias is None else d_bias, None


_forward.register_autograd(_differentiate, setup_context=_save)


def _lse_shape(x: torch.Tensor, softmax: bool) -> tuple[int, ...]:
    return (x.shape[0], x.shape[3], *x.shape[1:3]) if softmax else (0,)


def _launch(jitted: Any, problem: tuple, **maps: torch.Tensor) -> Launch:
    """The launch of a kernel: a program for each tile of each head."""
    kernel, bias, softmax, lse = problem
    batch, *size, heads, width = maps["d_out" if "d_out" in maps else "x"].shape
    dtype = maps["d_out" if "d_out" in maps else "x"].dtype
    tiles = tuple(-(-n // _TILE) for n in size)
    programs = batch * heads * math.prod(tiles)
    arguments = {
        **{name: with_strides(each) for name, each in maps.items()},
        "bias": None if bias is None else bias.contiguous(),
        "lse": lse,
        "heads": heads,
        "size": tuple(size),
        "tiles": tiles,
        "factors": factors_of((heads, *tiles), programs),
        "KERNEL": tuple(kernel),
        "SOFTMAX": softmax,
        "WIDTH": width,
        "D": block_width(width),
        "TILE": _TILE,
        "BLOCK": _block(kernel, size, width, dtype, jitted),
        **dot_options(dtype),
    }
    # By the ahead-of-time gate: with what three products of TF32 take, a second stage would spill.
    warps, stages = 4, 2
    if dtype == torch.float32:
        warps, stages = 4 if width <= 16 and jitted is kernels.weight_gradient_kernel else 8, 1
    return Launch(jitted, (programs,), arguments, warps, stages)


def _block(kernel: list[int], size: list[int], width: int, dtype: torch.dtype, jitted: Any) -> tuple[int, int]:
    """Rows and columns of a block of keys."""
    most = 32 if jitted is kernels.value_gradient_kernel else 64
    keys = 32 if width <= most and dtype != torch.float32 else 16
    columns = 8 if min(_TILE + kernel[1] - 1, size[1]) <= 8 else 16
    return keys // columns, columns


def _case(kernel: int, batch: int = 2, plain: bool = False) -> Callable[[torch.dtype, int], list[Launch]]:
    def build(dtype: torch.dtype, width: int) -> list[Launch]:
        x, out, d_out, d_x = (torch.empty(batch, 28, 28, 4, width, dtype=dtype, device="meta") for _ in range(4))
        weight, d_weight = (torch.empty(batch, 28, 28, 4, kernel**2, dtype=dtype, device="meta") for _ in range(2))
        bias = None if plain else torch.empty(4, 2 * kernel - 1, 2 * kernel - 1, device="meta")
        problem = ([kernel, kernel], bias, not plain, torch.empty(_lse_shape(x, not plain), device="meta"))
        backward = {"x": x, "weight": weight, "out": out, "d_out": d_out, "d_weight": d_weight}
        return [
            _launch(kernels.forward_kernel, problem, x=x, weight=weight, out=out),
            _launch(kernels.weight_gradient_kernel, problem, **backward),
            _launch(kernels.value_gradient_kernel, problem, weight=weight, d_out=d_out, d_x=d_x),
        ]

    return build


CASES = [
    Case("dynamic_conv", _case(13), every_run=(("bf16", 32), ("fp32", 64))),
    Case("dynamic_conv_plain", _case(13, plain=True), widths=(32,), every_run=(("bf16", 32),)),
    # So many programs that they divide to find their places.
    Case("dynamic_conv_many", _case(13, batch=2**24), widths=(32,), every_run=(("bf16", 32),)),
]
