"""Linear and magnitude-aware attention as Triton kernels, forward and backward.

Two passes each way: one sums keys times values into a state of D x Dv, split along the tokens so that few heads of many
tokens still fill a GPU; one applies it to the queries. Features, rotation and normaliser stay on the chip, and packed
projections are read where they lie. The backward is the same two passes with the roles exchanged: gradients of the
queries with the weights that the state's gradient needs, that sum, then the gradients of keys and values. No atomics.
All is computed in float32; how tensors of 16 bits are multiplied is said in :mod:`._products`. Definition and sources:
:mod:`..linear`.
"""

from __future__ import annotations

from typing import Any

import torch

from . import _linear_gradient_kernels as gradient_kernels
from . import _linear_kernels as kernels
from ._launch import Case, Launch, block_width, out_dtype, parts_of_tokens, product_options, with_strides


def fused_linear_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, eps: float) -> torch.Tensor:
    """The ``triton`` implementation of :func:`..linear.linear_attention`."""
    tokens = (x.flatten(1, -3) for x in (q, k, v))
    return _forward(*tokens, None, None, 1.0, eps, False)[0].view(v.shape)


def fused_magnitude_aware(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    rotation: tuple[torch.Tensor, torch.Tensor] | None,
    scale: float,
    eps: float,
) -> torch.Tensor:
    """The ``triton`` implementation of :func:`..linear.magnitude_aware_linear_attention`."""
    tokens = (x.flatten(1, -3) for x in (q, k, v))
    tables = (None, None) if rotation is None else (x.flatten(0, -2).float().contiguous() for x in rotation)
    return _forward(*tokens, *tables, scale, eps, True)[0].view(v.shape)


@torch.library.custom_op("attnzoo::linear_forward", mutates_args=())
def _forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    scale: float,
    eps: float,
    magnitude: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``(out, state)`` of q, k, v ``[B, N, heads, D]`` and tables ``[N, D / 2]``; state float32, see the kernels."""
    problem = (cos, sin, magnitude)
    state = _reduce(problem, k, v, None)
    out = v.new_empty(v.shape, dtype=out_dtype(v.dtype))
    _apply(problem, q, state, out, scale, eps).run(q)
    return out.to(v.dtype), state


@_forward.register_fake
def _(q, k, v, cos, sin, scale, eps, magnitude):
    return v.new_empty(v.shape), q.new_empty(_state_shape(q, v), dtype=torch.float32)


@torch.library.custom_op("attnzoo::linear_backward", mutates_args=())
def _backward(
    d_out: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    scale: float,
    eps: float,
    magnitude: bool,
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k and v."""
    problem = (cos, sin, magnitude)
    d_q, d_k, d_v = (x.new_empty(x.shape, dtype=out_dtype(x.dtype)) for x in (q, k, v))
    weights = _weights(q)
    _query_gradient(problem, q, d_out, state, d_q, weights, scale, eps).run(q)
    _key_gradient(problem, k, v, _reduce(problem, q, d_out, weights), d_k, d_v).run(q)
    return d_q.to(q.dtype), d_k.to(k.dtype), d_v.to(v.dtype)


@_backward.register_fake
def _(d_out, q, k, v, cos, sin, scale, eps, magnitude, state):
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx: Any, inputs: tuple, output: tuple) -> None:
    q, k, v, cos, sin, *ctx.constants = inputs
    ctx.save_for_backward(q, k, v, cos, sin, output[1])
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, d_out: torch.Tensor, _: torch.Tensor | None) -> tuple:
    q, k, v, cos, sin, state = ctx.saved_tensors
    return *_backward(d_out, q, k, v, cos, sin, *ctx.constants, state), None, None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)


def _state_shape(q: torch.Tensor, v: torch.Tensor) -> tuple[int, ...]:
    width, value_width = q.shape[-1], v.shape[-1]
    # Rows of 16 bytes each, so that they load as vectors.
    return q.shape[0], q.shape[2], width + 2, (max(width, value_width) + 3) // 4 * 4


def _weights(q: torch.Tensor) -> torch.Tensor:
    return q.new_empty((q.shape[0], q.shape[2], 3, q.shape[1]), dtype=torch.float32)


def _reduce(problem: tuple, x: torch.Tensor, y: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """The state of all tokens."""
    launch, partial = _reduction(problem, x, y, weights)
    launch.run(x)
    return partial.squeeze(2) if partial.shape[2] == 1 else partial.sum(2)


def _reduction(
    problem: tuple, x: torch.Tensor, y: torch.Tensor, weights: torch.Tensor | None
) -> tuple[Launch, torch.Tensor]:
    """The launch that stores the state ``[B, heads, parts, D + 2, W]`` of each part of the tokens."""
    half, columns, block, warps = _reduce_tiles(x, y, problem[2])
    blocks = -(-x.shape[-1] // (2 * half)) * -(-y.shape[-1] // columns)
    parts, part_tokens = parts_of_tokens(x, block, warps * blocks)
    shape = _state_shape(x, y)
    # The kernel writes all of it but the padding.
    new = x.new_empty if x.shape[-1] == y.shape[-1] == shape[3] else x.new_zeros
    partial = new((*shape[:2], parts, *shape[2:]), dtype=torch.float32)
    arguments = {"x": with_strides(x), "y": with_strides(y), "weights": weights, "state": partial}
    arguments |= {**_common(problem, x, y, parts), "part_tokens": part_tokens}
    arguments |= {"BLOCK": block, "BLOCK_HALF": half, "BLOCK_VALUE": columns}
    grid = (x.shape[0] * x.shape[2] * parts, blocks)
    return Launch(kernels.reduce_kernel, grid, arguments, warps, _stages(problem)), partial


def _stages(problem: tuple) -> int:
    """What MALA's tables take on their way through shared memory is more than the waiting that it saves."""
    return 1 if problem[2] else 2


def _apply(problem: tuple, q: torch.Tensor, state: torch.Tensor, out: torch.Tensor, scale: float, eps: float) -> Launch:
    arguments = {"q": with_strides(q), "state": state, "out": with_strides(out), "scale": scale, "eps": eps}
    return _by_parts(kernels.apply_kernel, problem, q, out, arguments)


def _query_gradient(
    problem: tuple,
    q: torch.Tensor,
    d_out: torch.Tensor,
    state: torch.Tensor,
    d_q: torch.Tensor,
    weights: torch.Tensor,
    scale: float,
    eps: float,
) -> Launch:
    arguments = {"q": with_strides(q), "d_out": with_strides(d_out), "state": state, "d_q": with_strides(d_q)}
    arguments |= {"weights": weights, "scale": scale, "eps": eps}
    return _by_parts(gradient_kernels.query_gradient_kernel, problem, q, d_out, arguments)


def _key_gradient(
    problem: tuple, k: torch.Tensor, v: torch.Tensor, state: torch.Tensor, d_k: torch.Tensor, d_v: torch.Tensor
) -> Launch:
    arguments = {"k": with_strides(k), "v": with_strides(v), "state": state}
    arguments |= {"d_k": with_strides(d_k), "d_v": with_strides(d_v)}
    return _by_parts(gradient_kernels.key_gradient_kernel, problem, k, v, arguments)


def _by_parts(jitted: Any, problem: tuple, x: torch.Tensor, y: torch.Tensor, arguments: dict[str, Any]) -> Launch:
    """Programs that each own a part of the tokens of a head."""
    block, chunk, warps = _part_tiles(x, problem[2], jitted)
    parts, part_tokens = parts_of_tokens(x, block, warps)
    arguments = {**arguments, "part_tokens": part_tokens, "BLOCK": block, "CHUNK": chunk}
    arguments |= _common(problem, x, y, parts)
    return Launch(jitted, (x.shape[0] * x.shape[2] * parts,), arguments, warps, _stages(problem))


def _common(problem: tuple, x: torch.Tensor, y: torch.Tensor, parts: int) -> dict[str, Any]:
    cos, sin, magnitude = problem
    width, value_width = x.shape[-1], y.shape[-1]
    half = -(-width // 2)
    return {
        "cos": cos,
        "sin": sin,
        "heads": x.shape[2],
        "parts": parts,
        "tokens": x.shape[1],
        "MAGNITUDE": magnitude,
        "WIDTH": width,
        "HALF": half,
        "VALUE_WIDTH": value_width,
        "STRIDE": _state_shape(x, y)[-1],
        "BLOCK_HALF": block_width(half),
        **product_options(x.dtype),
    }


# By the ahead-of-time gate, without spills.
def _reduce_tiles(x: torch.Tensor, y: torch.Tensor, magnitude: bool) -> tuple[int, int, int, int]:
    """(channels of each half, values, tokens of a block, warps) where a state is summed.

    Few channels, so that no warp computes the features of another's.
    """
    values = block_width(y.shape[-1])
    if x.dtype == torch.float32:
        return 16, min(values, 32), 16, 4 if values > 16 or magnitude else 1
    if x.dtype == torch.bfloat16:
        return 16, min(values, 64), 16, 1
    if magnitude or values <= 16:
        return 16, 16, 32, 1
    return 16, 32, 16, 1


def _part_tiles(x: torch.Tensor, magnitude: bool, jitted: Any) -> tuple[int, int, int]:
    """(tokens of a block, values of a chunk, warps) where a state is applied."""
    width = x.shape[-1]
    if x.dtype == torch.float32:
        # Three products of TF32 keep their operands in registers.
        return (64, 32, 4) if width <= 32 else (16, 32, 4) if magnitude else (64, 16, 8)
    gradient = jitted is gradient_kernels.query_gradient_kernel
    if width > 64:
        return 16, 16 if magnitude and gradient and x.dtype == torch.bfloat16 else 32, 4
    if width > 32 and x.dtype == torch.bfloat16:
        return 64, 64, 4
    if width > 32:
        return (16, 16, 4) if magnitude else (32, 32 if gradient else 64, 4)
    return 16, 32, 1


def _case(magnitude: bool) -> Any:
    def build(dtype: torch.dtype, width: int) -> list[Launch]:
        q, k, v = torch.empty(2, 3136, 3, 2, width, dtype=dtype, device="meta").unbind(2)
        out, d_out, d_q, d_k, d_v = (torch.empty(2, 3136, 2, width, dtype=dtype, device="meta") for _ in range(5))
        table = torch.empty(3136, width // 2, device="meta") if magnitude else None
        problem, weights = (table, table, magnitude), _weights(q)
        forward, partial = _reduction(problem, k, v, None)
        state = partial[:, :, 0].contiguous()
        return [
            forward,
            _apply(problem, q, state, out, 0.125, 1e-6),
            _query_gradient(problem, q, d_out, state, d_q, weights, 0.125, 1e-6),
            _reduction(problem, q, d_out, weights)[0],
            _key_gradient(problem, k, v, state, d_k, d_v),
        ]

    return build


CASES = [
    Case("linear", _case(False), every_run=(("bf16", 32), ("fp32", 64))),
    Case("magnitude_aware", _case(True), every_run=(("bf16", 64), ("fp32", 32))),
]
