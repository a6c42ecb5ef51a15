"""Causal flow-attention as Triton kernels, forward and backward, at a cost and memory linear in the length.

With p the competition and g = sigmoid(sink) / incoming, out[i] = g[i] * sum over j <= i of (a[i] . b[j]) p[j] v[j], and
incoming, outgoing, sink and source are flows of the same kind with one value per token. So a scan along each head,
chunk by chunk, gives the six rows (incoming, outgoing, source, running sum of exp(source), p, g) and the four vectors
that have run up to each chunk (of a, of b, of what source sums, of what sink sums); the D x Dv states of all chunks are
then made at once and summed up, and so are the results, from pairs inside a chunk and the state before it.

The backward goes the other way: states of d_out, pairs, a scan from the last chunk to the first over the gradients of
the rows (d_out . values, p, source, sink, incoming, outgoing) with four vectors of its own, then those of a and b as
factors of their products. Definition and source: :mod:`..flow`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from . import _causal_gradient_kernels as gradients
from . import _causal_kernels as kernels
from ._launch import Case, Launch, block_width, dot_options, on_amd, out_dtype, with_strides

# Tokens of a chunk and channels of values at a time: by the ahead-of-time gate, more would spill.
_CHUNK, _VALUES = 32, 16
# Rows p and g of the forward scan.
_SHARE, _GATE = 4, 5


def fused_causal_flow(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, eps: float, outer_eps: float) -> torch.Tensor:
    """The ``triton`` implementation of :func:`..flow.flow_attention` with ``causal=True``."""
    return _forward(q, k, v, eps, outer_eps)[0]


@torch.library.custom_op("attnzoo::causal_flow_forward", mutates_args=())
def _forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, eps: float, outer_eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """``(out, rows, vectors, states)`` of q, k, v ``[B, N, heads, D]``; all but out in float32."""
    rows, vectors, states = _saved(q, v)
    out = v.new_empty(v.shape, dtype=out_dtype(v.dtype))
    _scan(q, k, rows, vectors, eps, outer_eps).run(q)
    _states(k, v, rows, _SHARE, states).run(q)
    states = _before(states)
    _out(q, k, v, rows, states, out).run(q)
    return out.to(v.dtype), rows, vectors, states


@_forward.register_fake
def _(q, k, v, eps, outer_eps):
    return v.new_empty(v.shape), *_saved(q, v)


@torch.library.custom_op("attnzoo::causal_flow_backward", mutates_args=())
def _backward(
    d_out: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    rows: torch.Tensor,
    vectors: torch.Tensor,
    states: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k and v."""
    d_q, d_k, d_v = (x.new_empty(x.shape, dtype=out_dtype(x.dtype)) for x in (q, k, v))
    d_rows, d_vectors, d_states = _saved(q, v)
    _states(q, d_out, rows, _GATE, d_states).run(q)
    d_states = _before(d_states.flip(2)).flip(2)
    _pairs(q, k, v, d_out, d_v, rows, states, d_states, d_rows).run(q)
    _scan_gradient(q, k, rows, d_rows, d_vectors, eps).run(q)
    sums = {"rows": rows, "vectors": vectors, "states": states}
    sums |= {"d_rows": d_rows, "d_vectors": d_vectors, "d_states": d_states}
    _gradients(q, k, v, d_out, d_q, d_k, sums, eps).run(q)
    return d_q.to(q.dtype), d_k.to(k.dtype), d_v.to(v.dtype)


@_backward.register_fake
def _(d_out, q, k, v, rows, vectors, states, eps):
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx: Any, inputs: tuple, output: tuple) -> None:
    q, k, v, ctx.eps, _ = inputs
    ctx.save_for_backward(q, k, v, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _differentiate(ctx: Any, d_out: torch.Tensor, *_: torch.Tensor | None) -> tuple:
    return *_backward(d_out, *ctx.saved_tensors, ctx.eps), None, None


_forward.register_autograd(_differentiate, setup_context=_save)


def _saved(q: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows ``[B, heads, 6, N]``, vectors ``[B, heads, chunks, 4, D]`` and states ``[B, heads, chunks, D, Dv]``."""
    batch, tokens, heads, width = q.shape
    chunks = (tokens + _CHUNK - 1) // _CHUNK
    shapes = (6, tokens), (chunks, 4, width), (chunks, width, v.shape[-1])
    return tuple(q.new_empty((batch, heads, *shape), dtype=torch.float32) for shape in shapes)


def _before(states: torch.Tensor) -> torch.Tensor:
    """The sum of the states before each chunk; without its own to take away again, whose rounding would stay."""
    return F.pad(states[:, :, :-1].cumsum(2), (0, 0, 0, 0, 1, 0))


def _scan(
    q: torch.Tensor, k: torch.Tensor, rows: torch.Tensor, vectors: torch.Tensor, eps: float, outer_eps: float
) -> Launch:
    arguments = {"q": with_strides(q), "k": with_strides(k), "rows": rows, "vectors": vectors}
    constant = q.shape[-1] * eps**2 + outer_eps
    return _launch(kernels.scan_kernel, q, vectors, {**arguments, "eps": eps, "constant": constant})


def _states(x: torch.Tensor, y: torch.Tensor, rows: torch.Tensor, row: int, states: torch.Tensor) -> Launch:
    arguments = {"x": with_strides(x), "y": with_strides(y), "rows": rows, "ROW": row, "states": states}
    return _launch(kernels.state_kernel, x, states, arguments, y)


def _out(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rows: torch.Tensor, states: torch.Tensor, out: torch.Tensor
) -> Launch:
    maps = {"q": q, "k": k, "v": v, "out": out}
    arguments = {**{name: with_strides(x) for name, x in maps.items()}, "rows": rows, "states": states}
    return _launch(kernels.out_kernel, q, states, arguments, v)


def _pairs(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    d_out: torch.Tensor,
    d_v: torch.Tensor,
    rows: torch.Tensor,
    states: torch.Tensor,
    d_states: torch.Tensor,
    d_rows: torch.Tensor,
) -> Launch:
    maps = {"q": q, "k": k, "v": v, "d_out": d_out, "d_v": d_v}
    arguments = {name: with_strides(x) for name, x in maps.items()}
    arguments |= {"rows": rows, "states": states, "d_states": d_states, "d_rows": d_rows}
    return _launch(gradients.pair_kernel, q, states, arguments, v)


def _scan_gradient(
    q: torch.Tensor, k: torch.Tensor, rows: torch.Tensor, d_rows: torch.Tensor, d_vectors: torch.Tensor, eps: float
) -> Launch:
    arguments = {"q": with_strides(q), "k": with_strides(k), "rows": rows, "d_rows": d_rows, "d_vectors": d_vectors}
    return _launch(gradients.scan_gradient_kernel, q, d_vectors, {**arguments, "eps": eps})


def _gradients(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    d_out: torch.Tensor,
    d_q: torch.Tensor,
    d_k: torch.Tensor,
    sums: dict[str, torch.Tensor],
    eps: float,
) -> Launch:
    maps = {"q": q, "k": k, "v": v, "d_out": d_out, "d_q": d_q, "d_k": d_k}
    arguments = {**{name: with_strides(x) for name, x in maps.items()}, **sums, "eps": eps}
    return _launch(gradients.gradient_kernel, q, sums["states"], arguments, v)


def _launch(
    jitted: Any, x: torch.Tensor, chunked: torch.Tensor, arguments: dict[str, Any], y: torch.Tensor | None = None
) -> Launch:
    """A program for each chunk of each head, or without values y, a scan: for each head."""
    batch, tokens, heads, width = x.shape
    chunks = chunked.shape[2]
    precision = dot_options(torch.float32)["PRECISION"]
    values = {} if y is None else {"VALUE_WIDTH": y.shape[-1], "VALUES": _VALUES, "PRECISION": precision}
    arguments = {
        **arguments,
        **values,
        "heads": heads,
        "tokens": tokens,
        "chunks": chunks,
        "WIDTH": width,
        "D": block_width(width),
        "C": _CHUNK,
    }
    # By the ahead-of-time gate, without spills.
    warps = 4 if on_amd() or (jitted is gradients.pair_kernel and width <= 16) else 8
    stages = 1 if jitted is kernels.state_kernel else 2
    return Launch(jitted, (batch * heads * (1 if y is None else chunks),), arguments, warps, stages)


def _case(dtype: torch.dtype, width: int) -> list[Launch]:
    q, k, v = torch.empty(2, 512, 3, 2, width, dtype=dtype, device="meta").unbind(2)
    out, d_out, d_q, d_k, d_v = (torch.empty(2, 512, 2, width, dtype=dtype, device="meta") for _ in range(5))
    rows, vectors, states = _saved(q, v)
    sums = {"rows": rows, "vectors": vectors, "states": states}
    return [
        _scan(q, k, rows, vectors, 1e-6, 0.0),
        _states(k, v, rows, _SHARE, states),
        _out(q, k, v, rows, states, out),
        _pairs(q, k, v, d_out, d_v, rows, states, states, rows),
        _scan_gradient(q, k, rows, rows, vectors, 1e-6),
        _gradients(q, k, v, d_out, d_q, d_k, {**sums, **{f"d_{name}": x for name, x in sums.items()}}, 1e-6),
    ]


CASES = [Case("causal_flow", _case, (16, 32, 64), (("bf16", 64), ("fp32", 32)))]
