"""Triton kernels of neighborhood attention over a map of two axes; see :mod:`.neighborhood`.

A program owns a tile of TILE members of one dilation group along each axis and walks over blocks of BLOCK members of
that group. Constants in capitals, ``size`` and ``tiles`` are pairs (rows, columns). Tensors of tokens come as
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
def _locate(heads, tiles, factors, DILATION: tl.constexpr):
    """This program's (image, head, groups, tiles); heads run fastest, images slowest."""
    pid = tl.program_id(0)
    rest = quotient(pid, heads, factors, 0)
    head = pid - rest * heads
    pid, rest = rest, quotient(rest, tiles[1], factors, 2)
    tile_w = pid - rest * tiles[1]
    pid, rest = rest, quotient(rest, tiles[0], factors, 1)
    tile_h = pid - rest * tiles[0]
    pid = rest // DILATION[1]
    group_w = rest % DILATION[1]
    return pid // DILATION[0], head, (pid % DILATION[0], group_w), (tile_h, tile_w)


@triton.jit
def _members(size, group, DILATION: tl.constexpr):
    """Members of a dilation group along both axes."""
    rows = (size[0] - group[0] + DILATION[0] - 1) // DILATION[0]
    return rows, (size[1] - group[1] + DILATION[1] - 1) // DILATION[1]


@triton.jit
def _block(first, SHAPE: tl.constexpr):
    """Places (rows, columns) of a block's members, row-major, from its first."""
    index = tl.arange(0, SHAPE[0] * SHAPE[1])
    return first[0] + index // SHAPE[1], first[1] + index % SHAPE[1]


@triton.jit
def _within(place, members):
    return (place[0] < members[0]) & (place[1] < members[1])


@triton.jit
def _last_if_beyond(place, members):
    return tl.minimum(place[0], members[0] - 1), tl.minimum(place[1], members[1] - 1)


@triton.jit
def _position(place, group, DILATION: tl.constexpr):
    return place[0] * DILATION[0] + group[0], place[1] * DILATION[1] + group[1]


@triton.jit
def _start(place, members, KERNEL: tl.constexpr):
    """First member of the window of ``place`` along one axis."""
    return tl.minimum(tl.maximum(place - KERNEL // 2, 0), members - KERNEL)


@triton.jit
def _starts(place, members, KERNEL: tl.constexpr):
    return _start(place[0], members[0], KERNEL[0]), _start(place[1], members[1], KERNEL[1])


@triton.jit
def _key_range(first, members, KERNEL: tl.constexpr, TILE: tl.constexpr):
    """(first key, key past the last) that the queries of a tile attend to, along one axis."""
    last = tl.minimum(first + TILE, members) - 1
    return _start(first, members, KERNEL), _start(last, members, KERNEL) + KERNEL


@triton.jit
def _query_range(first, members, KERNEL: tl.constexpr, TILE: tl.constexpr):
    """(first query, query past the last) that attend to the keys of a tile, along one axis."""
    last = tl.minimum(first + TILE, members) - 1
    low = tl.where(first < KERNEL, 0, first - KERNEL // 2)
    return low, tl.where(last >= members - KERNEL, members, last + KERNEL // 2 + 1)


@triton.jit
def _columns(place_w, start_w, key_w, bias, KERNEL: tl.constexpr):
    """What the columns of queries and keys say of a block's scores: zero within the window, and the offset in a head's
    table of biases without that of the rows. A loop over rows keeps both; numbers in registers, as a GPU has few
    predicates."""
    slot = key_w[None, :] - start_w[:, None]
    inside = (slot >= 0) & (slot < KERNEL[1])
    offset = (KERNEL[0] - 1) * (2 * KERNEL[1] - 1) + KERNEL[1] - 1
    if bias is not None:
        # Beyond the window any place in the table will do.
        offset += tl.where(inside, key_w[None, :] - place_w[:, None], 0)
    return tl.where(inside, 0.0, 1.0), offset


@triton.jit
def _scores(q, k, place_h, start_h, key_h, columns, bias, scale, KERNEL: tl.constexpr, PRECISION: tl.constexpr):
    """Scores ``[queries, keys]``, -inf outside the windows; ``bias`` is the head's table or None."""
    slot = key_h[None, :] - start_h[:, None]
    inside = (slot >= 0) & (slot < KERNEL[0])
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * _LOG2_E)
    if bias is not None:
        offset = columns[1] + (key_h[None, :] - place_h[:, None]) * (2 * KERNEL[1] - 1)
        scores += tl.load(bias + offset, mask=inside, other=0.0).to(tl.float32) * _LOG2_E
    return tl.where(inside & (columns[0] == 0), scores, float("-inf"))


@triton.jit
def _bias_of(bias, head, KERNEL: tl.constexpr):
    """The head's table in the contiguous ``bias`` of all heads."""
    return bias + head * ((2 * KERNEL[0] - 1) * (2 * KERNEL[1] - 1))


@triton.jit
def forward_kernel(
    q, k, v, bias, out, lse, scale, heads, size, tiles, factors,
    KERNEL: tl.constexpr, DILATION: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
    WIDTH: tl.constexpr, V_WIDTH: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
    UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    image, head, group, tile = _locate(heads, tiles, factors, DILATION)
    members = _members(size, group, DILATION)
    first = (tile[0] * TILE[0], tile[1] * TILE[1])
    if (first[0] >= members[0]) | (first[1] >= members[1]):
        return
    place = _block(first, TILE)
    valid = _within(place, members)
    place = _last_if_beyond(place, members)
    starts = _starts(place, members, KERNEL)
    position = _position(place, group, DILATION)
    queries = load_rows(head_of(q, image, head), row_offsets(q, position), valid, WIDTH, D, UPCAST)
    k_head, v_head, table = head_of(k, image, head), head_of(v, image, head), bias
    if bias is not None:
        table = _bias_of(bias, head, KERNEL)

    low_h, high_h = _key_range(first[0], members[0], KERNEL[0], TILE[0])
    low_w, high_w = _key_range(first[1], members[1], KERNEL[1], TILE[1])
    acc = tl.zeros((TILE[0] * TILE[1], DV), tl.float32)
    top = tl.full((TILE[0] * TILE[1],), float("-inf"), tl.float32)
    total = tl.zeros((TILE[0] * TILE[1],), tl.float32)
    for column in range(low_w, high_w, BLOCK[1]):
        _, key_w = _block((low_h, column), BLOCK)
        columns = _columns(place[1], starts[1], key_w, table, KERNEL)
        for line in range(low_h, high_h, BLOCK[0]):
            key = _block((line, column), BLOCK)
            at, there = _position(key, group, DILATION), _within(key, members)
            keys = load_rows(k_head, row_offsets(k, at), there, WIDTH, D, UPCAST)
            scores = _scores(queries, keys, place[0], starts[0], key[0], columns, table, scale, KERNEL, PRECISION)
            values = load_rows(v_head, row_offsets(v, at), there, V_WIDTH, DV, UPCAST)
            acc, top, total = online_softmax(acc, top, total, scores, values, PRECISION)

    store_rows(head_of(out, image, head), row_offsets(out, position), valid, acc * (1 / total)[:, None], V_WIDTH, DV)
    row = (image.to(tl.int64) * heads + head) * size[0] * size[1] + position[0] * size[1] + position[1]
    tl.store(lse + row, top + tl.log2(total), mask=valid)


@triton.jit
def query_gradient_kernel(
    q, k, v, bias, out, d_out, lse, delta, d_q, scale, heads, size, tiles, factors,
    KERNEL: tl.constexpr, DILATION: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
    WIDTH: tl.constexpr, V_WIDTH: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
    UPCAST: tl.constexpr, PRECISION: tl.constexpr, CORRECT: tl.constexpr,
):  # fmt: skip
    """Also stores delta, the sum of out * d_out over channels."""
    image, head, group, tile = _locate(heads, tiles, factors, DILATION)
    members = _members(size, group, DILATION)
    first = (tile[0] * TILE[0], tile[1] * TILE[1])
    if (first[0] >= members[0]) | (first[1] >= members[1]):
        return
    place = _block(first, TILE)
    valid = _within(place, members)
    place = _last_if_beyond(place, members)
    starts = _starts(place, members, KERNEL)
    position = _position(place, group, DILATION)
    queries = load_rows(head_of(q, image, head), row_offsets(q, position), valid, WIDTH, D, UPCAST)
    d_outs = load_rows(head_of(d_out, image, head), row_offsets(d_out, position), valid, V_WIDTH, DV, UPCAST)
    outs = load_rows(head_of(out, image, head), row_offsets(out, position), valid, V_WIDTH, DV, UPCAST)
    deltas = tl.sum(outs.to(tl.float32) * d_outs.to(tl.float32), 1)
    row = (image.to(tl.int64) * heads + head) * size[0] * size[1] + position[0] * size[1] + position[1]
    log_sum = tl.load(lse + row, mask=valid, other=0.0)
    k_head, v_head, table = head_of(k, image, head), head_of(v, image, head), bias
    if bias is not None:
        table = _bias_of(bias, head, KERNEL)

    low_h, high_h = _key_range(first[0], members[0], KERNEL[0], TILE[0])
    low_w, high_w = _key_range(first[1], members[1], KERNEL[1], TILE[1])
    acc = tl.zeros((TILE[0] * TILE[1], D), tl.float32)
    mean_key = tl.zeros((TILE[0] * TILE[1], D), tl.float32)
    exact = tl.zeros((TILE[0] * TILE[1],), tl.float32)
    for column in range(low_w, high_w, BLOCK[1]):
        _, key_w = _block((low_h, column), BLOCK)
        columns = _columns(place[1], starts[1], key_w, table, KERNEL)
        for line in range(low_h, high_h, BLOCK[0]):
            key = _block((line, column), BLOCK)
            at, there = _position(key, group, DILATION), _within(key, members)
            values = load_rows(v_head, row_offsets(v, at), there, V_WIDTH, DV, UPCAST)
            keys = load_rows(k_head, row_offsets(k, at), there, WIDTH, D, UPCAST)
            scores = _scores(queries, keys, place[0], starts[0], key[0], columns, table, scale, KERNEL, PRECISION)
            acc, mean_key, exact = query_gradient_step(
                acc, mean_key, exact, scores, log_sum, deltas, keys, values, d_outs, CORRECT, PRECISION
            )

    acc, deltas = corrected(acc, mean_key, exact, deltas, CORRECT)
    tl.store(delta + row, deltas, mask=valid)
    store_rows(head_of(d_q, image, head), row_offsets(d_q, position), valid, acc * scale, WIDTH, D)


@triton.jit
def key_value_gradient_kernel(
    q, k, v, bias, d_out, lse, delta, d_k, d_v, scale, heads, size, tiles, factors,
    KERNEL: tl.constexpr, DILATION: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
    WIDTH: tl.constexpr, V_WIDTH: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
    UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile of keys against blocks of the queries that attend to it."""
    image, head, group, tile = _locate(heads, tiles, factors, DILATION)
    members = _members(size, group, DILATION)
    first = (tile[0] * TILE[0], tile[1] * TILE[1])
    if (first[0] >= members[0]) | (first[1] >= members[1]):
        return
    key = _block(first, TILE)
    valid = _within(key, members)
    position = _position(key, group, DILATION)
    keys = load_rows(head_of(k, image, head), row_offsets(k, position), valid, WIDTH, D, UPCAST)
    values = load_rows(head_of(v, image, head), row_offsets(v, position), valid, V_WIDTH, DV, UPCAST)
    q_head, d_out_head, table = head_of(q, image, head), head_of(d_out, image, head), bias
    if bias is not None:
        table = _bias_of(bias, head, KERNEL)
    row = (image.to(tl.int64) * heads + head) * size[0] * size[1]

    low_h, high_h = _query_range(first[0], members[0], KERNEL[0], TILE[0])
    low_w, high_w = _query_range(first[1], members[1], KERNEL[1], TILE[1])
    acc_k = tl.zeros((TILE[0] * TILE[1], D), tl.float32)
    acc_v = tl.zeros((TILE[0] * TILE[1], DV), tl.float32)
    for column in range(low_w, high_w, BLOCK[1]):
        place = _last_if_beyond(_block((low_h, column), BLOCK), members)
        columns = _columns(place[1], _start(place[1], members[1], KERNEL[1]), key[1], table, KERNEL)
        for line in range(low_h, high_h, BLOCK[0]):
            place = _block((line, column), BLOCK)
            there = _within(place, members)
            place = _last_if_beyond(place, members)
            at, start_h = _position(place, group, DILATION), _start(place[0], members[0], KERNEL[0])
            queries = load_rows(q_head, row_offsets(q, at), there, WIDTH, D, UPCAST)
            d_outs = load_rows(d_out_head, row_offsets(d_out, at), there, V_WIDTH, DV, UPCAST)
            # Past the group's end the sum is infinite and so every weight zero.
            log_sum = tl.load(lse + row + at[0] * size[1] + at[1], mask=there, other=float("inf"))
            deltas = tl.load(delta + row + at[0] * size[1] + at[1], mask=there, other=0.0)
            scores = _scores(queries, keys, place[0], start_h, key[0], columns, table, scale, KERNEL, PRECISION)
            weights = tl.exp2(scores - log_sum[:, None])
            acc_v = tl.dot(tl.trans(weights.to(d_outs.dtype)), d_outs, acc_v, input_precision=PRECISION)
            d_scores = score_gradient(weights, d_outs, values, deltas, PRECISION)
            acc_k = tl.dot(tl.trans(d_scores.to(queries.dtype)), queries, acc_k, input_precision=PRECISION)

    store_rows(head_of(d_k, image, head), row_offsets(d_k, position), valid, acc_k * scale, WIDTH, D)
    store_rows(head_of(d_v, image, head), row_offsets(d_v, position), valid, acc_v, V_WIDTH, DV)


@triton.jit
def bias_gradient_kernel(
    q, k, v, bias, d_out, lse, delta, d_parts, scale, batch, slots, heads, size, tiles, factors,
    KERNEL: tl.constexpr, DILATION: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
    WIDTH: tl.constexpr, V_WIDTH: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
    UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Sums the gradient of the scores over every slots-th image: ``[slots, heads, H, W, window rows, columns]``.

    A program owns one tile of queries and one block of its keys, on the grid's second axis.
    """
    slot, head, group, tile = _locate(heads, tiles, factors, DILATION)
    members = _members(size, group, DILATION)
    first = (tile[0] * TILE[0], tile[1] * TILE[1])
    if (first[0] >= members[0]) | (first[1] >= members[1]):
        return
    place = _block(first, TILE)
    valid = _within(place, members)
    place = _last_if_beyond(place, members)
    starts = _starts(place, members, KERNEL)
    position = _position(place, group, DILATION)
    low_h, high_h = _key_range(first[0], members[0], KERNEL[0], TILE[0])
    low_w, high_w = _key_range(first[1], members[1], KERNEL[1], TILE[1])
    step, blocks = tl.program_id(1), tl.cdiv(high_w - low_w, BLOCK[1])
    key = _block((low_h + step // blocks * BLOCK[0], low_w + step % blocks * BLOCK[1]), BLOCK)
    at, there = _position(key, group, DILATION), _within(key, members)
    table = _bias_of(bias, head, KERNEL)
    columns = _columns(place[1], starts[1], key[1], table, KERNEL)

    acc = tl.zeros((TILE[0] * TILE[1], BLOCK[0] * BLOCK[1]), tl.float32)
    for turn in range(tl.cdiv(batch - slot, slots)):
        image = slot + turn * slots
        queries = load_rows(head_of(q, image, head), row_offsets(q, position), valid, WIDTH, D, UPCAST)
        keys = load_rows(head_of(k, image, head), row_offsets(k, at), there, WIDTH, D, UPCAST)
        values = load_rows(head_of(v, image, head), row_offsets(v, at), there, V_WIDTH, DV, UPCAST)
        d_outs = load_rows(head_of(d_out, image, head), row_offsets(d_out, position), valid, V_WIDTH, DV, UPCAST)
        row = (image.to(tl.int64) * heads + head) * size[0] * size[1] + position[0] * size[1] + position[1]
        log_sum = tl.load(lse + row, mask=valid, other=0.0)
        deltas = tl.load(delta + row, mask=valid, other=0.0)
        scores = _scores(queries, keys, place[0], starts[0], key[0], columns, table, scale, KERNEL, PRECISION)
        acc += score_gradient(tl.exp2(scores - log_sum[:, None]), d_outs, values, deltas, PRECISION)

    slot_h, slot_w = key[0][None, :] - starts[0][:, None], key[1][None, :] - starts[1][:, None]
    inside = (slot_h >= 0) & (slot_h < KERNEL[0]) & (slot_w >= 0) & (slot_w < KERNEL[1])
    row = (slot.to(tl.int64) * heads + head) * size[0] * size[1] + position[0] * size[1] + position[1]
    cell = row[:, None] * (KERNEL[0] * KERNEL[1]) + slot_h * KERNEL[1] + slot_w
    tl.store(d_parts + cell, acc, mask=inside & valid[:, None])
