"""Flow-attention between any queries and keys as Triton kernels, forward and backward, at linear cost.

Forward, with a and b the sigmoids of queries and keys, the sums over all tokens that make the flows: ``outgoing_sum``
of a, ``incoming_sum`` of b, ``source_sum`` of a / incoming, ``sink_sum`` of b / outgoing; then the state, the sum of
b^T p v with p the competition; then the result, a @ state * sigmoid(sink) / incoming. Backward, what one pass over the
queries gives of the gradients of these sums, what one over the keys does, and the rest of ``incoming_sum``'s; then the
gradients of the tokens. Every sum is split along the tokens, so that few heads of many tokens still fill a GPU; no
atomics. All is computed in float32; how tensors of 16 bits are multiplied is said in :mod:`._products`. Definition and
source: :mod:`..flow`.
"""

from __future__ import annotations

from typing import Any

import torch

from . import _flow_kernels as kernels
from ._launch import Case, Launch, block_width, on_amd, out_dtype, parts_of_tokens, product_options, with_strides


def fused_flow(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, eps: float, outer_eps: float) -> torch.Tensor:
    """The ``triton`` implementation of :func:`..flow.flow_attention` with ``causal=False``."""
    return _forward(q, k, v, eps, outer_eps)[0]


@torch.library.custom_op("attnzoo::flow_forward", mutates_args=())
def _forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, eps: float, outer_eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """``(out, sums, state, share)``: sums of outgoing, incoming, source and sink ``[4, B, heads, D]``, the state
    ``[B, heads, D, Dv]``, and what exp(source) is multiplied with to give p ``[B, heads]``; all but out in float32."""
    constants = _constants(q, k, eps, outer_eps)
    outgoing, incoming = _total(_sum(q, constants)), _total(_sum(k, constants))
    source, sink = _total(_sum(q, constants, incoming)), _total(_sum(k, constants, outgoing))
    sums = torch.stack((outgoing, incoming, source, sink))
    launch, states, norms = _reduce(k, v, constants, source_sum=source)
    launch.run(q)
    share = k.shape[1] / norms.sum(2)
    state = states.sum(2) * share[..., None, None]
    out = q.new_empty((*q.shape[:-1], v.shape[-1]), dtype=out_dtype(q.dtype))
    _out(q, sums, state, out, constants).run(q)
    return out.to(q.dtype), sums, state, share


@_forward.register_fake
def _(q, k, v, eps, outer_eps):
    (batch, _, heads, width), value_width = q.shape, v.shape[-1]
    shapes = (4, batch, heads, width), (batch, heads, width, value_width), (batch, heads)
    saved = (q.new_empty(shape, dtype=torch.float32) for shape in shapes)
    return q.new_empty((*q.shape[:-1], value_width)), *saved


@torch.library.custom_op("attnzoo::flow_backward", mutates_args=())
def _backward(
    d_out: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    sums: torch.Tensor,
    state: torch.Tensor,
    share: torch.Tensor,
    eps: float,
    outer_eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k and v."""
    constants = _constants(q, k, eps, outer_eps)
    d_q, d_k, d_v = (x.new_empty(x.shape, dtype=out_dtype(x.dtype)) for x in (q, k, v))
    gates = q.new_empty((q.shape[0], q.shape[2], q.shape[1]), dtype=torch.float32)
    d_incoming, d_sink = _total(_query_sums(q, d_out, sums, state, gates, constants)).unbind(2)
    launch, states, _ = _reduce(q, d_out, constants, weights=gates)
    launch.run(q)
    d_state = states.sum(2)
    keys = {"d_sink_sum": d_sink.contiguous(), "d_state": d_state}
    keys |= {"shares": share, "overlaps": (state * d_state).sum((2, 3)) / k.shape[1]}
    d_source, d_outgoing = (x.contiguous() for x in _total(_key_sums(k, v, sums, keys, constants)).unbind(2))
    keys["d_incoming_sum"] = d_incoming + _total(_sum(q, constants, sums[1], d_source))
    queries = {"state": state, "d_source_sum": d_source, "d_outgoing_sum": d_outgoing}
    _query_gradient(q, d_out, sums, queries, d_q, constants).run(q)
    _key_gradient(k, v, sums, keys, d_k, d_v, constants).run(q)
    return d_q.to(q.dtype), d_k.to(k.dtype), d_v.to(v.dtype)


@_backward.register_fake
def _(d_out, q, k, v, sums, state, share, eps, outer_eps):
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx: Any, inputs: tuple, output: tuple) -> None:
    q, k, v, *ctx.constants = inputs
    ctx.save_for_backward(q, k, v, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _differentiate(ctx: Any, d_out: torch.Tensor, *_: torch.Tensor | None) -> tuple:
    return *_backward(d_out, *ctx.saved_tensors, *ctx.constants), None, None


_forward.register_autograd(_differentiate, setup_context=_save)


def _constants(q: torch.Tensor, k: torch.Tensor, eps: float, outer_eps: float) -> dict[str, float]:
    return {"ratio": q.shape[1] / k.shape[1], "eps": eps, "constant": q.shape[-1] * eps**2 + outer_eps}


def _total(launch_and_parts: tuple[Launch, torch.Tensor]) -> torch.Tensor:
    """Runs a launch and adds up the parts ``[B, heads, parts, ...]`` that it stores."""
    launch, parts = launch_and_parts
    launch.run(parts)
    return parts.sum(2)


def _sum(
    x: torch.Tensor,
    constants: dict[str, float],
    total: torch.Tensor | None = None,
    d_sum: torch.Tensor | None = None,
) -> tuple[Launch, torch.Tensor]:
    block, warps = (32, 1) if x.shape[-1] <= 32 else (32, 2)
    parts, part_tokens = parts_of_tokens(x, block, warps)
    sums = x.new_empty((x.shape[0], x.shape[2], parts, x.shape[-1]), dtype=torch.float32)
    arguments = {"x": with_strides(x), "total": total, "d_sum": d_sum, "sums": sums, "part_tokens": part_tokens}
    arguments |= {"eps": constants["eps"], "constant": constants["constant"], **_sizes(x, parts, block)}
    return Launch(kernels.sum_kernel, (sums.shape[:3].numel(),), arguments, warps), sums


def _reduce(
    x: torch.Tensor,
    y: torch.Tensor,
    constants: dict[str, float],
    weights: torch.Tensor | None = None,
    source_sum: torch.Tensor | None = None,
) -> tuple[Launch, torch.Tensor, torch.Tensor]:
    """The launch, the states ``[B, heads, parts, D, Dv]`` that it stores, and the sums of weights."""
    block, columns, warps = _reduce_tiles(x, y)
    blocks = -(-y.shape[-1] // columns)
    parts, part_tokens = parts_of_tokens(x, block, warps * blocks)
    shape = (x.shape[0], x.shape[2], parts)
    states = x.new_empty((*shape, x.shape[-1], y.shape[-1]), dtype=torch.float32)
    norms = x.new_empty(shape, dtype=torch.float32)
    arguments = {"x": with_strides(x), "y": with_strides(y), "weights": weights, "source_sum": source_sum}
    arguments |= {"states": states, "norms": norms, "part_tokens": part_tokens, "BLOCK_VALUE": columns}
    arguments |= {"eps": constants["eps"], "constant": constants["constant"], **_sizes(x, parts, block, y)}
    return Launch(kernels.reduce_kernel, (norms.numel(), blocks), arguments, warps), states, norms


def _out(
    q: torch.Tensor,
    sums: torch.Tensor,
    state: torch.Tensor,
    out: torch.Tensor,
    constants: dict[str, float],
) -> Launch:
    arguments = {"q": with_strides(q), "incoming_sum": sums[1], "sink_sum": sums[3], "state": state}
    return _by_parts(kernels.out_kernel, q, out, {**arguments, "out": with_strides(out), **constants})


def _query_sums(
    q: torch.Tensor,
    d_out: torch.Tensor,
    sums: torch.Tensor,
    state: torch.Tensor,
    gates: torch.Tensor,
    constants: dict[str, float],
) -> tuple[Launch, torch.Tensor]:
    """The launch and the parts ``[B, heads, parts, 2, D]`` of the gradients of the sums of incoming and of sink."""
    arguments = {"q": with_strides(q), "d_out": with_strides(d_out), "incoming_sum": sums[1], "sink_sum": sums[3]}
    return _with_sums(kernels.query_sums_kernel, q, d_out, {**arguments, "state": state, "gates": gates, **constants})


def _key_sums(
    k: torch.Tensor,
    v: torch.Tensor,
    sums: torch.Tensor,
    gradients: dict[str, torch.Tensor],
    constants: dict[str, float],
) -> tuple[Launch, torch.Tensor]:
    """The launch and the parts ``[B, heads, parts, 2, D]`` of the gradients of the sums of source and of outgoing."""
    arguments = {"k": with_strides(k), "v": with_strides(v), "outgoing_sum": sums[0], "source_sum": sums[2]}
    arguments |= {**gradients, "eps": constants["eps"], "constant": constants["constant"]}
    return _with_sums(kernels.key_sums_kernel, k, v, arguments)


def _query_gradient(
    q: torch.Tensor,
    d_out: torch.Tensor,
    sums: torch.Tensor,
    gradients: dict[str, torch.Tensor],
    d_q: torch.Tensor,
    constants: dict[str, float],
) -> Launch:
    arguments = {"q": with_strides(q), "d_out": with_strides(d_out), "d_q": with_strides(d_q)}
    arguments |= {"incoming_sum": sums[1], "sink_sum": sums[3], **gradients, **constants}
    return _by_parts(kernels.query_gradient_kernel, q, d_out, arguments)


def _key_gradient(
    k: torch.Tensor,
    v: torch.Tensor,
    sums: torch.Tensor,
    gradients: dict[str, torch.Tensor],
    d_k: torch.Tensor,
    d_v: torch.Tensor,
    constants: dict[str, float],
) -> Launch:
    arguments = {"k": with_strides(k), "v": with_strides(v), "d_k": with_strides(d_k), "d_v": with_strides(d_v)}
    arguments |= {"outgoing_sum": sums[0], "source_sum": sums[2], **gradients}
    arguments |= {"eps": constants["eps"], "constant": constants["constant"]}
    return _by_parts(kernels.key_gradient_kernel, k, v, arguments)


def _by_parts(jitted: Any, x: torch.Tensor, y: torch.Tensor, arguments: dict[str, Any]) -> Launch:
    """Programs that each own a part of the tokens of a head."""
    block, values, warps = _tiles(x, y, jitted)
    parts, part_tokens = parts_of_tokens(x, block, warps)
    arguments = {**arguments, "part_tokens": part_tokens, "VALUES": values, **_sizes(x, parts, block, y)}
    return Launch(jitted, (x.shape[0] * x.shape[2] * parts,), arguments, warps)


def _with_sums(jitted: Any, x: torch.Tensor, y: torch.Tensor, arguments: dict[str, Any]) -> tuple[Launch, torch.Tensor]:
    """Such programs that store two sums of their part each, and these ``[B, heads, parts, 2, D]``."""
    block, _, warps = _tiles(x, y, jitted)
    shape = (x.shape[0], x.shape[2], parts_of_tokens(x, block, warps)[0], 2, x.shape[-1])
    sums = x.new_empty(shape, dtype=torch.float32)
    return _by_parts(jitted, x, y, {**arguments, "sums": sums}), sums


# By the ahead-of-time gate, without spills.
def _tiles(x: torch.Tensor, y: torch.Tensor, jitted: Any) -> tuple[int, int, int]:
    """(tokens of a block, values of a chunk, warps) of products with a state."""
    width, value_width = x.shape[-1], y.shape[-1]
    if x.dtype == torch.float32:
        # Three products of TF32 keep their operands in registers: few channels of values at a time.
        return 64, 32 if width <= 32 else 16, 4 if max(width, value_width) <= 32 else 8
    if width > 64 or (width > 32 and on_amd()):
        few = jitted is kernels.query_sums_kernel and x.dtype == torch.bfloat16
        return 16, min(block_width(value_width), 16 if few else 32), 4
    if width > 32:
        return 32, min(block_width(value_width), 64), 4
    return 16, min(block_width(value_width), 32), 1


def _reduce_tiles(x: torch.Tensor, y: torch.Tensor) -> tuple[int, int, int]:
    """(tokens of a block, values of a program, warps) where a state is summed."""
    width, columns = x.shape[-1], block_width(y.shape[-1])
    if x.dtype == torch.float32:
        return 16, min(columns, 32 if width <= 32 else 16), 4 if width <= 32 else 8
    return 16, min(columns, 32), 1 if width <= 32 else 2 if width <= 64 and x.dtype == torch.bfloat16 else 4


def _sizes(x: torch.Tensor, parts: int, block: int, y: torch.Tensor | None = None) -> dict[str, Any]:
    """What every kernel takes; with values ``y``, what those with products do."""
    sizes = {"heads": x.shape[2], "parts": parts, "tokens": x.shape[1], "WIDTH": x.shape[-1]}
    sizes |= {"D": block_width(x.shape[-1]), "BLOCK": block}
    return sizes if y is None else {**sizes, "VALUE_WIDTH": y.shape[-1], **product_options(x.dtype)}


def _case(dtype: torch.dtype, width: int) -> list[Launch]:
    q, k, v = torch.empty(2, 3136, 3, 2, width, dtype=dtype, device="meta").unbind(2)
    out, d_out, d_q, d_k, d_v = (torch.empty(2, 3136, 2, width, dtype=dtype, device="meta") for _ in range(5))
    sums, state = (torch.empty(shape, device="meta") for shape in ((4, 2, 2, width), (2, 2, width, width)))
    share, gates = (torch.empty(shape, device="meta") for shape in ((2, 2), (2, 2, 3136)))
    total, constants = sums[0], _constants(q, k, 1e-6, 0.0)
    keys = {"d_sink_sum": total, "d_state": state, "shares": share, "overlaps": share}
    queries = {"state": state, "d_source_sum": total, "d_outgoing_sum": total}
    return [
        _sum(q, constants)[0],
        _sum(q, constants, total)[0],
        _reduce(k, v, constants, source_sum=total)[0],
        _out(q, sums, state, out, constants),
        _query_sums(q, d_out, sums, state, gates, constants)[0],
        _reduce(q, d_out, constants, weights=gates)[0],
        _key_sums(k, v, sums, keys, constants)[0],
        _sum(q, constants, total, total)[0],
        _query_gradient(q, d_out, sums, queries, d_q, constants),
        _key_gradient(k, v, sums, {**keys, "d_incoming_sum": total}, d_k, d_v, constants),
    ]


CASES = [Case("flow", _case, every_run=(("bf16", 64), ("fp32", 32)))]
