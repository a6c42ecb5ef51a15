"""What every blockwise attention does: reading and writing rows, the running softmax, the gradient of the scores.

Dao, "FlashAttention-2", arXiv:2307.08691, algorithms 1 and 2. Scores are in units of log2: exp2 is one instruction.
"""

import triton
import triton.language as tl

LOG2_E = 1.4426950408889634


@triton.jit
def quotient(n, divisor, factors, place: tl.constexpr):
    """n // divisor, by a multiplication with what :func:`.._launch.factors_of` gave for it, where that is exact."""
    # Without the else a compiler goes through the second way, too.
    if factors is None:
        return n // divisor
    else:
        return tl.umulhi(n * 4, factors[place])


@triton.jit
def head_of(x, image, head):
    """(pointer to the first channel of an image's head, stride of channels), from (pointer, strides of images, rows,
    columns, heads, channels)."""
    return x[0] + image.to(tl.int64) * x[1] + head.to(tl.int64) * x[4], x[5]


@triton.jit
def row_offsets(x, position):
    """Offsets in the map ``x`` of positions (row, column), which are int32."""
    return position[0].to(tl.int64) * x[2] + position[1].to(tl.int64) * x[3]


@triton.jit
def load_rows(x, rows, mask, WIDTH: tl.constexpr, BLOCK: tl.constexpr, UPCAST: tl.constexpr):
    """``[rows, BLOCK]``: the channels of a head for each row offset; zeros where ``mask`` is false or past WIDTH.

    ``x`` is what :func:`head_of` returns.
    """
    channel = tl.arange(0, BLOCK)
    mask = mask[:, None]
    if WIDTH != BLOCK:
        mask = mask & (channel[None, :] < WIDTH)
    values = tl.load(x[0] + rows[:, None] + channel[None, :] * x[1], mask=mask, other=0.0)
    return values.to(tl.float32) if UPCAST else values


@triton.jit
def store_rows(x, rows, mask, values, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Stores ``values`` ``[rows, BLOCK]`` where :func:`load_rows` would load them."""
    channel = tl.arange(0, BLOCK)
    mask = mask[:, None]
    if WIDTH != BLOCK:
        mask = mask & (channel[None, :] < WIDTH)
    tl.store(x[0] + rows[:, None] + channel[None, :] * x[1], values.to(x[0].dtype.element_ty), mask=mask)


@triton.jit
def online_softmax(acc, top, total, scores, v, PRECISION: tl.constexpr):
    """Takes in scores ``[queries, keys]`` (-inf: no key) and values ``[keys, Dv]``; returns the new (acc, top, total).

    A row may have had no key so far: its ``top`` is -inf.
    """
    new_top = tl.maximum(top, tl.max(scores, 1))
    base = tl.where(new_top == float("-inf"), 0.0, new_top)
    weights = tl.exp2(scores - base[:, None])
    shrink = tl.exp2(top - base)
    total = total * shrink + tl.sum(weights, 1)
    acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
    return acc, new_top, total


@triton.jit
def score_gradient(weights, d_out, v, delta, PRECISION: tl.constexpr):
    """Gradient ``[queries, keys]`` of the scores: weights * (d_out @ v^T - delta)."""
    return weights * (tl.dot(d_out, tl.trans(v), input_precision=PRECISION) - delta[:, None])


@triton.jit
def query_gradient_step(
    acc, mean_key, exact, scores, log_sum, delta, k, v, d_out, CORRECT: tl.constexpr, PRECISION: tl.constexpr
):
    """Takes in a block of keys; returns the new sums (gradient of the queries, weights @ keys, out . d_out).

    ``delta`` is out . d_out from the stored output, whose rounding would be in every gradient of a row: with CORRECT
    the other two sums are kept, to take it out again by :func:`corrected`.
    """
    weights = tl.exp2(scores - log_sum[:, None])
    products = tl.dot(d_out, tl.trans(v), input_precision=PRECISION)
    d_scores = weights * (products - delta[:, None])
    acc = tl.dot(d_scores.to(k.dtype), k, acc, input_precision=PRECISION)
    if CORRECT:
        exact += tl.sum(weights * products, 1)
        mean_key = tl.dot(weights.to(k.dtype), k, mean_key, input_precision=PRECISION)
    return acc, mean_key, exact


@triton.jit
def corrected(acc, mean_key, exact, delta, CORRECT: tl.constexpr):
    """The sums of :func:`query_gradient_step` as (gradient of the queries, out . d_out)."""
    if CORRECT:
        acc += (delta - exact)[:, None] * mean_key
        delta = exact
    return acc, delta
