"""Triton kernels of causal flow-attention, forward; see :mod:`.causal` for the plan.

A program owns a head and walks along it, by chunks of C tokens or by steps. Tensors come as (pointer, stride of images,
of tokens, of heads, of channels); rows ``[B, heads, 6, N]``, sums ``[B, heads, chunks, 4, D]`` and states ``[B, heads,
chunks, Dv, D]`` are contiguous and float32. a and b are the sigmoids of queries and keys, zero past the end.
"""

import triton
import triton.language as tl

from ._products import in_parts, product, transposed
from ._token_tiles import exp, load_tile, place, store_matrix, store_tile


@triton.jit
def chunk_of(chunk, tokens, C: tl.constexpr):
    """(tokens of a chunk, their mask, their numbers counted from one)."""
    token = chunk * C + tl.arange(0, C)
    return token, token < tokens, (token + 1).to(tl.float32)


@triton.jit
def load_sigmoid(x, image, head, token, mask, WIDTH: tl.constexpr, D: tl.constexpr):
    """``[C, D]``, zero where nothing is to be loaded."""
    # By a square in place of a division, which takes more instructions to keep what is above 2 ** 126.
    root = tl.rsqrt(1 + exp(-load_tile(x, image, head, token, mask, 0, WIDTH, D, True, float("-inf"))))
    return root * root


@triton.jit
def load_row(rows, item, row: tl.constexpr, token, tokens, mask, FILL: tl.constexpr = 0.0):
    """A row of ``[B, heads, 6, N]`` at the tokens of a chunk, FILL past the end."""
    return tl.load(rows + (item * 6 + row) * tokens + token, mask=mask, other=FILL)


@triton.jit
def store_row(rows, item, row: tl.constexpr, token, tokens, mask, values):
    tl.store(rows + (item * 6 + row) * tokens + token, values, mask=mask)


@triton.jit
def earlier(C: tl.constexpr):
    """``[i, j]``: whether the chunk's j-th token is its i-th or comes before."""
    return tl.arange(0, C)[:, None] >= tl.arange(0, C)[None, :]


@triton.jit
def stacked(first, second, ROW: tl.constexpr):
    """``[16, C]``: two vectors as rows ROW and ROW + 1 of zeros."""
    row = tl.arange(0, 16)[:, None]
    return tl.where(row == ROW, first[None, :], tl.where(row == ROW + 1, second[None, :], 0.0))


@triton.jit
def column_of(x, column: tl.constexpr):
    """A column of ``[C, 16]``."""
    return tl.sum(tl.where(tl.arange(0, 16)[None, :] == column, x, 0.0), 1)


@triton.jit
def sums_along(x, totals, acc, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    """acc ``[C, 16]`` and the products of x, in parts, with the rows of ``totals``."""
    return product(x, transposed(in_parts(totals, PRECISION, UPCAST)), acc, False, False, PRECISION)


@triton.jit
def pairs_of(x, y, C: tl.constexpr, PRECISION: tl.constexpr):
    """``[C, C]``: x . y, both in parts."""
    return product(x, transposed(y), tl.zeros([C, C], tl.float32), False, False, PRECISION)


@triton.jit
def scan_kernel(q, k, rows, sums, heads, tokens, chunks, eps, outer_eps, STEP: tl.constexpr, WIDTH: tl.constexpr,
                D: tl.constexpr, C: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    """The rows of all tokens of a head, STEP at a time; unless ``sums`` is None, the running sums before each chunk."""
    image, head, _ = place(1, heads)
    item = image.to(tl.int64) * heads + head
    # Rows: eps and the sums of b, of b count / outgoing, of a and of a count / incoming; eps alone.
    totals = tl.where(tl.arange(0, D)[None, :] < WIDTH, tl.zeros([16, D], tl.float32) + eps, 0.0)
    norm = 0.0
    for step in range(tl.cdiv(tokens, STEP)):
        token, mask, count = chunk_of(step, tokens, STEP)
        if sums is not None and step % (C // STEP) == 0:
            base = sums + (item * chunks + step // (C // STEP)) * (4 * WIDTH)
            store_matrix(base, totals, 4, WIDTH, WIDTH, 16, D)
        a = in_parts(load_sigmoid(q, image, head, token, mask, WIDTH, D), PRECISION, UPCAST)
        b = in_parts(load_sigmoid(k, image, head, token, mask, WIDTH, D), PRECISION, UPCAST)
        # A flow is (x + eps) . (sum + eps) + outer_eps; its sum is over tokens before the step and some of its own.
        constant = tl.where(tl.arange(0, 16) < 4, eps * tl.sum(totals, 1) + outer_eps, 0.0)
        constant = tl.zeros([STEP, 16], tl.float32) + constant[None, :]
        before = sums_along(a, totals, constant, PRECISION, UPCAST)
        beside = sums_along(b, totals, constant, PRECISION, UPCAST)
        a_sum, b_sum = column_of(before, 4), column_of(beside, 4)
        to_a = tl.where(earlier(STEP), pairs_of(a, b, STEP, PRECISION) + b_sum[None, :], 0.0)
        to_b = tl.where(earlier(STEP), pairs_of(b, a, STEP, PRECISION) + a_sum[None, :], 0.0)
        incoming = column_of(before, 0) + tl.sum(to_a, 1)
        outgoing = column_of(beside, 2) + tl.sum(to_b, 1)
        store_row(rows, item, 0, token, tokens, mask, incoming)
        store_row(rows, item, 1, token, tokens, mask, outgoing)
        from_queries, from_keys = tl.where(mask, count / incoming, 0.0), tl.where(mask, count / outgoing, 0.0)
        sink = (column_of(before, 1) + tl.sum(to_a * from_keys[None, :], 1)) / count
        source = (column_of(beside, 3) + tl.sum(to_b * from_queries[None, :], 1)) / count
        store_row(rows, item, 2, token, tokens, mask, source)
        grown = tl.where(mask, exp(tl.minimum(tl.maximum(source, -1.0), 1.0)), 0.0)
        norms = norm + tl.cumsum(grown, 0)
        norm += tl.sum(grown, 0)
        store_row(rows, item, 3, token, tokens, mask, norms)
        store_row(rows, item, 4, token, tokens, mask, grown / norms * count)
        store_row(rows, item, 5, token, tokens, mask, 1 / ((1 + exp(-sink)) * incoming))
        one = tl.full([STEP], 1.0, tl.float32)
        totals = product(in_parts(stacked(one, from_keys, 0), PRECISION, UPCAST), b, totals, False, False, PRECISION)
        totals = product(in_parts(stacked(one, from_queries, 2), PRECISION, UPCAST), a, totals, False, False, PRECISION)


@triton.jit
def out_kernel(q, k, v, out, rows, states, heads, tokens, chunks, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
               D: tl.constexpr, VALUES: tl.constexpr, C: tl.constexpr, PRECISION: tl.constexpr, GIVEN: tl.constexpr,
               UPCAST: tl.constexpr):  # fmt: skip
    """VALUES channels of the results, from the rows; unless ``states`` is None, the states before each chunk too."""
    start = tl.program_id(1) * VALUES
    left = VALUE_WIDTH - start
    image, head, _ = place(1, heads)
    item = image.to(tl.int64) * heads + head
    state = tl.zeros([VALUES, D], tl.float32)
    for chunk in range(chunks):
        token, mask, count = chunk_of(chunk, tokens, C)
        if states is not None:
            base = states + (item * chunks + chunk) * (WIDTH * VALUE_WIDTH) + start * WIDTH
            store_matrix(base, state, left, WIDTH, WIDTH, VALUES, D)
        a = in_parts(load_sigmoid(q, image, head, token, mask, WIDTH, D), PRECISION, UPCAST)
        b = in_parts(load_sigmoid(k, image, head, token, mask, WIDTH, D), PRECISION, UPCAST)
        share = load_row(rows, item, 4, token, tokens, mask)
        pairs = tl.where(earlier(C), pairs_of(a, b, C, PRECISION), 0.0) * share[None, :]
        before = transposed(in_parts(state, PRECISION, UPCAST))
        result = product(a, before, tl.zeros([C, VALUES], tl.float32), False, False, PRECISION)
        values = load_tile(v, image, head, token, mask, start, left, VALUES, UPCAST)
        result = product(in_parts(pairs, PRECISION, UPCAST), in_parts(values, PRECISION, UPCAST), result, False, GIVEN,
                         PRECISION)  # fmt: skip
        gate = load_row(rows, item, 5, token, tokens, mask)
        store_tile(out, image, head, token, mask, start, result * gate[:, None], left, VALUES)
        values = in_parts(values.to(tl.float32) * share[:, None], PRECISION, UPCAST)
        state = product(transposed(values), b, state, False, False, PRECISION)
