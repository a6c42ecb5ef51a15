"""Triton kernels of causal flow-attention, backward; see :mod:`.causal`, for conventions :mod:`._causal_kernels`."""

import triton
import triton.language as tl

from ._causal_kernels import (
    chunk_of,
    column_of,
    earlier,
    load_row,
    load_sigmoid,
    pairs_of,
    stacked,
    store_row,
    sums_along,
)
from ._products import in_parts, product, transposed
from ._token_tiles import load_matrix, load_tile, load_vector, place, store_matrix, store_tile


@triton.jit
def _later(C: tl.constexpr):
    """``[i, j]``: whether the chunk's j-th token is its i-th or comes after."""
    return tl.arange(0, C)[:, None] <= tl.arange(0, C)[None, :]


@triton.jit
def _overlaps(x, y, C: tl.constexpr, GIVEN: tl.constexpr, PRECISION: tl.constexpr):
    """``[C, C]``: x . y of values and gradients, both in parts."""
    return product(x, transposed(y), tl.zeros([C, C], tl.float32), GIVEN, GIVEN, PRECISION)


@triton.jit
def value_kernel(q, k, v, d_out, d_v, rows, d_shares, d_states, heads, tokens, chunks,
                 WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, D: tl.constexpr, VALUES: tl.constexpr, C: tl.constexpr,
                 PRECISION: tl.constexpr, GIVEN: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    """VALUES channels of d_v and what they give to the gradient of the competition ``[B, heads, parts, N]``, from the
    last chunk to the first; and the states after each."""
    start = tl.program_id(1) * VALUES
    left = VALUE_WIDTH - start
    image, head, _ = place(1, heads)
    item = image.to(tl.int64) * heads + head
    d_shares += (item * tl.num_programs(1) + tl.program_id(1)) * tokens
    d_state = tl.zeros([VALUES, D], tl.float32)
    for step in range(chunks):
        chunk = chunks - 1 - step
        token, mask, count = chunk_of(chunk, tokens, C)
        base = d_states + (item * chunks + chunk) * (WIDTH * VALUE_WIDTH) + start * WIDTH
        store_matrix(base, d_state, left, WIDTH, WIDTH, VALUES, D)
        a = in_parts(load_sigmoid(q, image, head, token, mask, WIDTH, D), PRECISION, UPCAST)
        b = in_parts(load_sigmoid(k, image, head, token, mask, WIDTH, D), PRECISION, UPCAST)
        gate = load_row(rows, item, 5, token, tokens, mask)
        pairs = tl.where(_later(C), pairs_of(b, a, C, PRECISION), 0.0) * gate[None, :]
        after = transposed(in_parts(d_state, PRECISION, UPCAST))
        d_values = product(b, after, tl.zeros([C, VALUES], tl.float32), False, False, PRECISION)
        gradient = load_tile(d_out, image, head, token, mask, start, left, VALUES, UPCAST)
        d_values = product(in_parts(pairs, PRECISION, UPCAST), in_parts(gradient, PRECISION, UPCAST), d_values, False,
                           GIVEN, PRECISION)  # fmt: skip
        share = load_row(rows, item, 4, token, tokens, mask)
        store_tile(d_v, image, head, token, mask, start, d_values * share[:, None], left, VALUES)
        values = load_tile(v, image, head, token, mask, start, left, VALUES, True)
        tl.store(d_shares + token, tl.sum(d_values * values, 1), mask=mask)
        gradient = in_parts(gradient.to(tl.float32) * gate[:, None], PRECISION, UPCAST)
        d_state = product(transposed(gradient), a, d_state, False, False, PRECISION)


@triton.jit
def gate_kernel(q, k, v, d_out, rows, states, d_rows, heads, tokens, chunks,
                WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, C: tl.constexpr,
                PRECISION: tl.constexpr, GIVEN: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    """The gradient of a chunk's gates: d_out . (weighted sum of values)."""
    image, head, chunk = place(chunks, heads)
    item = image.to(tl.int64) * heads + head
    token, mask, count = chunk_of(chunk, tokens, C)
    a = in_parts(load_sigmoid(q, image, head, token, mask, WIDTH, D), PRECISION, UPCAST)
    b = in_parts(load_sigmoid(k, image, head, token, mask, WIDTH, D), PRECISION, UPCAST)
    share = load_row(rows, item, 4, token, tokens, mask)
    pairs = tl.where(earlier(C), pairs_of(a, b, C, PRECISION), 0.0) * share[None, :]
    values = in_parts(load_tile(v, image, head, token, mask, 0, VALUE_WIDTH, DV, UPCAST), PRECISION, UPCAST)
    result = product(in_parts(pairs, PRECISION, UPCAST), values, tl.zeros([C, DV], tl.float32), False, GIVEN, PRECISION)
    base = states + (item * chunks + chunk) * (WIDTH * VALUE_WIDTH)
    state = in_parts(load_matrix(base, VALUE_WIDTH, WIDTH, WIDTH, DV, D), PRECISION, UPCAST)
    result = product(a, transposed(state), result, False, False, PRECISION)
    gradient = load_tile(d_out, image, head, token, mask, 0, VALUE_WIDTH, DV, True)
    store_row(d_rows, item, 0, token, tokens, mask, tl.sum(result * gradient, 1))


@triton.jit
def scan_gradient_kernel(q, k, rows, d_rows, d_sums, heads, tokens, chunks, eps, STEP: tl.constexpr,
                         WIDTH: tl.constexpr, D: tl.constexpr, C: tl.constexpr, PRECISION: tl.constexpr,
                         UPCAST: tl.constexpr):  # fmt: skip
    """The gradients of the rows of all tokens of a head, from the last step to the first, and the sums after each
    chunk."""
    image, head, _ = place(1, heads)
    item = image.to(tl.int64) * heads + head
    # Rows: sums of (b + eps) times the gradients of outgoing and of source, of (a + eps) times those of incoming and
    # of sink; eps alone, with which comes eps times the sum over channels.
    totals = tl.zeros([16, D], tl.float32) + tl.where(tl.arange(0, 16)[:, None] == 4, eps, 0.0)
    shared = 0.0
    last = tl.cdiv(tokens, STEP) - 1
    for turn in range(last + 1):
        step = last - turn
        token, mask, count = chunk_of(step, tokens, STEP)
        if (turn == 0) | (step % (C // STEP) == C // STEP - 1):
            base = d_sums + (item * chunks + step // (C // STEP)) * (4 * WIDTH)
            store_matrix(base, totals, 4, WIDTH, WIDTH, 16, D)
        a = in_parts(load_sigmoid(q, image, head, token, mask, WIDTH, D), PRECISION, UPCAST)
        b = in_parts(load_sigmoid(k, image, head, token, mask, WIDTH, D), PRECISION, UPCAST)
        incoming = load_row(rows, item, 0, token, tokens, mask, 1.0)
        outgoing = load_row(rows, item, 1, token, tokens, mask, 1.0)
        source = load_row(rows, item, 2, token, tokens, mask)
        norm = load_row(rows, item, 3, token, tokens, mask, 1.0)
        share, gate = load_row(rows, item, 4, token, tokens, mask), load_row(rows, item, 5, token, tokens, mask)
        along, d_share = load_row(d_rows, item, 0, token, tokens, mask), load_row(d_rows, item, 1, token, tokens, mask)
        d_sink = along * gate * (1 - gate * incoming) / count
        lost = d_share * share / norm
        d_source = share * (d_share - norm / count * (shared + tl.cumsum(lost, 0, reverse=True))) / count
        d_source = tl.where((source >= -1.0) & (source <= 1.0), d_source, 0.0)
        shared += tl.sum(lost, 0)
        after = sums_along(a, totals, tl.zeros([STEP, 16], tl.float32), PRECISION, UPCAST)
        own = tl.where(_later(STEP), pairs_of(a, b, STEP, PRECISION) + column_of(after, 4)[:, None], 0.0)
        d_weight = column_of(after, 1) + tl.sum(own * d_source[None, :], 1)
        d_incoming = -(along * gate + d_weight * count / incoming) / incoming
        after = sums_along(b, totals, tl.zeros([STEP, 16], tl.float32), PRECISION, UPCAST)
        own = tl.where(_later(STEP), pairs_of(b, a, STEP, PRECISION) + column_of(after, 4)[:, None], 0.0)
        d_weight = column_of(after, 3) + tl.sum(own * d_sink[None, :], 1)
        d_outgoing = -d_weight * count / (outgoing * outgoing)
        store_row(d_rows, item, 2, token, tokens, mask, d_source)
        store_row(d_rows, item, 3, token, tokens, mask, d_sink)
        store_row(d_rows, item, 4, token, tokens, mask, d_incoming)
        store_row(d_rows, item, 5, token, tokens, mask, d_outgoing)
        of_keys, of_queries = stacked(d_outgoing, d_source, 0), stacked(d_incoming, d_sink, 2)
        totals += eps * tl.sum(of_keys + of_queries, 1)[:, None]
        totals = product(in_parts(of_keys, PRECISION, UPCAST), b, totals, False, False, PRECISION)
        totals = product(in_parts(of_queries, PRECISION, UPCAST), a, totals, False, False, PRECISION)


@triton.jit
def _load_flows(rows, d_rows, item, token, tokens, mask, count):
    """count / incoming, count / outgoing and the gradients of source, sink, incoming and outgoing."""
    from_queries = count / load_row(rows, item, 0, token, tokens, mask, 1.0)
    from_keys = count / load_row(rows, item, 1, token, tokens, mask, 1.0)
    d_source, d_sink = load_row(d_rows, item, 2, token, tokens, mask), load_row(d_rows, item, 3, token, tokens, mask)
    d_incoming = load_row(d_rows, item, 4, token, tokens, mask)
    d_outgoing = load_row(d_rows, item, 5, token, tokens, mask)
    return from_queries, from_keys, d_source, d_sink, d_incoming, d_outgoing


@triton.jit
def _from_sums(acc, base, d_base, first, second, third, WIDTH: tl.constexpr, D: tl.constexpr):
    """acc and what sums before the chunk, at ``base``, and after it, at ``d_base``, give: first and second times two of
    the former, once and third times two of the latter."""
    acc += first[:, None] * load_vector(base, WIDTH, D)[None, :]
    acc += second[:, None] * load_vector(base + WIDTH, WIDTH, D)[None, :]
    acc += third[:, None] * load_vector(d_base + WIDTH, WIDTH, D)[None, :]
    return acc + load_vector(d_base, WIDTH, D)[None, :]


@triton.jit
def query_gradient_kernel(q, k, v, d_out, d_q, rows, sums, states, d_rows, d_sums, heads, tokens, chunks, eps,
                          WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
                          C: tl.constexpr, PRECISION: tl.constexpr, GIVEN: tl.constexpr,
                          UPCAST: tl.constexpr):  # fmt: skip
    """d_q of a chunk: the gradient of its products a . b, and what comes from the sums around it."""
    image, head, chunk = place(chunks, heads)
    item = image.to(tl.int64) * heads + head
    token, mask, count = chunk_of(chunk, tokens, C)
    share, gate = load_row(rows, item, 4, token, tokens, mask), load_row(rows, item, 5, token, tokens, mask)
    d_outs = in_parts(load_tile(d_out, image, head, token, mask, 0, VALUE_WIDTH, DV, UPCAST), PRECISION, UPCAST)
    values = in_parts(load_tile(v, image, head, token, mask, 0, VALUE_WIDTH, DV, UPCAST), PRECISION, UPCAST)
    d_pairs = _overlaps(d_outs, values, C, GIVEN, PRECISION) * share[None, :]
    base = states + (item * chunks + chunk) * (WIDTH * VALUE_WIDTH)
    state = in_parts(load_matrix(base, VALUE_WIDTH, WIDTH, WIDTH, DV, D), PRECISION, UPCAST)
    d_a = product(d_outs, state, tl.zeros([C, D], tl.float32), GIVEN, False, PRECISION) * gate[:, None]

    from_queries, from_keys, d_source, d_sink, d_incoming, d_outgoing = _load_flows(
        rows, d_rows, item, token, tokens, mask, count
    )
    d_pairs = d_pairs * gate[:, None] + d_incoming[:, None] + d_sink[:, None] * from_keys[None, :]
    from_later = tl.where(_later(C), from_queries[:, None] * d_source[None, :] + d_outgoing[None, :], 0.0)
    d_pairs = tl.where(earlier(C), d_pairs, 0.0) + from_later
    b = in_parts(load_sigmoid(k, image, head, token, mask, WIDTH, D), PRECISION, UPCAST)
    d_a = product(in_parts(d_pairs, PRECISION, UPCAST), b, d_a, False, False, PRECISION)
    place_of_sums = (item * chunks + chunk) * (4 * WIDTH)
    d_a = _from_sums(d_a, sums + place_of_sums, d_sums + place_of_sums, d_incoming, d_sink, from_queries, WIDTH, D)
    d_a += (eps * tl.sum(from_later, 1))[:, None]
    a = load_sigmoid(q, image, head, token, mask, WIDTH, D)
    store_tile(d_q, image, head, token, mask, 0, d_a * a * (1 - a), WIDTH, D)


@triton.jit
def key_gradient_kernel(q, k, v, d_out, d_k, rows, sums, d_rows, d_sums, d_states, heads, tokens, chunks, eps,
                        WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
                        C: tl.constexpr, PRECISION: tl.constexpr, GIVEN: tl.constexpr,
                        UPCAST: tl.constexpr):  # fmt: skip
    """d_k of a chunk, likewise."""
    image, head, chunk = place(chunks, heads)
    item = image.to(tl.int64) * heads + head
    token, mask, count = chunk_of(chunk, tokens, C)
    share, gate = load_row(rows, item, 4, token, tokens, mask), load_row(rows, item, 5, token, tokens, mask)
    d_outs = in_parts(load_tile(d_out, image, head, token, mask, 0, VALUE_WIDTH, DV, UPCAST), PRECISION, UPCAST)
    values = in_parts(load_tile(v, image, head, token, mask, 0, VALUE_WIDTH, DV, UPCAST), PRECISION, UPCAST)
    d_pairs = _overlaps(values, d_outs, C, GIVEN, PRECISION) * gate[None, :]
    base = d_states + (item * chunks + chunk) * (WIDTH * VALUE_WIDTH)
    state = in_parts(load_matrix(base, VALUE_WIDTH, WIDTH, WIDTH, DV, D), PRECISION, UPCAST)
    d_b = product(values, state, tl.zeros([C, D], tl.float32), GIVEN, False, PRECISION) * share[:, None]

    from_queries, from_keys, d_source, d_sink, d_incoming, d_outgoing = _load_flows(
        rows, d_rows, item, token, tokens, mask, count
    )
    from_later = tl.where(_later(C), d_incoming[None, :] + from_keys[:, None] * d_sink[None, :], 0.0)
    d_pairs = tl.where(_later(C), d_pairs * share[:, None], 0.0) + from_later
    d_pairs += tl.where(earlier(C), d_source[:, None] * from_queries[None, :] + d_outgoing[:, None], 0.0)
    a = in_parts(load_sigmoid(q, image, head, token, mask, WIDTH, D), PRECISION, UPCAST)
    d_b = product(in_parts(d_pairs, PRECISION, UPCAST), a, d_b, False, False, PRECISION)
    place_of_sums = (item * chunks + chunk) * (4 * WIDTH) + 2 * WIDTH
    d_b = _from_sums(d_b, sums + place_of_sums, d_sums + place_of_sums, d_outgoing, d_source, from_keys, WIDTH, D)
    d_b += (eps * tl.sum(from_later, 1))[:, None]
    b = load_sigmoid(k, image, head, token, mask, WIDTH, D)
    store_tile(d_k, image, head, token, mask, 0, d_b * b * (1 - b), WIDTH, D)
