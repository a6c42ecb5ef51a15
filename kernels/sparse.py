"""Sparse attention: every query attends to the keys that a mask, or a list of columns, keeps for it.

Wei et al., "Sparsifiner: Learning Sparse Instance-Dependent Attention for Efficient Vision Transformers",
arXiv:2303.13755, section 3.3.

There is no Triton form: connections differ for every row and head, so that on a GPU too the choice is between a masked
dense product and a gather of rows, and these are what the ``torch`` form has.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from ._checks import check_device, checked_scale, compute_dtype, is_traced, is_transformed
from ._cross import check_cross_qkv
from ._opaque import compiles_for_inference, opaque
from .dispatch import Implementation, Op

# A gathered connection costs about as much as this many dense ones: measured from 8 to 40 on an AVX-512 CPU.
_DENSE_PER_GATHERED = 24
# Of every dtype: integers of its size, and the bits of its fraction.
_BITS = {
    torch.float16: (torch.int16, 10),
    torch.bfloat16: (torch.int16, 7),
    torch.float32: (torch.int32, 23),
    torch.float64: (torch.int64, 52),
}
# What PyTorch's selection takes on one thread, in sorts of NumPy's.
_SELECTION_PER_SORT = 6
# Gathered values at a time, for one image: small enough for a core's cache.
_GATHERED_VALUES = 2**17


def sparse_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """Softmax attention over the kept entries of each row.

        out[n] = sum over m kept for n of softmax_m(scale * q[n] . k[m] + bias[n, m]) * v[m]

    and zero where a row keeps nothing. Scores and softmax are float32 (float64 for float64 inputs).

    Given columns, the cost falls with the budget as soon as that is a small part of M: then only the kept keys are
    read. Otherwise scores are dense and masked, which is faster although it computes more.

    Args:
        q: queries ``[B, N, heads, D]``; float16, bfloat16, float32 or float64.
        k: keys ``[B, M, heads, D]`` of q's dtype.
        v: values ``[B, M, heads, Dv]`` of q's dtype.
        mask: what is kept: bool ``[B, heads, N, M]`` (1 in place of B, heads or N stands for all), or the kept columns
            themselves, int64 ``[B, heads, N, budget]``, different from each other within a row and from 0 to M - 1
            (not checked: they stay on the device).
        bias: added to the scaled scores, ``[B, heads, N, M]`` of q's dtype, or None.
        scale: factor of the scores; default ``D ** -0.5``.

    Returns:
        ``[B, N, heads, Dv]`` of q's dtype.

    Raises:
        TypeError: no tensors, not floating point, different dtypes, or a mask neither bool nor int64.
        ValueError: wrong ranks, shapes that do not match, a budget of 0 or above M, or different devices.
    """
    return _op(q, k, v, mask, bias=bias, scale=scale)


def largest_entries(scores: torch.Tensor, budget: int) -> torch.Tensor:
    """The ``budget`` largest entries of each row, in the form that :func:`sparse_attention` reads fastest.

    Args:
        scores: ``[..., N, M]``; entries of the same size are chosen among as :func:`torch.topk` does.
        budget: how many, from 1 to M.

    Returns:
        int64 ``[..., N, budget]``, or bool ``[..., N, M]`` with ``budget`` true entries a row.
    """
    scores = scores.detach()
    if budget * _DENSE_PER_GATHERED > scores.shape[-1] and (mask := top_mask(scores, budget)) is not None:
        return mask
    return scores.topk(budget, dim=-1, sorted=False).indices


def top_mask(values: torch.Tensor, count: int) -> torch.Tensor | None:
    """True at the ``count`` largest entries of each row, or None where that is not known to be quick.

    NumPy sorts short rows of floats with vector instructions, in a sixth of the time of PyTorch's selection on a CPU;
    but on one thread only.
    """
    if compiles_for_inference(values):
        return _chosen(values, count)
    eager = type(values) is torch.Tensor and not (
        torch.compiler.is_compiling() or torch.jit.is_tracing() or is_transformed()
    )
    if not eager or values.device.type != "cpu" or values.dtype not in (torch.float32, torch.float64):
        return None
    if torch.get_num_threads() > _SELECTION_PER_SORT:
        return None
    rows = values.detach().numpy()
    ordered = np.sort(rows, axis=-1)
    least = ordered[..., -count, None]
    if count < rows.shape[-1] and not (ordered[..., -count - 1, None] < least).all():
        return None
    # The kept are those not below the last one kept, NaN among them.
    mask = np.less(rows, least)
    return torch.from_numpy(np.logical_not(mask, out=mask))


def _like_mask(values: torch.Tensor, count: int) -> torch.Tensor:
    return values.new_empty(values.shape, dtype=torch.bool)


@opaque("top_mask_on_cpu", _like_mask)
def _chosen(values: torch.Tensor, count: int) -> torch.Tensor:
    """:func:`top_mask` in a compiled program, which has to have a mask."""
    mask = top_mask(values, count)
    if mask is None:
        columns = values.topk(count, dim=-1, sorted=False).indices
        mask = torch.zeros_like(values, dtype=torch.bool).scatter_(-1, columns, True)
    return mask


def _prepare(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    scale: float | None = None,
) -> tuple:
    check_cross_qkv(q, k, v)
    batch, queries, heads, _ = q.shape
    keys = k.shape[1]
    if not isinstance(mask, torch.Tensor) or mask.dtype not in (torch.bool, torch.int64):
        raise TypeError(f"mask must be a bool or int64 tensor, got {getattr(mask, 'dtype', type(mask))}")
    check_device("mask", mask, "q", q)
    full = (batch, heads, queries, keys)
    if mask.dtype == torch.bool:
        fits = mask.ndim == 4 and mask.shape[3] == keys
        if not fits or any(n not in (1, want) for n, want in zip(mask.shape[:3], full[:3], strict=True)):
            raise ValueError(f"a bool mask must be [B, heads, N, M] = {full}, got {tuple(mask.shape)}")
    elif mask.ndim != 4 or tuple(mask.shape[:3]) != full[:3]:
        raise ValueError(f"mask's columns must be [B, heads, N, budget] with {full[:3]} first, got {tuple(mask.shape)}")
    elif not 1 <= mask.shape[3] <= keys:
        raise ValueError(f"mask's columns must be from 1 to {keys} a row, the number of keys, got {mask.shape[3]}")
    if bias is not None:
        _check_bias(bias, q, full)
    return q, k, v, mask, bias, checked_scale(scale, q.shape[-1] ** -0.5)


def _check_bias(bias: torch.Tensor, q: torch.Tensor, shape: tuple[int, ...]) -> None:
    if not isinstance(bias, torch.Tensor) or bias.dtype != q.dtype:
        raise TypeError(f"bias must be a tensor of q's dtype {q.dtype}, got {getattr(bias, 'dtype', type(bias))}")
    if tuple(bias.shape) != shape:
        raise ValueError(f"bias must be [B, heads, N, M] = {shape}, got {tuple(bias.shape)}")
    check_device("bias", bias, "q", q)


def _reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor,
    bias: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """The definition: all scores, those left out at minus infinity."""
    dtype = compute_dtype(q.dtype)
    scores = torch.einsum("bnhd,bmhd->bhnm", q.to(dtype) * scale, k.to(dtype))
    if bias is not None:
        scores = scores + bias.to(dtype)
    if mask.dtype != torch.bool:
        mask = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, mask, True)
    # A row without entries would be NaN through softmax, and so would its gradient: it is put aside first.
    empty = ~mask.any(-1, keepdim=True)
    weights = scores.masked_fill(~(mask | empty), float("-inf")).softmax(-1).masked_fill(empty, 0.0)
    return torch.einsum("bhnm,bmhd->bnhd", weights, v.to(dtype)).to(q.dtype)


@opaque("sparse_on_cpu")
def _torch(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor,
    bias: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    few = mask.dtype == torch.int64 and mask.shape[-1] * _DENSE_PER_GATHERED <= k.shape[1]
    if few and q.shape[1]:
        return _gathered(q, k, v, mask, bias, scale)
    return _masked(q, k, v, mask, bias, scale)


def _masked(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor,
    bias: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """Dense scores and an additive mask."""
    if mask.dtype != torch.bool:
        shape = (*mask.shape[:-1], k.shape[1])
        kept = q.new_zeros(()) if bias is None else bias.gather(-1, mask)
        kept = kept.expand(mask.shape)
        # In place: the mask is the largest tensor here, and a copy of it costs as much as the softmax.
        left_out = torch.full(shape, float("-inf"), dtype=q.dtype, device=q.device)
        mask = left_out.scatter(-1, mask, kept) if is_transformed() else left_out.scatter_(-1, mask, kept)
    elif bias is not None:
        mask = bias.masked_fill(~mask, float("-inf"))
    else:
        mask = _additive(mask, q.dtype)
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask, scale=scale
    )
    return out.transpose(1, 2)


def _additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """0 where the bool ``mask`` is true, else minus infinity, whose bits are -1 shifted over those of the fraction.

    PyTorch's own ways, a select or a conversion to floats, take up to as long as the attention itself on a CPU.
    """
    if is_traced(mask):
        # Other formats have no views of the bits.
        return torch.zeros((), dtype=dtype, device=mask.device).masked_fill(~mask, float("-inf"))
    whole, fraction = _BITS[dtype]
    return (mask.view(torch.int8) - 1).to(whole).bitwise_left_shift_(fraction).view(dtype)


def _gathered(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    columns: torch.Tensor,
    bias: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """The kept keys and values only, a few queries at a time."""
    dtype = compute_dtype(q.dtype)
    batch, _, heads, channels = q.shape
    keys, values = (x.transpose(1, 2).flatten(0, 2) for x in (k, v))
    first = torch.arange(batch * heads, device=q.device).view(batch, heads, 1, 1) * k.shape[1]
    step = max(1, _GATHERED_VALUES // (columns.shape[-1] * channels * heads))
    outputs = []
    for start in range(0, q.shape[1], step):
        chosen = columns[:, :, start : start + step]
        rows = (chosen + first).flatten()
        near = keys.index_select(0, rows).unflatten(0, chosen.shape).to(dtype)
        query = q[:, start : start + step].transpose(1, 2).unsqueeze(-1).to(dtype)
        scores = (near @ (query * scale)).squeeze(-1)
        if bias is not None:
            scores = scores + bias[:, :, start : start + step].gather(-1, chosen).to(dtype)
        near = values.index_select(0, rows).unflatten(0, chosen.shape).to(dtype)
        outputs.append((scores.softmax(-1).unsqueeze(-2) @ near).squeeze(-2))
    return torch.cat(outputs, dim=2).transpose(1, 2).to(q.dtype)


_op = Op(
    "sparse_attention",
    _prepare,
    torch=Implementation(_torch),
    reference=Implementation(_reference),
)
