"""Triton kernels of attention between regions of a map; see :mod:`.routing`.

A program owns TILE tokens of one region and walks over the tokens of a list of regions, laid end to end, in blocks of
BLOCK. ``counts`` is the number of regions along each axis, ``cell`` the size of one. Tensors of tokens come as
(pointer, strides of images, rows, columns, heads, channels); lse and delta are contiguous ``[B, heads, H, W]``.
"""

import triton
import triton.language as tl

from ._attention import (
    LOG2_E,
    corrected,
    head_of,
    load_rows,
    online_softmax,
    query_gradient_step,
    quotient,
    row_offsets,
    score_gradient,
    store_rows,
)

_LOG2_E = tl.constexpr(LOG2_E)


@triton.jit
def _locate(heads, slices, counts, factors):
    """This program's (image, head, region, slice of the region); heads run fastest, images slowest."""
    pid = tl.program_id(0)
    rest = quotient(pid, heads, factors, 0)
    head = pid - rest * heads
    pid, rest = rest, quotient(rest, slices, factors, 1)
    part = pid - rest * slices
    regions = counts[0] * counts[1]
    image = quotient(rest, regions, factors, 2)
    return image.to(tl.int64), head, rest - image * regions, part


@triton.jit
def _position(region, token, counts, cell, factors):
    """(row, column) in the map of a region's token."""
    line, row = quotient(region, counts[1], factors, 3), quotient(token, cell[1], factors, 4)
    return line * cell[0] + row, (region - line * counts[1]) * cell[1] + token - row * cell[1]


@triton.jit
def _members(first, total, tokens, regions, factors, BLOCK: tl.constexpr):
    """A block of the tokens of ``regions`` laid end to end: (region, token of it, whether there is one)."""
    index = first + tl.arange(0, BLOCK)
    there = index < total
    place = quotient(index, tokens, factors, 5)
    return tl.load(regions + place, mask=there, other=0), index - place * tokens, there


@triton.jit
def _sums(image, head, heads, position, counts, cell):
    """Offsets of positions in lse and delta."""
    width = counts[1] * cell[1]
    return ((image * heads + head) * (counts[0] * cell[0]) + position[0]) * width + position[1]


@triton.jit
def forward_kernel(
    q, k, v, chosen, out, lse, scale, heads, slices, topk, counts, cell, factors,
    TILE: tl.constexpr, BLOCK: tl.constexpr,
    WIDTH: tl.constexpr, V_WIDTH: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
    UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``chosen``: ``[B, regions, topk]``, the regions that each region attends to."""
    image, head, region, part = _locate(heads, slices, counts, factors)
    tokens = cell[0] * cell[1]
    token = part * TILE + tl.arange(0, TILE)
    valid = token < tokens
    position = _position(region, token, counts, cell, factors)
    queries = load_rows(head_of(q, image, head), row_offsets(q, position), valid, WIDTH, D, UPCAST)
    k_head, v_head = head_of(k, image, head), head_of(v, image, head)
    choices = chosen + (image * (counts[0] * counts[1]) + region) * topk

    acc = tl.zeros((TILE, DV), tl.float32)
    top = tl.full((TILE,), float("-inf"), tl.float32)
    total = tl.zeros((TILE,), tl.float32)
    for first in range(0, topk * tokens, BLOCK):
        region_of, token_of, there = _members(first, topk * tokens, tokens, choices, factors, BLOCK)
        at = _position(region_of, token_of, counts, cell, factors)
        keys = load_rows(k_head, row_offsets(k, at), there, WIDTH, D, UPCAST)
        values = load_rows(v_head, row_offsets(v, at), there, V_WIDTH, DV, UPCAST)
        scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * (scale * _LOG2_E)
        scores = tl.where(there[None, :], scores, float("-inf"))
        acc, top, total = online_softmax(acc, top, total, scores, values, PRECISION)

    store_rows(head_of(out, image, head), row_offsets(out, position), valid, acc * (1 / total)[:, None], V_WIDTH, DV)
    tl.store(lse + _sums(image, head, heads, position, counts, cell), top + tl.log2(total), mask=valid)


@triton.jit
def query_gradient_kernel(
    q, k, v, chosen, out, d_out, lse, delta, d_q, scale, heads, slices, topk, counts, cell, factors,
    TILE: tl.constexpr, BLOCK: tl.constexpr,
    WIDTH: tl.constexpr, V_WIDTH: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
    UPCAST: tl.constexpr, PRECISION: tl.constexpr, CORRECT: tl.constexpr,
):  # fmt: skip
    """Also stores delta, the sum of out * d_out over channels."""
    image, head, region, part = _locate(heads, slices, counts, factors)
    tokens = cell[0] * cell[1]
    token = part * TILE + tl.arange(0, TILE)
    valid = token < tokens
    position = _position(region, token, counts, cell, factors)
    queries = load_rows(head_of(q, image, head), row_offsets(q, position), valid, WIDTH, D, UPCAST)
    d_outs = load_rows(head_of(d_out, image, head), row_offsets(d_out, position), valid, V_WIDTH, DV, UPCAST)
    outs = load_rows(head_of(out, image, head), row_offsets(out, position), valid, V_WIDTH, DV, UPCAST)
    deltas = tl.sum(outs.to(tl.float32) * d_outs.to(tl.float32), 1)
    row = _sums(image, head, heads, position, counts, cell)
    log_sum = tl.load(lse + row, mask=valid, other=0.0)
    k_head, v_head = head_of(k, image, head), head_of(v, image, head)
    choices = chosen + (image * (counts[0] * counts[1]) + region) * topk

    acc = tl.zeros((TILE, D), tl.float32)
    mean_key = tl.zeros((TILE, D), tl.float32)
    exact = tl.zeros((TILE,), tl.float32)
    for first in range(0, topk * tokens, BLOCK):
        region_of, token_of, there = _members(first, topk * tokens, tokens, choices, factors, BLOCK)
        at = _position(region_of, token_of, counts, cell, factors)
        keys = load_rows(k_head, row_offsets(k, at), there, WIDTH, D, UPCAST)
        values = load_rows(v_head, row_offsets(v, at), there, V_WIDTH, DV, UPCAST)
        scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * (scale * _LOG2_E)
        scores = tl.where(there[None, :], scores, float("-inf"))
        acc, mean_key, exact = query_gradient_step(
            acc, mean_key, exact, scores, log_sum, deltas, keys, values, d_outs, CORRECT, PRECISION
        )

    acc, deltas = corrected(acc, mean_key, exact, deltas, CORRECT)
    tl.store(delta + row, deltas, mask=valid)
    store_rows(head_of(d_q, image, head), row_offsets(d_q, position), valid, acc * scale, WIDTH, D)


@triton.jit
def key_value_gradient_kernel(
    q, k, v, choosers, ends, d_out, lse, delta, d_k, d_v, scale, heads, slices, topk, counts, cell, factors,
    TILE: tl.constexpr, BLOCK: tl.constexpr,
    WIDTH: tl.constexpr, V_WIDTH: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
    UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A slice of a region's keys against the queries of all regions that chose it.

    ``choosers``: ``[B, regions * topk]``, all choices' owners, sorted by the region chosen; ``ends``:
    ``[B, regions + 1]``, where each region's begin, and the last one's end.
    """
    image, head, region, part = _locate(heads, slices, counts, factors)
    tokens, regions = cell[0] * cell[1], counts[0] * counts[1]
    token = part * TILE + tl.arange(0, TILE)
    valid = token < tokens
    position = _position(region, token, counts, cell, factors)
    keys = load_rows(head_of(k, image, head), row_offsets(k, position), valid, WIDTH, D, UPCAST)
    values = load_rows(head_of(v, image, head), row_offsets(v, position), valid, V_WIDTH, DV, UPCAST)
    q_head, d_out_head = head_of(q, image, head), head_of(d_out, image, head)
    begin = tl.load(ends + image * (regions + 1) + region)
    count = (tl.load(ends + image * (regions + 1) + region + 1) - begin) * tokens
    owners = choosers + image * (regions * topk) + begin

    acc_k = tl.zeros((TILE, D), tl.float32)
    acc_v = tl.zeros((TILE, DV), tl.float32)
    for first in range(0, count, BLOCK):
        region_of, token_of, there = _members(first, count, tokens, owners, factors, BLOCK)
        at = _position(region_of, token_of, counts, cell, factors)
        queries = load_rows(q_head, row_offsets(q, at), there, WIDTH, D, UPCAST)
        d_outs = load_rows(d_out_head, row_offsets(d_out, at), there, V_WIDTH, DV, UPCAST)
        row = _sums(image, head, heads, at, counts, cell)
        # Past the end the sum is infinite and so every weight zero.
        log_sum = tl.load(lse + row, mask=there, other=float("inf"))
        deltas = tl.load(delta + row, mask=there, other=0.0)
        scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * (scale * _LOG2_E)
        weights = tl.exp2(scores - log_sum[:, None])
        acc_v = tl.dot(tl.trans(weights.to(d_outs.dtype)), d_outs, acc_v, input_precision=PRECISION)
        d_scores = score_gradient(weights, d_outs, values, deltas, PRECISION)
        acc_k = tl.dot(tl.trans(d_scores.to(queries.dtype)), queries, acc_k, input_precision=PRECISION)

    store_rows(head_of(d_k, image, head), row_offsets(d_k, position), valid, acc_k * scale, WIDTH, D)
    store_rows(head_of(d_v, image, head), row_offsets(d_v, position), valid, acc_v, V_WIDTH, DV)
