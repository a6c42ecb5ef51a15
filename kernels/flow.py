"""Flow-attention: linear attention in which sources and sinks compete under flow conservation.

Wu et al., "Flowformer: Linearizing Transformers with Conservation Flows", arXiv:2202.06258, section 3.2; the small
constants and the causal form are the published code's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ._causal_flow import causal_flow_in_place
from ._checks import check_switch, checked_number, may_overwrite
from ._cross import check_cross_qkv
from ._flow_in_place import flow_in_place, flows
from ._linear import full_precision, in_full_precision
from ._opaque import opaque
from .dispatch import Implementation, Op
from .fused._launch import why_not_fused

# Channels of a head in the fused causal form.
_FUSED_CAUSAL_WIDTH = 64
# Tokens of a chunk of the causal form: within a chunk all pairs, between chunks one D x Dv state.
_CHUNK = 64


def flow_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool = False,
    eps: float = 1e-6,
    outer_eps: float = 0.0,
) -> torch.Tensor:
    """Attention by flows from the M sources (keys) to the N sinks (queries), at a cost linear in both.

    With a = sigmoid(q), b = sigmoid(k), and x * y = (x + eps) . (y + eps) + outer_eps,

        incoming[i] = a[i] * sum_j b[j]                  outgoing[j] = b[j] * sum_i a[i]
        sink[i]     = a[i] * sum_j b[j] / outgoing[j]    source[j]   = clamp(b[j] * sum_i a[i] / incoming[i], -1, 1)
        out[i]      = sigmoid(sink[i] * N / M) / incoming[i] * sum_j M softmax_j(source) (a[i] . b[j]) v[j]

    The causal form takes every sum up to the token's own position n = 1, 2, ...; inside sink and source 1 / outgoing
    and 1 / incoming are multiplied by n and the whole divided by n, M softmax becomes n exp(source) over the running
    sum of exp(source), and the sigmoid has no ratio of lengths. Its memory is linear in the length too.

    Sums and products are float32 (float64 for float64 inputs), also under autocast.

    Args:
        q: queries ``[B, N, heads, D]`` before the sigmoid; float16, bfloat16, float32 or float64.
        k: keys ``[B, M, heads, D]`` of q's dtype.
        v: values ``[B, M, heads, Dv]`` of q's dtype.
        causal: a token receives from itself and earlier ones; N and M must be equal.
        eps: added to both factors of every flow.
        outer_eps: added to every flow; 0 in the published sequence model, 1e-6 in the published vision model.

    Returns:
        ``[B, N, heads, Dv]`` of q's dtype.

    Raises:
        TypeError: no tensors, not floating point, different dtypes, or constants that are no numbers.
        ValueError: wrong ranks, shapes that do not match, no token, different devices, lengths that differ in the
            causal form, or a constant that is negative or not finite.
    """
    return _op(q, k, v, causal=causal, eps=eps, outer_eps=outer_eps)


def _prepare(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool = False,
    eps: float = 1e-6,
    outer_eps: float = 0.0,
) -> tuple:
    check_cross_qkv(q, k, v)
    check_switch("causal", causal)
    if q.shape[1] == 0:
        raise ValueError(f"q needs at least one token, got shape {tuple(q.shape)}")
    if causal and q.shape[1] != k.shape[1]:
        raise ValueError(f"causal needs as many queries as keys, got {q.shape[1]} and {k.shape[1]}")
    return q, k, v, causal, checked_number("eps", eps, 0), checked_number("outer_eps", outer_eps, 0)


def _reference(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, eps: float, outer_eps: float
) -> torch.Tensor:
    """The definition: running sums per token, and all N x M weights."""

    def flow(x: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        return ((x + eps) * (total + eps)).sum(-1, keepdim=True) + outer_eps

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k = q.sigmoid(), k.sigmoid()
        sums = (lambda x: x.cumsum(-2)) if causal else (lambda x: x.sum(-2, keepdim=True))
        count = torch.arange(1, k.shape[-2] + 1, device=k.device, dtype=k.dtype)[:, None] if causal else 1
        incoming, outgoing = flow(q, sums(k)), flow(k, sums(q))
        sink = flow(q, sums(k / outgoing * count)) / count
        source = (flow(k, sums(q / incoming * count)) / count).clamp(-1, 1)
        weights = q @ k.transpose(-1, -2)
        if causal:
            competition = source.exp() / source.exp().cumsum(-2) * count
            weights = weights.tril()
        else:
            competition = source.softmax(-2) * k.shape[-2]
            sink = sink * (q.shape[-2] / k.shape[-2])
        return sink.sigmoid() / incoming * (weights @ (v * competition))

    return in_full_precision(run, q, k, v)


@opaque("flow_on_cpu")
def _torch(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, eps: float, outer_eps: float
) -> torch.Tensor:
    if q.device.type == "cpu" and may_overwrite(q):
        with full_precision(q.device):
            return (causal_flow_in_place if causal else flow_in_place)(q, k, v, eps, outer_eps)
    run = _causal if causal else _non_causal
    return in_full_precision(lambda q, k, v: run(q, k, v, eps, outer_eps), q, k, v)


def _non_causal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, eps: float, outer_eps: float) -> torch.Tensor:
    q, k = q.sigmoid(), k.sigmoid()
    factor, competition = flows(q, k, eps, outer_eps)
    return q @ (k.transpose(-1, -2) @ (v * competition.unsqueeze(-1))) * factor.unsqueeze(-1)


def _causal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, eps: float, outer_eps: float) -> torch.Tensor:
    """Chunk by chunk: pairs inside a chunk by masked products, earlier chunks by the running sum of their states."""
    length, width = q.shape[-2:]
    chunks = -(-length // _CHUNK)
    if length % _CHUNK:
        # Padding comes last, so no real token sees it; sigmoid makes it 0.5, which keeps its own divisions finite.
        q, k, v = (F.pad(x, (0, 0, 0, -length % _CHUNK)) for x in (q, k, v))
    q, k, v = (x.unflatten(-2, (chunks, _CHUNK)) for x in (q.sigmoid(), k.sigmoid(), v))
    count = torch.arange(1, chunks * _CHUNK + 1, device=q.device, dtype=q.dtype).view(chunks, _CHUNK, 1)

    def running(x: torch.Tensor) -> torch.Tensor:
        return x.flatten(-3, -2).cumsum(-2).view_as(x)

    def gather(weight: torch.Tensor, pairs: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        # sum over j <= i of (x[i] . y[j]) weight[j]; pairs holds x . y inside chunks, its upper triangle zero.
        states = y.transpose(-1, -2) @ weight
        return (pairs @ weight).add_(x @ states.cumsum(-3).sub_(states))

    def flow(weight: torch.Tensor, products: tuple, x_sum: torch.Tensor, y_sum: torch.Tensor) -> torch.Tensor:
        # (x + eps) . (total + eps), multiplied out, total being the running sum of y * weight.
        rest = eps * (x_sum + running(y_sum * weight)) + (width * eps**2 + outer_eps)
        return gather(weight, *products).add_(rest)

    pairs = q @ k.transpose(-1, -2)
    to_queries = (pairs.transpose(-1, -2).tril(), k, q)
    to_keys = (pairs.tril_(), q, k)
    q_sum, k_sum = (x.sum(-1, keepdim=True) for x in (q, k))
    ones = torch.ones_like(q_sum)
    incoming, outgoing = flow(ones, to_keys, q_sum, k_sum), flow(ones, to_queries, k_sum, q_sum)
    sink = flow(count / outgoing, to_keys, q_sum, k_sum) / count
    source = (flow(count / incoming, to_queries, k_sum, q_sum) / count).clamp(-1, 1).exp()
    out = gather(v * (source / running(source) * count), *to_keys) * (sink.sigmoid() / incoming)
    return out.flatten(-3, -2)[..., :length, :]


def _triton(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, eps: float, outer_eps: float
) -> torch.Tensor:
    if causal:
        from .fused.causal import fused_causal_flow

        return fused_causal_flow(q, k, v, eps, outer_eps)
    from .fused.flow import fused_flow

    return fused_flow(q, k, v, eps, outer_eps)


def _why_not_triton(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, eps: float, outer_eps: float
) -> str | None:
    width = max(q.shape[-1], v.shape[-1])
    if causal and width > _FUSED_CAUSAL_WIDTH:
        return f"no causal kernel for heads of {width} channels, only up to {_FUSED_CAUSAL_WIDTH}"
    return why_not_fused(q, (q.shape[-1], v.shape[-1]))


_op = Op(
    "flow_attention",
    _prepare,
    triton=Implementation(_triton, _why_not_triton),
    torch=Implementation(_torch),
    reference=Implementation(_reference),
)
