"""Agent attention: a few agent tokens gather the values and hand them on to the queries, linear in the tokens.

Han et al., "Agent Attention: On the Integration of Softmax and Linear Attention", arXiv:2312.08874, equations 4 to 6.
There is no Triton implementation: the two scaled-dot-product attentions of the ``torch`` form already move only 1.0 to
1.7 times the bytes that the op has to.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from ._checks import check_device, check_qkv, check_tensor, checked_scale, compute_dtype, mask_dtype, may_overwrite
from ._linear import full_precision
from ._opaque import opaque
from .dispatch import Implementation, Op

# PyTorch's attention on a CPU takes the keys by vectors of 16, the rest one by one, which for a few keys is most of the
# time. From 32 keys on it no longer matters.
_LANES = 16
_FEW_AGENTS = 32


def agent_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    agent: torch.Tensor,
    *,
    agent_bias: torch.Tensor | None = None,
    query_bias: torch.Tensor | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """Softmax attention of the agents to the tokens, then of the tokens to the agents.

    For each head, with agents A,

        out = softmax(scale * q A^T + query_bias) softmax(scale * A k^T + agent_bias) v

    The biases are not scaled. Scores and softmax are float32 (float64 for float64 inputs).

    Args:
        q: queries ``[B, N, heads, D]``; float16, bfloat16, float32 or float64.
        k: keys, of q's shape and dtype.
        v: values ``[B, N, heads, Dv]`` of q's dtype.
        agent: agent tokens ``[B, n, heads, D]`` of q's dtype, n at least 1.
        agent_bias: added to the scores of agents and keys; broadcasts to ``[B, heads, n, N]``, any floating-point
            dtype.
        query_bias: added to the scores of queries and agents; broadcasts to ``[B, heads, N, n]``, any floating-point
            dtype.
        scale: factor of both scores; default ``D ** -0.5``.

    Returns:
        ``[B, N, heads, Dv]`` of q's dtype.

    Raises:
        TypeError: no tensors, not floating point, or different dtypes.
        ValueError: wrong ranks, shapes that do not match or broadcast, different devices, or no agents.
    """
    return _op(q, k, v, agent, agent_bias=agent_bias, query_bias=query_bias, scale=scale)


def _prepare(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    agent: torch.Tensor,
    *,
    agent_bias: torch.Tensor | None = None,
    query_bias: torch.Tensor | None = None,
    scale: float | None = None,
) -> tuple:
    check_qkv(q, k, v, (4,), "[B, N, heads, D]")
    batch, tokens, heads, channels = q.shape
    check_tensor("agent", agent)
    check_device("agent", agent, "q", q)
    if agent.dtype != q.dtype:
        raise TypeError(f"agent has dtype {agent.dtype} but q has {q.dtype}")
    if agent.ndim != 4 or agent.shape[0] != batch or agent.shape[2:] != q.shape[2:]:
        raise ValueError(f"agent must be {(batch, 'n', heads, channels)}, got shape {tuple(agent.shape)}")
    agents = agent.shape[1]
    if agents < 1:
        raise ValueError(f"agent needs at least one token, got shape {tuple(agent.shape)}")
    for name, bias, shape in (
        ("agent_bias", agent_bias, (batch, heads, agents, tokens)),
        ("query_bias", query_bias, (batch, heads, tokens, agents)),
    ):
        if bias is not None:
            _check_bias(name, bias, shape, q)
    return q, k, v, agent, agent_bias, query_bias, checked_scale(scale, channels**-0.5)


def _check_bias(name: str, bias: torch.Tensor, shape: tuple[int, ...], q: torch.Tensor) -> None:
    check_tensor(name, bias)
    check_device(name, bias, "q", q)
    trailing = shape[len(shape) - bias.ndim :]
    if bias.ndim > len(shape) or any(n not in (1, m) for n, m in zip(bias.shape, trailing, strict=True)):
        raise ValueError(f"{name} must broadcast to {shape}, got shape {tuple(bias.shape)}")


def _reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    agent: torch.Tensor,
    agent_bias: torch.Tensor | None,
    query_bias: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """The definition: both score matrices written out."""
    dtype = compute_dtype(q.dtype)
    queries, keys, values, agents = (x.to(dtype).transpose(1, 2) for x in (q, k, v, agent))
    gathered = _softmax(scale * agents @ keys.transpose(-2, -1), agent_bias) @ values
    out = _softmax(scale * queries @ agents.transpose(-2, -1), query_bias) @ gathered
    return out.transpose(1, 2).to(q.dtype)


def _softmax(scores: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return (scores if bias is None else scores + bias.to(scores.dtype)).softmax(-1)


def _has_rest(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, agent: torch.Tensor, *rest: Any) -> bool:
    """Whether PyTorch would take a good part of the agents one by one."""
    return agent.shape[1] < _FEW_AGENTS and agent.shape[1] % _LANES != 0


@opaque("agent_on_cpu", when=_has_rest)
def _torch(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    agent: torch.Tensor,
    agent_bias: torch.Tensor | None,
    query_bias: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """Two scaled-dot-product attentions, whose biases stay broadcast over the batch."""
    if _learns_on_cpu(q, agent_bias, query_bias):
        with full_precision(q.device):
            return _reference(q, k, v, agent, agent_bias, query_bias, scale)
    rest = _has_rest(q, k, v, agent)
    q, k, v, agent = (x.transpose(1, 2) for x in (q, k, v, agent))
    gathered = F.scaled_dot_product_attention(agent, k, v, _mask(agent_bias, mask_dtype(q)), scale=scale)
    mask = _mask(query_bias, mask_dtype(q))
    if rest and q.device.type == "cpu" and may_overwrite(q):
        agent, gathered, mask = _whole_vectors(agent, gathered, mask)
    return F.scaled_dot_product_attention(q, agent, gathered, mask, scale=scale).transpose(1, 2)


def _learns_on_cpu(q: torch.Tensor, *biases: torch.Tensor | None) -> bool:
    """Whether the scores are written out anyway: on a CPU PyTorch has no fused kernel with a bias's gradient, and its
    unfused one takes longer than the definition, since it looks for rows without a key."""
    learned = torch.is_grad_enabled() and any(bias is not None and bias.requires_grad for bias in biases)
    return learned and q.device.type == "cpu"


def _whole_vectors(
    agent: torch.Tensor, gathered: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Agents that nothing attends to, up to a multiple of the vector's length: PyTorch handles a rest one by one."""
    rest = -agent.shape[2] % _LANES
    if mask is None:
        mask = agent.new_zeros(1, 1, 1, agent.shape[2])
    elif mask.shape[-1] == 1:
        mask = mask.expand(*mask.shape[:-1], agent.shape[2])
    return F.pad(agent, (0, 0, 0, rest)), F.pad(gathered, (0, 0, 0, rest)), F.pad(mask, (0, rest), value=-math.inf)


def _mask(bias: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """The bias with four axes, as the fused kernels want it."""
    return None if bias is None else bias.to(dtype)[(None,) * (4 - bias.ndim)]


_op = Op("agent_attention", _prepare, torch=Implementation(_torch), reference=Implementation(_reference))
