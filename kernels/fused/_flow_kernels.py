"""Triton kernels of flow-attention; see :mod:`.flow` for the plan and the names of the sums.

A program owns a part of the tokens of a head. Tensors come as (pointer, stride of images, of tokens, of heads, of
channels); sums ``[B, heads, D]`` and states ``[B, heads, D, Dv]`` are contiguous and float32. a and b are the sigmoids
of queries and keys, zero past the end; a flow is (x + eps) . (sum + eps) + outer_eps, and ``constant`` that of zeros.
"""

import triton
import triton.language as tl

from ._products import in_parts, product, transposed
from ._token_tiles import exp, load_matrix, load_tile, load_vector, place, store_matrix, store_tile, store_vector


@triton.jit
def _load_sigmoid(x, image, head, token, mask, WIDTH: tl.constexpr, D: tl.constexpr):
    """Zero where nothing is to be loaded."""
    return 1 / (1 + exp(-load_tile(x, image, head, token, mask, 0, WIDTH, D, True, float("-inf"))))


@triton.jit
def _flow(x, total, eps, constant):
    return tl.sum(x * total[None, :], 1) + eps * (tl.sum(x, 1) + tl.sum(total, 0)) + constant


@triton.jit
def _competition(source):
    return exp(tl.minimum(tl.maximum(source, -1.0), 1.0))


@triton.jit
def _sink(x, incoming_sum, sink_sum, ratio, eps, constant):
    """(1 / incoming, sigmoid of the sink) of queries."""
    sink = _flow(x, sink_sum, eps, constant) * ratio
    return 1 / _flow(x, incoming_sum, eps, constant), 1 / (1 + exp(-sink))


@triton.jit
def sum_kernel(x, total, d_sum, sums, heads, parts, tokens, part_tokens, eps, constant,
               WIDTH: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Sums over a part: of the features; with ``total``, of those over their flow; with ``d_sum`` too, which is the
    gradient of the latter sum, the gradient of ``total``."""
    image, head, part = place(parts, heads)
    item = image.to(tl.int64) * heads + head
    # A sum for each token of a block: sums over threads would take more instructions than all the rest.
    acc = tl.zeros([BLOCK, D], tl.float32)
    last = tl.minimum((part + 1) * part_tokens, tokens)
    for start in range(part * part_tokens, last, BLOCK):
        token = start + tl.arange(0, BLOCK)
        mask = token < last
        features = _load_sigmoid(x, image, head, token, mask, WIDTH, D)
        if total is None:
            acc += features
        else:
            flow = _flow(features, load_vector(total + item * WIDTH, WIDTH, D), eps, constant)
            weight = tl.where(mask, 1 / flow, 0.0)
            if d_sum is None:
                acc += features * weight[:, None]
            else:
                along = tl.sum(features * load_vector(d_sum + item * WIDTH, WIDTH, D)[None, :], 1)
                acc -= (features + eps) * (along * weight * weight)[:, None]
    store_vector(sums + (item * parts + part) * WIDTH, tl.sum(acc, 0), WIDTH, D)


@triton.jit
def reduce_kernel(x, y, weights, source_sum, states, norms, heads, parts, tokens, part_tokens, eps, constant,
                  WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, D: tl.constexpr, BLOCK_VALUE: tl.constexpr,
                  BLOCK: tl.constexpr, PRECISION: tl.constexpr, GIVEN: tl.constexpr,
                  UPCAST: tl.constexpr):  # fmt: skip
    """The sum over a part of features^T (weight * y), and that of the weights ``[B, heads, N]``; without them the
    weight of a key is its exp(source). A program takes BLOCK_VALUE channels of y."""
    columns = tl.program_id(1) * BLOCK_VALUE
    image, head, part = place(parts, heads)
    item = image.to(tl.int64) * heads + head
    state, norm = tl.zeros([D, BLOCK_VALUE], tl.float32), tl.zeros([BLOCK], tl.float32)
    last = tl.minimum((part + 1) * part_tokens, tokens)
    for start in range(part * part_tokens, last, BLOCK):
        token = start + tl.arange(0, BLOCK)
        mask = token < last
        features = _load_sigmoid(x, image, head, token, mask, WIDTH, D)
        if weights is None:
            source = _flow(features, load_vector(source_sum + item * WIDTH, WIDTH, D), eps, constant)
            weight = tl.where(mask, _competition(source), 0.0)
        else:
            weight = tl.load(weights + item * tokens + token, mask=mask, other=0.0)
        norm += weight
        values = load_tile(y, image, head, token, mask, columns, VALUE_WIDTH - columns, BLOCK_VALUE, UPCAST)
        features = transposed(in_parts(features * weight[:, None], PRECISION, UPCAST))
        state = product(features, in_parts(values, PRECISION, UPCAST), state, False, GIVEN, PRECISION)
    state_of_part = states + (item * parts + part) * (WIDTH * VALUE_WIDTH) + columns
    store_matrix(state_of_part, state, WIDTH, VALUE_WIDTH - columns, VALUE_WIDTH, D, BLOCK_VALUE)
    if columns == 0:
        tl.store(norms + item * parts + part, tl.sum(norm, 0))


@triton.jit
def _load_state(state, start, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, D: tl.constexpr, VALUES: tl.constexpr,
                PRECISION: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    """A chunk of the state's columns, in parts."""
    matrix = load_matrix(state + start, WIDTH, VALUE_WIDTH - start, VALUE_WIDTH, D, VALUES)
    return in_parts(matrix, PRECISION, UPCAST)


@triton.jit
def out_kernel(q, incoming_sum, sink_sum, state, out, heads, parts, tokens, part_tokens, ratio, eps, constant,
               WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, D: tl.constexpr, VALUES: tl.constexpr,
               BLOCK: tl.constexpr, PRECISION: tl.constexpr, GIVEN: tl.constexpr,
               UPCAST: tl.constexpr):  # fmt: skip
    """The results of a part of the queries."""
    image, head, part = place(parts, heads)
    item = image.to(tl.int64) * heads + head
    incoming_total = load_vector(incoming_sum + item * WIDTH, WIDTH, D)
    sink_total = load_vector(sink_sum + item * WIDTH, WIDTH, D)
    state += item * (WIDTH * VALUE_WIDTH)
    matrix = _load_state(state, 0, WIDTH, VALUE_WIDTH, D, VALUES, PRECISION, UPCAST)
    last = tl.minimum((part + 1) * part_tokens, tokens)
    for first in range(part * part_tokens, last, BLOCK):
        token = first + tl.arange(0, BLOCK)
        mask = token < last
        a = _load_sigmoid(q, image, head, token, mask, WIDTH, D)
        inverse, opened = _sink(a, incoming_total, sink_total, ratio, eps, constant)
        a = in_parts(a, PRECISION, UPCAST)
        for start in range(0, VALUE_WIDTH, VALUES):
            if VALUES < VALUE_WIDTH:
                matrix = _load_state(state, start, WIDTH, VALUE_WIDTH, D, VALUES, PRECISION, UPCAST)
            result = product(a, matrix, tl.zeros([BLOCK, VALUES], tl.float32), False, False, PRECISION)
            result *= (inverse * opened)[:, None]
            store_tile(out, image, head, token, mask, start, result, VALUE_WIDTH - start, VALUES)


@triton.jit
def _through(y, matrix, state, image, head, token, mask, VALUE_WIDTH: tl.constexpr, WIDTH: tl.constexpr,
             D: tl.constexpr, VALUES: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
             GIVEN: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    """``[tokens, D]``: y @ state^T; ``matrix`` is the first chunk of the state in parts."""
    result = tl.zeros([BLOCK, D], tl.float32)
    for start in range(0, VALUE_WIDTH, VALUES):
        if VALUES < VALUE_WIDTH:
            matrix = _load_state(state, start, WIDTH, VALUE_WIDTH, D, VALUES, PRECISION, UPCAST)
        values = load_tile(y, image, head, token, mask, start, VALUE_WIDTH - start, VALUES, UPCAST)
        values = in_parts(values, PRECISION, UPCAST)
        result = product(values, transposed(matrix), result, GIVEN, False, PRECISION)
    return result


@triton.jit
def query_sums_kernel(q, d_out, incoming_sum, sink_sum, state, gates, sums, heads, parts, tokens, part_tokens, ratio,
                      eps, constant, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, D: tl.constexpr,
                      VALUES: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr, GIVEN: tl.constexpr,
                      UPCAST: tl.constexpr):  # fmt: skip
    """sigmoid(sink) / incoming of each query, and a part's gradients of ``incoming_sum`` and ``sink_sum``."""
    image, head, part = place(parts, heads)
    item = image.to(tl.int64) * heads + head
    incoming_total = load_vector(incoming_sum + item * WIDTH, WIDTH, D)
    sink_total = load_vector(sink_sum + item * WIDTH, WIDTH, D)
    state += item * (WIDTH * VALUE_WIDTH)
    matrix = _load_state(state, 0, WIDTH, VALUE_WIDTH, D, VALUES, PRECISION, UPCAST)
    d_incoming_sum, d_sink_sum = tl.zeros([BLOCK, D], tl.float32), tl.zeros([BLOCK, D], tl.float32)
    last = tl.minimum((part + 1) * part_tokens, tokens)
    for start in range(part * part_tokens, last, BLOCK):
        token = start + tl.arange(0, BLOCK)
        mask = token < last
        a = _load_sigmoid(q, image, head, token, mask, WIDTH, D)
        inverse, opened = _sink(a, incoming_total, sink_total, ratio, eps, constant)
        gate = tl.where(mask, inverse * opened, 0.0)
        d_a = _through(d_out, matrix, state, image, head, token, mask, VALUE_WIDTH, WIDTH, D, VALUES, BLOCK,
                       PRECISION, GIVEN, UPCAST)  # fmt: skip
        along = tl.sum(a * d_a, 1) * gate
        d_incoming_sum -= (a + eps) * tl.where(mask, along * inverse, 0.0)[:, None]
        d_sink_sum += (a + eps) * (along * (1 - opened) * ratio)[:, None]
        tl.store(gates + item * tokens + token, gate, mask=mask)
    sums += (item * parts + part) * (2 * WIDTH)
    store_vector(sums, tl.sum(d_incoming_sum, 0), WIDTH, D)
    store_vector(sums + WIDTH, tl.sum(d_sink_sum, 0), WIDTH, D)


@triton.jit
def _key_rows(b, d_b, outgoing_sum, source_sum, d_sink_sum, share, overlap, eps, constant):
    """(1 / outgoing, share of the competition, gradient of source, gradient of outgoing) of keys."""
    inverse = 1 / _flow(b, outgoing_sum, eps, constant)
    source = _flow(b, source_sum, eps, constant)
    share = _competition(source) * share
    d_source = share * (tl.sum(b * d_b, 1) - overlap)
    d_source = tl.where((source >= -1.0) & (source <= 1.0), d_source, 0.0)
    return inverse, share, d_source, -tl.sum(b * d_sink_sum[None, :], 1) * inverse * inverse


@triton.jit
def key_sums_kernel(k, v, outgoing_sum, source_sum, d_sink_sum, d_state, shares, overlaps, sums, heads, parts, tokens,
                    part_tokens, eps, constant, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, D: tl.constexpr,
                    VALUES: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr, GIVEN: tl.constexpr,
                    UPCAST: tl.constexpr):  # fmt: skip
    """A part's gradients of ``source_sum`` and ``outgoing_sum``."""
    image, head, part = place(parts, heads)
    item = image.to(tl.int64) * heads + head
    outgoing_total = load_vector(outgoing_sum + item * WIDTH, WIDTH, D)
    source_total = load_vector(source_sum + item * WIDTH, WIDTH, D)
    d_sink_total = load_vector(d_sink_sum + item * WIDTH, WIDTH, D)
    share, overlap = tl.load(shares + item), tl.load(overlaps + item)
    d_state += item * (WIDTH * VALUE_WIDTH)
    matrix = _load_state(d_state, 0, WIDTH, VALUE_WIDTH, D, VALUES, PRECISION, UPCAST)
    d_source_sum, d_outgoing_sum = tl.zeros([BLOCK, D], tl.float32), tl.zeros([BLOCK, D], tl.float32)
    last = tl.minimum((part + 1) * part_tokens, tokens)
    for start in range(part * part_tokens, last, BLOCK):
        token = start + tl.arange(0, BLOCK)
        mask = token < last
        b = _load_sigmoid(k, image, head, token, mask, WIDTH, D)
        d_b = _through(v, matrix, d_state, image, head, token, mask, VALUE_WIDTH, WIDTH, D, VALUES, BLOCK, PRECISION,
                       GIVEN, UPCAST)  # fmt: skip
        _, _, d_source, d_outgoing = _key_rows(
            b, d_b, outgoing_total, source_total, d_sink_total, share, overlap, eps, constant
        )
        d_source_sum += (b + eps) * tl.where(mask, d_source, 0.0)[:, None]
        d_outgoing_sum += (b + eps) * tl.where(mask, d_outgoing, 0.0)[:, None]
    sums += (item * parts + part) * (2 * WIDTH)
    store_vector(sums, tl.sum(d_source_sum, 0), WIDTH, D)
    store_vector(sums + WIDTH, tl.sum(d_outgoing_sum, 0), WIDTH, D)


@triton.jit
def query_gradient_kernel(q, d_out, incoming_sum, sink_sum, d_source_sum, d_outgoing_sum, state, d_q, heads, parts,
                          tokens, part_tokens, ratio, eps, constant, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
                          D: tl.constexpr, VALUES: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
                          GIVEN: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    """d_q of a part of the queries."""
    image, head, part = place(parts, heads)
    item = image.to(tl.int64) * heads + head
    incoming_total = load_vector(incoming_sum + item * WIDTH, WIDTH, D)
    sink_total = load_vector(sink_sum + item * WIDTH, WIDTH, D)
    d_source_total = load_vector(d_source_sum + item * WIDTH, WIDTH, D)
    d_outgoing_total = load_vector(d_outgoing_sum + item * WIDTH, WIDTH, D)
    state += item * (WIDTH * VALUE_WIDTH)
    matrix = _load_state(state, 0, WIDTH, VALUE_WIDTH, D, VALUES, PRECISION, UPCAST)
    last = tl.minimum((part + 1) * part_tokens, tokens)
    for start in range(part * part_tokens, last, BLOCK):
        token = start + tl.arange(0, BLOCK)
        mask = token < last
        a = _load_sigmoid(q, image, head, token, mask, WIDTH, D)
        d_a = _through(d_out, matrix, state, image, head, token, mask, VALUE_WIDTH, WIDTH, D, VALUES, BLOCK,
                       PRECISION, GIVEN, UPCAST)  # fmt: skip
        inverse, opened = _sink(a, incoming_total, sink_total, ratio, eps, constant)
        gate = inverse * opened
        along = tl.sum(a * d_a, 1) * gate
        d_incoming = -inverse * (along + tl.sum(a * d_source_total[None, :], 1) * inverse)
        d_a = d_a * gate[:, None] + d_incoming[:, None] * (incoming_total + eps)[None, :]
        d_a += (along * (1 - opened) * ratio)[:, None] * (sink_total + eps)[None, :]
        d_a += inverse[:, None] * d_source_total[None, :] + d_outgoing_total[None, :]
        store_tile(d_q, image, head, token, mask, 0, d_a * a * (1 - a), WIDTH, D)


@triton.jit
def key_gradient_kernel(k, v, outgoing_sum, source_sum, d_sink_sum, d_incoming_sum, d_state, shares, overlaps, d_k,
                        d_v, heads, parts, tokens, part_tokens, eps, constant, WIDTH: tl.constexpr,
                        VALUE_WIDTH: tl.constexpr, D: tl.constexpr, VALUES: tl.constexpr, BLOCK: tl.constexpr,
                        PRECISION: tl.constexpr, GIVEN: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    """d_k and d_v of a part of the keys."""
    image, head, part = place(parts, heads)
    item = image.to(tl.int64) * heads + head
    outgoing_total = load_vector(outgoing_sum + item * WIDTH, WIDTH, D)
    source_total = load_vector(source_sum + item * WIDTH, WIDTH, D)
    d_sink_total = load_vector(d_sink_sum + item * WIDTH, WIDTH, D)
    d_incoming_total = load_vector(d_incoming_sum + item * WIDTH, WIDTH, D)
    whole_share, overlap = tl.load(shares + item), tl.load(overlaps + item)
    d_state += item * (WIDTH * VALUE_WIDTH)
    matrix = _load_state(d_state, 0, WIDTH, VALUE_WIDTH, D, VALUES, PRECISION, UPCAST)
    last = tl.minimum((part + 1) * part_tokens, tokens)
    for first in range(part * part_tokens, last, BLOCK):
        token = first + tl.arange(0, BLOCK)
        mask = token < last
        b = _load_sigmoid(k, image, head, token, mask, WIDTH, D)
        d_b = _through(v, matrix, d_state, image, head, token, mask, VALUE_WIDTH, WIDTH, D, VALUES, BLOCK, PRECISION,
                       GIVEN, UPCAST)  # fmt: skip
        inverse, share, d_source, d_outgoing = _key_rows(
            b, d_b, outgoing_total, source_total, d_sink_total, whole_share, overlap, eps, constant
        )
        d_b = d_b * share[:, None] + d_source[:, None] * (source_total + eps)[None, :]
        d_b += d_outgoing[:, None] * (outgoing_total + eps)[None, :] + inverse[:, None] * d_sink_total[None, :]
        d_b += d_incoming_total[None, :]
        store_tile(d_k, image, head, token, mask, 0, d_b * b * (1 - b), WIDTH, D)
        b = in_parts(b, PRECISION, UPCAST)
        for start in range(0, VALUE_WIDTH, VALUES):
            if VALUES < VALUE_WIDTH:
                matrix = _load_state(d_state, start, WIDTH, VALUE_WIDTH, D, VALUES, PRECISION, UPCAST)
            d_values = product(b, matrix, tl.zeros([BLOCK, VALUES], tl.float32), False, False, PRECISION)
            store_tile(d_v, image, head, token, mask, start, d_values * share[:, None], VALUE_WIDTH - start, VALUES)
