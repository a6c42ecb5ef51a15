"""Triton kernels of causal flow-attention, backward; see :mod:`.causal`, for conventions :mod:`._causal_kernels`."""

import triton
import triton.language as tl

from ._causal_kernels import chunk_of, earlier, load_row, load_sigmoid, store_row
from ._token_tiles import load_matrix, load_tile, load_vector, place, store_tile, store_vector


@triton.jit
def pair_kernel(q, k, v, d_out, d_v, rows, states, d_states, d_rows, heads, tokens, chunks,
                WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, D: tl.constexpr, VALUES: tl.constexpr,
                C: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """d_v of a chunk; and for each token d_out . (weighted sum of values), and the gradient of its competition."""
    image, head, chunk = place(chunks, heads)
    item = image.to(tl.int64) * heads + head
    token, mask, _ = chunk_of(chunk, tokens, C)
    a = load_sigmoid(q, image, head, token, mask, WIDTH, D)
    b = load_sigmoid(k, image, head, token, mask, WIDTH, D)
    share = load_row(rows, item, 4, 6, token, tokens, mask)
    gate = load_row(rows, item, 5, 6, token, tokens, mask)
    pairs = tl.where(earlier(C), tl.dot(a, tl.trans(b), input_precision=PRECISION), 0.0)
    products = tl.zeros([C, C], tl.float32)
    d_a, d_share = tl.zeros([C, D], tl.float32), tl.zeros([C], tl.float32)
    base = (item * chunks + chunk) * (WIDTH * VALUE_WIDTH)
    for start in range(0, VALUE_WIDTH, VALUES):
        left = VALUE_WIDTH - start
        gradient = load_tile(d_out, image, head, token, mask, start, left, VALUES, True)
        values = load_tile(v, image, head, token, mask, start, left, VALUES, True)
        products = tl.dot(gradient, tl.trans(values), products, input_precision=PRECISION)
        state = load_matrix(states + base + start, WIDTH, left, VALUE_WIDTH, D, VALUES)
        d_a = tl.dot(gradient, tl.trans(state), d_a, input_precision=PRECISION)
    along = tl.sum(a * d_a, 1)
    turned = tl.trans(pairs * gate[:, None])
    # A second loop: the operands of all four products at once would spill.
    for start in range(0, VALUE_WIDTH, VALUES):
        left = VALUE_WIDTH - start
        gradient = load_tile(d_out, image, head, token, mask, start, left, VALUES, True)
        d_state = load_matrix(d_states + base + start, WIDTH, left, VALUE_WIDTH, D, VALUES)
        from_later = tl.dot(b, d_state, input_precision=PRECISION)
        d_share += tl.sum(from_later * load_tile(v, image, head, token, mask, start, left, VALUES, True), 1)
        d_values = tl.dot(turned, gradient, from_later, input_precision=PRECISION) * share[:, None]
        store_tile(d_v, image, head, token, mask, start, d_values, left, VALUES)
    products *= pairs
    along += tl.sum(products * share[None, :], 1)
    d_share += tl.sum(products * gate[:, None], 0)
    store_row(d_rows, item, 0, 6, token, tokens, mask, along)
    store_row(d_rows, item, 1, 6, token, tokens, mask, d_share)


@triton.jit
def scan_gradient_kernel(q, k, rows, d_rows, d_vectors, heads, tokens, chunks, eps, WIDTH: tl.constexpr,
                         D: tl.constexpr, C: tl.constexpr):  # fmt: skip
    """The gradients of the rows of all tokens of a head, from the last chunk to the first, and the sums after each."""
    image, head, _ = place(1, heads)
    item = image.to(tl.int64) * heads + head
    sources, sinks = tl.zeros([D], tl.float32), tl.zeros([D], tl.float32)
    incomings, outgoings = tl.zeros([D], tl.float32), tl.zeros([D], tl.float32)
    shared = tl.sum(tl.zeros([C], tl.float32), 0)
    for step in range(chunks):
        chunk = chunks - 1 - step
        token, mask, count = chunk_of(chunk, tokens, C)
        base = d_vectors + (item * chunks + chunk) * (4 * WIDTH)
        store_vector(base, sources, WIDTH, D)
        store_vector(base + WIDTH, sinks, WIDTH, D)
        store_vector(base + 2 * WIDTH, incomings, WIDTH, D)
        store_vector(base + 3 * WIDTH, outgoings, WIDTH, D)
        a = load_sigmoid(q, image, head, token, mask, WIDTH, D)
        b = load_sigmoid(k, image, head, token, mask, WIDTH, D)
        incoming = tl.where(mask, load_row(rows, item, 0, 6, token, tokens, mask), 1.0)
        outgoing = tl.where(mask, load_row(rows, item, 1, 6, token, tokens, mask), 1.0)
        source = load_row(rows, item, 2, 6, token, tokens, mask)
        norm = tl.where(mask, load_row(rows, item, 3, 6, token, tokens, mask), 1.0)
        share = load_row(rows, item, 4, 6, token, tokens, mask)
        gate = load_row(rows, item, 5, 6, token, tokens, mask)
        along = load_row(d_rows, item, 0, 6, token, tokens, mask)
        d_share = load_row(d_rows, item, 1, 6, token, tokens, mask)
        d_sink = along * gate * (1 - gate * incoming) / count
        parts = d_share * share / norm
        later = shared + tl.cumsum(parts, 0, reverse=True)
        d_source = share * (d_share - norm / count * later) / count
        d_source = tl.where((source >= -1.0) & (source <= 1.0), d_source, 0.0)
        from_keys = (b + eps) * d_source[:, None]
        d_weight = tl.sum(a * (sources[None, :] + tl.cumsum(from_keys, 0, reverse=True)), 1)
        d_incoming = -(along * gate + d_weight * count / incoming) / incoming
        from_queries = (a + eps) * d_sink[:, None]
        d_weight = tl.sum(b * (sinks[None, :] + tl.cumsum(from_queries, 0, reverse=True)), 1)
        d_outgoing = -d_weight * count / (outgoing * outgoing)
        store_row(d_rows, item, 2, 6, token, tokens, mask, d_source)
        store_row(d_rows, item, 3, 6, token, tokens, mask, d_sink)
        store_row(d_rows, item, 4, 6, token, tokens, mask, d_incoming)
        store_row(d_rows, item, 5, 6, token, tokens, mask, d_outgoing)
        sources += tl.sum(from_keys, 0)
        sinks += tl.sum(from_queries, 0)
        incomings += tl.sum((a + eps) * d_incoming[:, None], 0)
        outgoings += tl.sum((b + eps) * d_outgoing[:, None], 0)
        shared += tl.sum(parts, 0)


@triton.jit
def gradient_kernel(q, k, v, d_out, d_q, d_k, rows, vectors, states, d_rows, d_vectors, d_states, heads, tokens,
                    chunks, eps, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, D: tl.constexpr,
                    VALUES: tl.constexpr, C: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """d_q and d_k of a chunk: the gradient of its products a . b, and what comes from the sums around it."""
    image, head, chunk = place(chunks, heads)
    item = image.to(tl.int64) * heads + head
    token, mask, count = chunk_of(chunk, tokens, C)
    share = load_row(rows, item, 4, 6, token, tokens, mask)
    gate = load_row(rows, item, 5, 6, token, tokens, mask)
    from_queries = count / tl.where(mask, load_row(rows, item, 0, 6, token, tokens, mask), 1.0)
    from_keys = count / tl.where(mask, load_row(rows, item, 1, 6, token, tokens, mask), 1.0)
    d_source = load_row(d_rows, item, 2, 6, token, tokens, mask)
    d_sink = load_row(d_rows, item, 3, 6, token, tokens, mask)
    d_incoming = load_row(d_rows, item, 4, 6, token, tokens, mask)
    d_outgoing = load_row(d_rows, item, 5, 6, token, tokens, mask)
    products = tl.zeros([C, C], tl.float32)
    d_a, d_b = tl.zeros([C, D], tl.float32), tl.zeros([C, D], tl.float32)
    base = (item * chunks + chunk) * (WIDTH * VALUE_WIDTH)
    for start in range(0, VALUE_WIDTH, VALUES):
        left = VALUE_WIDTH - start
        gradient = load_tile(d_out, image, head, token, mask, start, left, VALUES, True) * gate[:, None]
        values = load_tile(v, image, head, token, mask, start, left, VALUES, True) * share[:, None]
        products = tl.dot(gradient, tl.trans(values), products, input_precision=PRECISION)
        state = load_matrix(states + base + start, WIDTH, left, VALUE_WIDTH, D, VALUES)
        d_a = tl.dot(gradient, tl.trans(state), d_a, input_precision=PRECISION)
        state = load_matrix(d_states + base + start, WIDTH, left, VALUE_WIDTH, D, VALUES)
        d_b = tl.dot(values, tl.trans(state), d_b, input_precision=PRECISION)
    lower = earlier(C)
    later = tl.arange(0, C)[:, None] <= tl.arange(0, C)[None, :]
    d_pairs = tl.where(lower, products + d_incoming[:, None] + d_sink[:, None] * from_keys[None, :], 0.0)
    d_pairs += tl.where(later, from_queries[:, None] * d_source[None, :] + d_outgoing[None, :], 0.0)
    base = (item * chunks + chunk) * (4 * WIDTH)
    a = load_sigmoid(q, image, head, token, mask, WIDTH, D)
    b = load_sigmoid(k, image, head, token, mask, WIDTH, D)
    d_a = tl.dot(d_pairs, b, d_a, input_precision=PRECISION)
    d_a += from_queries[:, None] * load_vector(d_vectors + base, WIDTH, D)[None, :]
    d_a += d_incoming[:, None] * load_vector(vectors + base + WIDTH, WIDTH, D)[None, :]
    d_a += d_sink[:, None] * load_vector(vectors + base + 3 * WIDTH, WIDTH, D)[None, :]
    d_a += load_vector(d_vectors + base + 3 * WIDTH, WIDTH, D)[None, :]
    rest = tl.sum(tl.where(later, from_queries[:, None] * d_source[None, :] + d_outgoing[None, :], 0.0), 1)
    d_a += (eps * (rest + d_incoming + d_sink))[:, None]
    store_tile(d_q, image, head, token, mask, 0, d_a * a * (1 - a), WIDTH, D)
    d_b = tl.dot(tl.trans(d_pairs), a, d_b, input_precision=PRECISION)
    d_b += d_source[:, None] * load_vector(vectors + base + 2 * WIDTH, WIDTH, D)[None, :]
    d_b += load_vector(d_vectors + base + 2 * WIDTH, WIDTH, D)[None, :]
    d_b += from_keys[:, None] * load_vector(d_vectors + base + WIDTH, WIDTH, D)[None, :]
    d_b += d_outgoing[:, None] * load_vector(vectors + base, WIDTH, D)[None, :]
    rest = tl.sum(tl.where(lower, d_incoming[:, None] + d_sink[:, None] * from_keys[None, :], 0.0), 0)
    d_b += (eps * (rest + d_source + d_outgoing))[:, None]
    store_tile(d_k, image, head, token, mask, 0, d_b * b * (1 - b), WIDTH, D)
