"""Triton kernels of flow-attention; see :mod:`.flow` for the plan and the names of the sums.

A program owns a part of the tokens of a head. Tensors come as (pointer, stride of images, of tokens, of heads, of
channels); sums ``[B, heads, D]`` and states ``[B, heads, D, Dv]`` are contiguous and float32. a and b are the sigmoids
of queries and keys, zero past the end; a flow is (x + eps) . (sum + eps) + outer_eps, and ``constant`` that of zeros.
"""

import triton
import triton.language as tl

from ._causal_kernels import load_sigmoid
from ._linear_kernels import load_matrix, load_tile, load_vector, place, store_matrix, store_tile, store_vector


@triton.jit
def _flow(x, total, eps, constant):
    return tl.sum(x * total[None, :], 1) + eps * (tl.sum(x, 1) + tl.sum(total, 0)) + constant


@triton.jit
def _competition(source):
    return tl.exp(tl.minimum(tl.maximum(source, -1.0), 1.0))


@triton.jit
def _sink(x, incoming_sum, sink_sum, ratio, eps, constant):
    """(1 / incoming, sigmoid of the sink) of queries."""
    sink = _flow(x, sink_sum, eps, constant) * ratio
    return 1 / _flow(x, incoming_sum, eps, constant), 1 / (1 + tl.exp(-sink))


@triton.jit
def sum_kernel(x, total, d_sum, sums, heads, parts, tokens, part_tokens, eps, constant,
               WIDTH: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Sums over a part: of the features; with ``total``, of those over their flow; with ``d_sum`` too, which is the
    gradient of the latter sum, the gradient of ``total``."""
    image, head, part = place(parts, heads)
    item = image.to(tl.int64) * heads + head
    acc = tl.zeros([D], tl.float32)
    last = tl.minimum((part + 1) * part_tokens, tokens)
    for start in range(part * part_tokens, last, BLOCK):
        token = start + tl.arange(0, BLOCK)
        mask = token < last
        features = load_sigmoid(x, image, head, token, mask, WIDTH, D)
        if total is None:
            acc += tl.sum(features, 0)
        else:
            flow = _flow(features, load_vector(total + item * WIDTH, WIDTH, D), eps, constant)
            weight = tl.where(mask, 1 / flow, 0.0)
            if d_sum is None:
                acc += tl.sum(features * weight[:, None], 0)
            else:
                along = tl.sum(features * load_vector(d_sum + item * WIDTH, WIDTH, D)[None, :], 1)
                acc -= tl.sum((features + eps) * (along * weight * weight)[:, None], 0)
    store_vector(sums + (item * parts + part) * WIDTH, acc, WIDTH, D)


@triton.jit
def reduce_kernel(x, y, weights, source_sum, states, norms, heads, parts, tokens, part_tokens, eps, constant,
                  WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
                  BLOCK: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """The sum over a part of features^T (weight * y), and that of the weights ``[B, heads, N]``; without them the
    weight of a key is its exp(source)."""
    image, head, part = place(parts, heads)
    item = image.to(tl.int64) * heads + head
    state, norm = tl.zeros([D, DV], tl.float32), tl.zeros([BLOCK], tl.float32)
    last = tl.minimum((part + 1) * part_tokens, tokens)
    for start in range(part * part_tokens, last, BLOCK):
        token = start + tl.arange(0, BLOCK)
        mask = token < last
        features = load_sigmoid(x, image, head, token, mask, WIDTH, D)
        if weights is None:
            source = _flow(features, load_vector(source_sum + item * WIDTH, WIDTH, D), eps, constant)
            weight = tl.where(mask, _competition(source), 0.0)
        else:
            weight = tl.load(weights + item * tokens + token, mask=mask, other=0.0)
        norm += weight
        values = load_tile(y, image, head, token, mask, 0, VALUE_WIDTH, DV) * weight[:, None]
        state = tl.dot(tl.trans(features), values, state, input_precision=PRECISION)
    store_matrix(states + (item * parts + part) * (WIDTH * VALUE_WIDTH), state, WIDTH, VALUE_WIDTH, VALUE_WIDTH, D, DV)
    tl.store(norms + item * parts + part, tl.sum(norm, 0))


@triton.jit
def out_kernel(q, incoming_sum, sink_sum, state, out, heads, parts, tokens, ratio, eps, constant,
               WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, D: tl.constexpr, VALUES: tl.constexpr,
               BLOCK: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """The result of a block of queries; parts are blocks."""
    image, head, part = place(parts, heads)
    item = image.to(tl.int64) * heads + head
    token = part * BLOCK + tl.arange(0, BLOCK)
    mask = token < tokens
    a = load_sigmoid(q, image, head, token, mask, WIDTH, D)
    inverse, opened = _sink(a, load_vector(incoming_sum + item * WIDTH, WIDTH, D),
                            load_vector(sink_sum + item * WIDTH, WIDTH, D), ratio, eps, constant)  # fmt: skip
    state += item * (WIDTH * VALUE_WIDTH)
    for start in range(0, VALUE_WIDTH, VALUES):
        left = VALUE_WIDTH - start
        matrix = load_matrix(state + start, WIDTH, left, VALUE_WIDTH, D, VALUES)
        result = tl.dot(a, matrix, input_precision=PRECISION) * (inverse * opened)[:, None]
        store_tile(out, image, head, token, mask, start, result, left, VALUES)


@triton.jit
def _through(y, state, image, head, token, mask, VALUE_WIDTH: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr,
             VALUES: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """``[tokens, D]``: y @ state^T."""
    result = tl.zeros([BLOCK, D], tl.float32)
    for start in range(0, VALUE_WIDTH, VALUES):
        left = VALUE_WIDTH - start
        values = load_tile(y, image, head, token, mask, start, left, VALUES)
        matrix = load_matrix(state + start, WIDTH, left, VALUE_WIDTH, D, VALUES)
        result = tl.dot(values, tl.trans(matrix), result, input_precision=PRECISION)
    return result


@triton.jit
def query_sums_kernel(q, d_out, incoming_sum, sink_sum, state, gates, sums, heads, parts, tokens, part_tokens, ratio,
                      eps, constant, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, D: tl.constexpr,
                      VALUES: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """sigmoid(sink) / incoming of each query, and a part's gradients of ``incoming_sum`` and ``sink_sum``."""
    image, head, part = place(parts, heads)
    item = image.to(tl.int64) * heads + head
    d_incoming_sum, d_sink_sum = tl.zeros([D], tl.float32), tl.zeros([D], tl.float32)
    last = tl.minimum((part + 1) * part_tokens, tokens)
    for start in range(part * part_tokens, last, BLOCK):
        token = start + tl.arange(0, BLOCK)
        mask = token < last
        a = load_sigmoid(q, image, head, token, mask, WIDTH, D)
        inverse, opened = _sink(a, load_vector(incoming_sum + item * WIDTH, WIDTH, D),
                                load_vector(sink_sum + item * WIDTH, WIDTH, D), ratio, eps, constant)  # fmt: skip
        gate = tl.where(mask, inverse * opened, 0.0)
        d_a = _through(d_out, state + item * (WIDTH * VALUE_WIDTH), image, head, token, mask, VALUE_WIDTH, WIDTH, D,
                       VALUES, BLOCK, PRECISION)  # fmt: skip
        along = tl.sum(a * d_a, 1) * gate
        d_incoming_sum -= tl.sum((a + eps) * tl.where(mask, along * inverse, 0.0)[:, None], 0)
        d_sink_sum += tl.sum((a + eps) * (along * (1 - opened) * ratio)[:, None], 0)
        tl.store(gates + item * tokens + token, gate, mask=mask)
    sums += (item * parts + part) * (2 * WIDTH)
    store_vector(sums, d_incoming_sum, WIDTH, D)
    store_vector(sums + WIDTH, d_sink_sum, WIDTH, D)


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
                    VALUES: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """A part's gradients of ``source_sum`` and ``outgoing_sum``."""
    image, head, part = place(parts, heads)
    item = image.to(tl.int64) * heads + head
    d_source_sum, d_outgoing_sum = tl.zeros([D], tl.float32), tl.zeros([D], tl.float32)
    last = tl.minimum((part + 1) * part_tokens, tokens)
    for start in range(part * part_tokens, last, BLOCK):
        token = start + tl.arange(0, BLOCK)
        mask = token < last
        b = load_sigmoid(k, image, head, token, mask, WIDTH, D)
        d_b = _through(v, d_state + item * (WIDTH * VALUE_WIDTH), image, head, token, mask, VALUE_WIDTH, WIDTH, D,
                       VALUES, BLOCK, PRECISION)  # fmt: skip
        _, _, d_source, d_outgoing = _key_rows(
            b, d_b, load_vector(outgoing_sum + item * WIDTH, WIDTH, D),
            load_vector(source_sum + item * WIDTH, WIDTH, D), load_vector(d_sink_sum + item * WIDTH, WIDTH, D),
            tl.load(shares + item), tl.load(overlaps + item), eps, constant)  # fmt: skip
        d_source_sum += tl.sum((b + eps) * tl.where(mask, d_source, 0.0)[:, None], 0)
        d_outgoing_sum += tl.sum((b + eps) * tl.where(mask, d_outgoing, 0.0)[:, None], 0)
    sums += (item * parts + part) * (2 * WIDTH)
    store_vector(sums, d_source_sum, WIDTH, D)
    store_vector(sums + WIDTH, d_outgoing_sum, WIDTH, D)


@triton.jit
def query_gradient_kernel(q, d_out, incoming_sum, sink_sum, d_source_sum, d_outgoing_sum, state, d_q, heads, parts,
                          tokens, ratio, eps, constant, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
                          D: tl.constexpr, VALUES: tl.constexpr, BLOCK: tl.constexpr,
                          PRECISION: tl.constexpr):  # fmt: skip
    """d_q of a block of queries; parts are blocks."""
    image, head, part = place(parts, heads)
    item = image.to(tl.int64) * heads + head
    token = part * BLOCK + tl.arange(0, BLOCK)
    mask = token < tokens
    a = load_sigmoid(q, image, head, token, mask, WIDTH, D)
    d_a = _through(d_out, state + item * (WIDTH * VALUE_WIDTH), image, head, token, mask, VALUE_WIDTH, WIDTH, D,
                   VALUES, BLOCK, PRECISION)  # fmt: skip
    incoming_total = load_vector(incoming_sum + item * WIDTH, WIDTH, D)
    sink_total = load_vector(sink_sum + item * WIDTH, WIDTH, D)
    d_source_total = load_vector(d_source_sum + item * WIDTH, WIDTH, D)
    inverse, opened = _sink(a, incoming_total, sink_total, ratio, eps, constant)
    gate = inverse * opened
    along = tl.sum(a * d_a, 1) * gate
    d_incoming = -inverse * (along + tl.sum(a * d_source_total[None, :], 1) * inverse)
    d_a = d_a * gate[:, None] + d_incoming[:, None] * (incoming_total + eps)[None, :]
    d_a += (along * (1 - opened) * ratio)[:, None] * (sink_total + eps)[None, :]
    d_a += inverse[:, None] * d_source_total[None, :] + load_vector(d_outgoing_sum + item * WIDTH, WIDTH, D)[None, :]
    store_tile(d_q, image, head, token, mask, 0, d_a * a * (1 - a), WIDTH, D)


@triton.jit
def key_gradient_kernel(k, v, outgoing_sum, source_sum, d_sink_sum, d_incoming_sum, d_state, shares, overlaps, d_k,
                        d_v, heads, parts, tokens, eps, constant, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
                        D: tl.constexpr, VALUES: tl.constexpr, BLOCK: tl.constexpr,
                        PRECISION: tl.constexpr):  # fmt: skip
    """d_k and d_v of a block of keys; parts are blocks."""
    image, head, part = place(parts, heads)
    item = image.to(tl.int64) * heads + head
    token = part * BLOCK + tl.arange(0, BLOCK)
    mask = token < tokens
    b = load_sigmoid(k, image, head, token, mask, WIDTH, D)
    d_state += item * (WIDTH * VALUE_WIDTH)
    d_b = _through(v, d_state, image, head, token, mask, VALUE_WIDTH, WIDTH, D, VALUES, BLOCK, PRECISION)
    outgoing_total = load_vector(outgoing_sum + item * WIDTH, WIDTH, D)
    source_total = load_vector(source_sum + item * WIDTH, WIDTH, D)
    d_sink_total = load_vector(d_sink_sum + item * WIDTH, WIDTH, D)
    inverse, share, d_source, d_outgoing = _key_rows(
        b, d_b, outgoing_total, source_total, d_sink_total, tl.load(shares + item), tl.load(overlaps + item), eps,
        constant)  # fmt: skip
    d_b = d_b * share[:, None] + d_source[:, None] * (source_total + eps)[None, :]
    d_b += d_outgoing[:, None] * (outgoing_total + eps)[None, :] + inverse[:, None] * d_sink_total[None, :]
    d_b += load_vector(d_incoming_sum + item * WIDTH, WIDTH, D)[None, :]
    store_tile(d_k, image, head, token, mask, 0, d_b * b * (1 - b), WIDTH, D)
    for start in range(0, VALUE_WIDTH, VALUES):
        left = VALUE_WIDTH - start
        matrix = load_matrix(d_state + start, WIDTH, left, VALUE_WIDTH, D, VALUES)
        d_values = tl.dot(b, matrix, input_precision=PRECISION) * share[:, None]
        store_tile(d_v, image, head, token, mask, start, d_values, left, VALUES)
