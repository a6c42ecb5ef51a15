"""Triton kernels of causal flow-attention, forward; see :mod:`.causal` for the plan and the names of rows and vectors.

A program owns a chunk of C tokens of a head; the scans own a head and walk over its chunks. Tensors come as (pointer,
stride of images, of tokens, of heads, of channels). a and b are the sigmoids of queries and keys, zero past the end.
"""

import triton
import triton.language as tl

from ._token_tiles import load_matrix, load_tile, place, store_matrix, store_tile, store_vector


@triton.jit
def chunk_of(chunk, tokens, C: tl.constexpr):
    """(tokens of a chunk, their mask, their numbers counted from one)."""
    token = chunk * C + tl.arange(0, C)
    return token, token < tokens, (token + 1).to(tl.float32)


@triton.jit
def load_sigmoid(x, image, head, token, mask, WIDTH: tl.constexpr, D: tl.constexpr):
    values = load_tile(x, image, head, token, mask, 0, WIDTH, D, True)
    inside = mask[:, None] & (tl.arange(0, D) < WIDTH)[None, :]
    return tl.where(inside, 1 / (1 + tl.exp(-values)), 0.0)


@triton.jit
def load_row(rows, item, row: tl.constexpr, number: tl.constexpr, token, tokens, mask):
    """A row of ``[B, heads, number, N]`` at the tokens of a chunk, zero past the end."""
    return tl.load(rows + (item * number + row) * tokens + token, mask=mask, other=0.0)


@triton.jit
def store_row(rows, item, row: tl.constexpr, number: tl.constexpr, token, tokens, mask, values):
    tl.store(rows + (item * number + row) * tokens + token, values, mask=mask)


@triton.jit
def earlier(C: tl.constexpr):
    """``[i, j]``: whether the chunk's j-th token is its i-th or comes before."""
    return tl.arange(0, C)[:, None] >= tl.arange(0, C)[None, :]


@triton.jit
def _flow(x, running, eps, constant):
    """(x + eps) . (running sum + eps) + outer_eps; ``constant``: that of zeros."""
    return tl.sum((x + eps) * running, 1) + eps * tl.sum(x, 1) + constant


@triton.jit
def scan_kernel(q, k, rows, vectors, heads, tokens, chunks, eps, constant, WIDTH: tl.constexpr, D: tl.constexpr,
                C: tl.constexpr):  # fmt: skip
    """The rows of all tokens of a head, and the running sums before each chunk."""
    image, head, _ = place(1, heads)
    item = image.to(tl.int64) * heads + head
    a_total, b_total = tl.zeros([D], tl.float32), tl.zeros([D], tl.float32)
    source_total, sink_total = tl.zeros([D], tl.float32), tl.zeros([D], tl.float32)
    norm = tl.sum(tl.zeros([C], tl.float32), 0)
    for chunk in range(chunks):
        token, mask, count = chunk_of(chunk, tokens, C)
        base = vectors + (item * chunks + chunk) * (4 * WIDTH)
        store_vector(base, a_total, WIDTH, D)
        store_vector(base + WIDTH, b_total, WIDTH, D)
        store_vector(base + 2 * WIDTH, source_total, WIDTH, D)
        store_vector(base + 3 * WIDTH, sink_total, WIDTH, D)
        a = load_sigmoid(q, image, head, token, mask, WIDTH, D)
        b = load_sigmoid(k, image, head, token, mask, WIDTH, D)
        incoming = _flow(a, b_total[None, :] + tl.cumsum(b, 0), eps, constant)
        outgoing = _flow(b, a_total[None, :] + tl.cumsum(a, 0), eps, constant)
        from_queries = a * tl.where(mask, count / incoming, 0.0)[:, None]
        from_keys = b * tl.where(mask, count / outgoing, 0.0)[:, None]
        sink = _flow(a, sink_total[None, :] + tl.cumsum(from_keys, 0), eps, constant) / count
        source = _flow(b, source_total[None, :] + tl.cumsum(from_queries, 0), eps, constant) / count
        grown = tl.where(mask, tl.exp(tl.minimum(tl.maximum(source, -1.0), 1.0)), 0.0)
        norms = norm + tl.cumsum(grown, 0)
        store_row(rows, item, 0, 6, token, tokens, mask, incoming)
        store_row(rows, item, 1, 6, token, tokens, mask, outgoing)
        store_row(rows, item, 2, 6, token, tokens, mask, source)
        store_row(rows, item, 3, 6, token, tokens, mask, norms)
        store_row(rows, item, 4, 6, token, tokens, mask, grown / norms * count)
        store_row(rows, item, 5, 6, token, tokens, mask, 1 / ((1 + tl.exp(-sink)) * incoming))
        a_total += tl.sum(a, 0)
        b_total += tl.sum(b, 0)
        source_total += tl.sum(from_queries, 0)
        sink_total += tl.sum(from_keys, 0)
        norm += tl.sum(grown, 0)


@triton.jit
def state_kernel(x, y, rows, states, heads, tokens, chunks, ROW: tl.constexpr, WIDTH: tl.constexpr,
                 VALUE_WIDTH: tl.constexpr, D: tl.constexpr, VALUES: tl.constexpr, C: tl.constexpr,
                 PRECISION: tl.constexpr):  # fmt: skip
    """The sum over each chunk of sigmoid(x)^T (row * y): ``[B, heads, chunks, D, Dv]``."""
    image, head, chunk = place(chunks, heads)
    item = image.to(tl.int64) * heads + head
    token, mask, _ = chunk_of(chunk, tokens, C)
    features = tl.trans(load_sigmoid(x, image, head, token, mask, WIDTH, D))
    weight = load_row(rows, item, ROW, 6, token, tokens, mask)
    base = states + (item * chunks + chunk) * (WIDTH * VALUE_WIDTH)
    for start in range(0, VALUE_WIDTH, VALUES):
        left = VALUE_WIDTH - start
        values = load_tile(y, image, head, token, mask, start, left, VALUES, True) * weight[:, None]
        state = tl.dot(features, values, input_precision=PRECISION)
        store_matrix(base + start, state, WIDTH, left, VALUE_WIDTH, D, VALUES)


@triton.jit
def out_kernel(q, k, v, rows, states, out, heads, tokens, chunks, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
               D: tl.constexpr, VALUES: tl.constexpr, C: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """The result of a chunk from its own pairs and the state before it."""
    image, head, chunk = place(chunks, heads)
    item = image.to(tl.int64) * heads + head
    token, mask, _ = chunk_of(chunk, tokens, C)
    a = load_sigmoid(q, image, head, token, mask, WIDTH, D)
    b = load_sigmoid(k, image, head, token, mask, WIDTH, D)
    pairs = tl.where(earlier(C), tl.dot(a, tl.trans(b), input_precision=PRECISION), 0.0)
    pairs *= load_row(rows, item, 4, 6, token, tokens, mask)[None, :]
    gate = load_row(rows, item, 5, 6, token, tokens, mask)
    base = states + (item * chunks + chunk) * (WIDTH * VALUE_WIDTH)
    for start in range(0, VALUE_WIDTH, VALUES):
        left = VALUE_WIDTH - start
        values = load_tile(v, image, head, token, mask, start, left, VALUES, True)
        result = tl.dot(pairs, values, input_precision=PRECISION)
        state = load_matrix(base + start, WIDTH, left, VALUE_WIDTH, D, VALUES)
        result = tl.dot(a, state, result, input_precision=PRECISION) * gate[:, None]
        store_tile(out, image, head, token, mask, start, result, left, VALUES)
