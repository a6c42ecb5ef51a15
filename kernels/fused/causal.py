"""Causal flow-attention as Triton kernels, forward and backward, at a cost and memory linear in the length.

With p the competition and g = sigmoid(sink) / incoming, out[i] = g[i] * sum over j <= i of (a[i] . b[j]) p[j] v[j], and
incoming, outgoing, sink and source are flows of the same kind with one value per token. A scan along each head, some
tokens at a time, gives six rows of such values (incoming, outgoing, source, running sum of exp(source), p, g): flows
among these tokens are sums over the products of their pairs, [query, key] and [key, query], and what flows from those
before comes from running sums of a, b, a count / incoming and b count / outgoing. Then a walk along each head with the
running Dv x D state, the sum of v^T p b, gives the results chunk by chunk. Where a gradient is wanted, the sums and the
state before each chunk are stored.

The backward goes the other way: a walk with a state of its own, the sum of d_out^T g a, gives d_v and the gradient of
p; the stored states that of g; a scan from the last token to the first those of source, sink, incoming and outgoing;
and these, with the sums and states around a chunk, the gradients of a and b. How tensors of 16 bits are multiplied is
said in :mod:`._products`. Definition and source: :mod:`..flow`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from . import _causal_gradient_kernels as gradients
from . import _causal_kernels as kernels
from ._launch import Case, Launch, block_width, out_dtype, product_options, with_strides

# Tokens of a step of the scans.
_STEP = 16


def fused_causal_flow(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, eps: float, outer_eps: float) -> torch.Tensor:
    """The ``triton`` implementation of :func:`..flow.flow_attention` with ``causal=True``."""
    saves = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    return _forward(q, k, v, eps, outer_eps, saves)[0]


@torch.library.custom_op("attnzoo::causal_flow_forward", mutates_args=())
def _forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, eps: float, outer_eps: float, saves: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """``(out, rows, sums, states)`` of q, k, v ``[B, N, heads, D]``; all but out in float32, sums and states empty
    unless ``saves``."""
    saved = _saved(q, v, saves)
    out = v.new_empty(v.shape, dtype=out_dtype(v.dtype))
    for launch in _forward_launches(q, k, v, out, saved if saves else (saved[0], None, None), eps, outer_eps):
        launch.run(q)
    return out.to(v.dtype), *saved


@_forward.register_fake
def _(q, k, v, eps, outer_eps, saves):
    return v.new_empty(v.shape), *_saved(q, v, saves)


@torch.library.custom_op("attnzoo::causal_flow_backward", mutates_args=())
def _backward(
    d_out: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    rows: torch.Tensor,
    sums: torch.Tensor,
    states: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k and v."""
    d_q, d_k, d_v = (x.new_empty(x.shape, dtype=out_dtype(x.dtype)) for x in (q, k, v))
    maps = {"q": q, "k": k, "v": v, "d_out": d_out, "d_q": d_q, "d_k": d_k, "d_v": d_v}
    for launch in _backward_launches(maps, {"rows": rows, "sums": sums, "states": states}, eps):
        launch.run(q)
    return d_q.to(q.dtype), d_k.to(k.dtype), d_v.to(v.dtype)


@_backward.register_fake
def _(d_out, q, k, v, rows, sums, states, eps):
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx: Any, inputs: tuple, output: tuple) -> None:
    q, k, v, ctx.eps, ctx.outer_eps, ctx.saves = inputs
    ctx.save_for_backward(q, k, v, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _differentiate(ctx: Any, d_out: torch.Tensor, *_: torch.Tensor | None) -> tuple:
    q, k, v, *saved = ctx.saved_tensors
    if not ctx.saves:
        _, *saved = _forward(q, k, v, ctx.eps, ctx.outer_eps, True)
    return *_backward(d_out, q, k, v, *saved, ctx.eps), None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)


def _chunk(q: torch.Tensor, v: torch.Tensor) -> int:
    """Tokens of a chunk: by the ahead-of-time gate, more of wide heads in float32 would spill."""
    return 16 if q.dtype == torch.float32 and _is_wide(q, v) else 32


def _is_wide(q: torch.Tensor, v: torch.Tensor) -> bool:
    return max(q.shape[-1], v.shape[-1]) > 32


def _saved(q: torch.Tensor, v: torch.Tensor, saves: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows ``[B, heads, 6, N]``; before each chunk, sums ``[B, heads, chunks, 4, D]`` and states ``[B, heads, chunks,
    Dv, D]``."""
    batch, tokens, heads, width = q.shape
    chunk = _chunk(q, v)
    chunks = (tokens + chunk - 1) // chunk
    shapes = (6, tokens), (chunks, 4, width), (chunks, v.shape[-1], width)
    return tuple(
        q.new_empty((batch, heads, *shape) if saves or not place else (0,), dtype=torch.float32)
        for place, shape in enumerate(shapes)
    )


def _forward_launches(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    saved: tuple[torch.Tensor | None, ...],
    eps: float,
    outer_eps: float,
) -> Iterator[Launch]:
    """In the order in which they have to run."""
    rows, sums, states = saved
    others = {"rows": rows, "sums": sums, "eps": eps, "outer_eps": outer_eps}
    yield _launch(kernels.scan_kernel, "scan", v, {"q": q, "k": k}, others)
    maps = {"q": q, "k": k, "v": v, "out": out}
    yield _launch(kernels.out_kernel, "walk", v, maps, {"rows": rows, "states": states})


def _backward_launches(maps: dict[str, torch.Tensor], saved: dict[str, torch.Tensor], eps: float) -> Iterator[Launch]:
    """In the order in which they have to run, each before the next is asked for."""
    v = maps["v"]

    def launch(jitted: Any, way: str, names: str, **others: Any) -> Launch:
        return _launch(jitted, way, v, {name: maps[name] for name in names.split()}, {"rows": saved["rows"], **others})

    d_rows, d_sums, d_states = (torch.empty_like(x) for x in saved.values())
    parts = -(-v.shape[-1] // _values(maps["q"], v))
    d_shares = d_rows.new_empty((*d_rows.shape[:2], parts, d_rows.shape[-1]))
    yield launch(gradients.value_kernel, "walk", "q k v d_out d_v", d_shares=d_shares, d_states=d_states)
    torch.sum(d_shares, 2, out=d_rows[:, :, 1])
    yield launch(gradients.gate_kernel, "chunk", "q k v d_out", states=saved["states"], d_rows=d_rows)
    others = {"d_rows": d_rows, "d_sums": d_sums, "eps": eps}
    yield launch(gradients.scan_gradient_kernel, "scan", "q k", **others)
    others["sums"] = saved["sums"]
    yield launch(gradients.query_gradient_kernel, "chunk", "q k v d_out d_q", states=saved["states"], **others)
    yield launch(gradients.key_gradient_kernel, "chunk", "q k v d_out d_k", d_states=d_states, **others)


def _values(q: torch.Tensor, v: torch.Tensor) -> int:
    """Channels of values for a program that walks along a head with its state."""
    narrow, wide = (16, 32) if q.dtype == torch.float32 else (32, 64)
    return min(wide if _is_wide(q, v) else narrow, block_width(v.shape[-1]))


def _launch(jitted: Any, way: str, v: torch.Tensor, maps: dict[str, torch.Tensor], others: dict[str, Any]) -> Launch:
    """A program for each head, by steps ("scan") or by chunks for some channels of values ("walk"), or for each chunk
    ("chunk"); warps and stages are those that the ahead-of-time gate compiles without spills."""
    q = maps["q"]
    batch, tokens, heads, width = q.shape
    chunk, wide, exact = _chunk(q, v), _is_wide(q, v), q.dtype == torch.float32
    chunks, programs, parts = -(-tokens // chunk), batch * heads, 1
    options = product_options(q.dtype)
    if way == "scan":
        del options["GIVEN"]
        options["STEP"] = _STEP
        warps = 1 if not wide else 8 if exact else 2
    elif way == "walk":
        options |= {"VALUE_WIDTH": v.shape[-1], "VALUES": _values(q, v)}
        parts, warps = -(-v.shape[-1] // options["VALUES"]), 4 if wide else 2
    else:
        options |= {"VALUE_WIDTH": v.shape[-1], "DV": block_width(v.shape[-1])}
        programs, warps = programs * chunks, 4 if wide and jitted is gradients.gate_kernel else 2
    arguments = {
        **{name: with_strides(x) for name, x in maps.items()},
        **others,
        "heads": heads,
        "tokens": tokens,
        "chunks": chunks,
        "WIDTH": width,
        "D": block_width(width),
        "C": chunk,
        **options,
    }
    unpipelined = jitted is kernels.scan_kernel or (jitted is gradients.value_kernel and not wide)
    return Launch(jitted, (programs, parts), arguments, warps, 1 if unpipelined else 2)


def _case(dtype: torch.dtype, width: int) -> list[Launch]:
    q, k, v = torch.empty(2, 512, 3, 2, width, dtype=dtype, device="meta").unbind(2)
    out, *gradient = (torch.empty(2, 512, 2, width, dtype=dtype, device="meta") for _ in range(5))
    rows, sums, states = _saved(q, v, True)
    maps = {"q": q, "k": k, "v": v, **dict(zip(("d_out", "d_q", "d_k", "d_v"), gradient, strict=True))}
    return [
        *_forward_launches(q, k, v, out, (rows, None, None), 1e-6, 0.0),
        *_forward_launches(q, k, v, out, (rows, sums, states), 1e-6, 0.0),
        *_backward_launches(maps, {"rows": rows, "sums": sums, "states": states}, 1e-6),
    ]


CASES = [Case("causal_flow", _case, (16, 32, 64), (("bf16", 64), ("fp32", 32)))]
