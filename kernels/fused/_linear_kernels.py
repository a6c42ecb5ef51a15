"""Triton kernels of attention of linear cost; see :mod:`.linear`.

A token's D channels are taken in two halves, which is what a half-split rotation turns against each other. A state
``[D + 2, W]`` of a head holds the sum of feature^T value, then the sum of the features, then that of the values.
Tensors come as (pointer, stride of images, of tokens, of heads, of channels).
"""

import triton
import triton.language as tl

from ._products import in_parts, product, transposed
from ._token_tiles import exp, load_matrix, load_tile, load_vector, place, store_matrix, store_tile, store_vector


@triton.jit
def halves(x, image, head, token, mask, start, MAGNITUDE: tl.constexpr, WIDTH: tl.constexpr, HALF: tl.constexpr,
            BLOCK_HALF: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    """BLOCK_HALF channels of both halves, from ``start`` on; where there are none, what has no feature."""
    FILL: tl.constexpr = float("-inf") if MAGNITUDE else 0.0
    first = load_tile(x, image, head, token, mask, start, HALF - start, BLOCK_HALF, UPCAST, FILL)
    second = load_tile(x, image, head, token, mask, HALF + start, WIDTH - HALF - start, BLOCK_HALF, UPCAST, FILL)
    return first, second


@triton.jit
def features(first, second, MAGNITUDE: tl.constexpr):
    """elu + 1 of both halves; without MAGNITUDE the halves themselves."""
    if MAGNITUDE:
        first, second = first.to(tl.float32), second.to(tl.float32)
        first = exp(tl.minimum(first, 0)) + tl.maximum(first, 0)
        second = exp(tl.minimum(second, 0)) + tl.maximum(second, 0)
    return first, second


@triton.jit
def rotate(first, second, cos, sin, token, mask, start, BACK: tl.constexpr, HALF: tl.constexpr,
            BLOCK_HALF: tl.constexpr):  # fmt: skip
    """Both halves turned by the tables ``[tokens, HALF]``, or BACK; as they are without tables."""
    if cos is not None:
        channel = start + tl.arange(0, BLOCK_HALF)[None, :]
        offset, inside = token[:, None] * HALF + channel, mask[:, None] & (channel < HALF)
        c, s = tl.load(cos + offset, mask=inside, other=0.0), tl.load(sin + offset, mask=inside, other=0.0)
        if BACK:
            s = -s
        first, second = first * c - second * s, second * c + first * s
    return first, second


@triton.jit
def reduce_kernel(x, y, weights, state, cos, sin, heads, parts, tokens, part_tokens,
                  MAGNITUDE: tl.constexpr, WIDTH: tl.constexpr, HALF: tl.constexpr, VALUE_WIDTH: tl.constexpr,
                  STRIDE: tl.constexpr, BLOCK_HALF: tl.constexpr, BLOCK_VALUE: tl.constexpr, BLOCK: tl.constexpr,
                  PRECISION: tl.constexpr, GIVEN: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    """Sums over a part of the tokens: state ``[B, heads, parts, D + 2, W]`` of x's features and y.

    ``weights`` ``[B, heads, 3, N]`` or None: factors of a token in the sum of products, of features and of values. A
    program takes BLOCK_HALF channels of each half, and BLOCK_VALUE of the values.
    """
    columns = tl.program_id(1) % tl.cdiv(VALUE_WIDTH, BLOCK_VALUE) * BLOCK_VALUE
    rows = tl.program_id(1) // tl.cdiv(VALUE_WIDTH, BLOCK_VALUE) * BLOCK_HALF
    image, head, part = place(parts, heads)
    item = image.to(tl.int64) * heads + head
    first_state = tl.zeros([BLOCK_HALF, BLOCK_VALUE], tl.float32)
    second_state = tl.zeros([BLOCK_HALF, BLOCK_VALUE], tl.float32)
    first_sum, second_sum = tl.zeros([BLOCK_HALF, 16], tl.float32), tl.zeros([BLOCK_HALF, 16], tl.float32)
    value_sum = tl.zeros([16, BLOCK_VALUE], tl.float32)
    # Sums over tokens are products with ones: sums over threads would take more instructions than all the rest.
    ones = in_parts(tl.full([BLOCK, 16], 1.0, tl.float32), PRECISION, UPCAST)
    EXACT: tl.constexpr = GIVEN and not MAGNITUDE and weights is None
    last = tl.minimum((part + 1) * part_tokens, tokens)
    for start in range(part * part_tokens, last, BLOCK):
        token = start + tl.arange(0, BLOCK)
        mask = token < last
        first, second = halves(x, image, head, token, mask, rows, MAGNITUDE, WIDTH, HALF, BLOCK_HALF, UPCAST)
        first, second = features(first, second, MAGNITUDE)
        values = load_tile(y, image, head, token, mask, columns, VALUE_WIDTH - columns, BLOCK_VALUE, UPCAST)
        values = in_parts(values, PRECISION, UPCAST)
        f, s = first, second
        first, second = rotate(first, second, cos, sin, token, mask, rows, False, HALF, BLOCK_HALF)
        of_values = tl.full([16, BLOCK], 1.0, tl.float32)
        if weights is not None:
            base = weights + item * (3 * tokens) + token
            of_products = tl.load(base, mask=mask, other=0.0)[:, None]
            of_features = tl.load(base + tokens, mask=mask, other=0.0)[:, None]
            of_values *= tl.load(base + 2 * tokens, mask=mask, other=0.0)[None, :]
            first, second = first * of_products, second * of_products
            f, s = f * of_features, s * of_features
        f, s = in_parts(f, PRECISION, UPCAST), in_parts(s, PRECISION, UPCAST)
        first_sum = product(transposed(f), ones, first_sum, EXACT, True, PRECISION)
        second_sum = product(transposed(s), ones, second_sum, EXACT, True, PRECISION)
        first, second = in_parts(first, PRECISION, UPCAST), in_parts(second, PRECISION, UPCAST)
        first_state = product(transposed(first), values, first_state, EXACT, GIVEN, PRECISION)
        second_state = product(transposed(second), values, second_state, EXACT, GIVEN, PRECISION)
        if MAGNITUDE:
            of_values = in_parts(of_values, PRECISION, UPCAST)
            value_sum = product(of_values, values, value_sum, weights is None, GIVEN, PRECISION)
    state += (item * parts + part) * ((WIDTH + 2) * STRIDE)
    left, right = HALF - rows, WIDTH - HALF - rows
    width = VALUE_WIDTH - columns
    store_matrix(state + rows * STRIDE + columns, first_state, left, width, STRIDE, BLOCK_HALF, BLOCK_VALUE)
    store_matrix(state + (HALF + rows) * STRIDE + columns, second_state, right, width, STRIDE, BLOCK_HALF, BLOCK_VALUE)
    state += WIDTH * STRIDE
    if columns == 0:
        store_vector(state + rows, tl.max(first_sum, 1), left, BLOCK_HALF)
        store_vector(state + HALF + rows, tl.max(second_sum, 1), right, BLOCK_HALF)
    if rows == 0:
        store_vector(state + STRIDE + columns, tl.max(value_sum, 0), width, BLOCK_VALUE)


@triton.jit
def load_state(state, start, WIDTH: tl.constexpr, HALF: tl.constexpr, VALUE_WIDTH: tl.constexpr,
                STRIDE: tl.constexpr, BLOCK_HALF: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
                UPCAST: tl.constexpr):  # fmt: skip
    """Both halves of a chunk of the state's columns, in parts."""
    left = VALUE_WIDTH - start
    first = load_matrix(state + start, HALF, left, STRIDE, BLOCK_HALF, CHUNK)
    second = load_matrix(state + HALF * STRIDE + start, WIDTH - HALF, left, STRIDE, BLOCK_HALF, CHUNK)
    return in_parts(first, PRECISION, UPCAST), in_parts(second, PRECISION, UPCAST)


@triton.jit
def apply_kernel(q, state, out, cos, sin, heads, parts, tokens, part_tokens, scale, eps,
                 MAGNITUDE: tl.constexpr, WIDTH: tl.constexpr, HALF: tl.constexpr, VALUE_WIDTH: tl.constexpr,
                 STRIDE: tl.constexpr, BLOCK_HALF: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
                 PRECISION: tl.constexpr, GIVEN: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    """The results of a part of the queries from the state of all keys."""
    image, head, part = place(parts, heads)
    state += (image.to(tl.int64) * heads + head) * ((WIDTH + 2) * STRIDE)
    sums = state + WIDTH * STRIDE
    first_sum = load_vector(sums, HALF, BLOCK_HALF)[:, None].broadcast_to(BLOCK_HALF, 16)
    second_sum = load_vector(sums + HALF, WIDTH - HALF, BLOCK_HALF)[:, None].broadcast_to(BLOCK_HALF, 16)
    first_sum, second_sum = in_parts(first_sum, PRECISION, UPCAST), in_parts(second_sum, PRECISION, UPCAST)
    EXACT: tl.constexpr = GIVEN and not MAGNITUDE
    matrices = load_state(state, 0, WIDTH, HALF, VALUE_WIDTH, STRIDE, BLOCK_HALF, CHUNK, PRECISION, UPCAST)
    last = tl.minimum((part + 1) * part_tokens, tokens)
    for first_token in range(part * part_tokens, last, BLOCK):
        token = first_token + tl.arange(0, BLOCK)
        mask = token < last
        first, second = halves(q, image, head, token, mask, 0, MAGNITUDE, WIDTH, HALF, BLOCK_HALF, UPCAST)
        first, second = features(first, second, MAGNITUDE)
        f, s = in_parts(first, PRECISION, UPCAST), in_parts(second, PRECISION, UPCAST)
        # The same in every column.
        z = product(f, first_sum, tl.zeros([BLOCK, 16], tl.float32), EXACT, False, PRECISION)
        z = tl.max(product(s, second_sum, z, EXACT, False, PRECISION), 1)
        first, second = rotate(first, second, cos, sin, token, mask, 0, False, HALF, BLOCK_HALF)
        first, second = in_parts(first, PRECISION, UPCAST), in_parts(second, PRECISION, UPCAST)
        if MAGNITUDE:
            z = z * (scale / tokens)
            weight = (1 + 1 / (z + eps)) * (scale / tokens)
        else:
            weight = 1 / tl.maximum(z, eps)
        for start in range(0, VALUE_WIDTH, CHUNK):
            left = VALUE_WIDTH - start
            result = tl.zeros([BLOCK, CHUNK], tl.float32)
            if CHUNK < VALUE_WIDTH:
                matrices = load_state(
                    state, start, WIDTH, HALF, VALUE_WIDTH, STRIDE, BLOCK_HALF, CHUNK, PRECISION, UPCAST
                )
            result = product(first, matrices[0], result, EXACT, False, PRECISION)
            result = product(second, matrices[1], result, EXACT, False, PRECISION)
            result *= weight[:, None]
            if MAGNITUDE:
                mean = load_vector(sums + STRIDE + start, left, CHUNK) / tokens
                result -= z[:, None] * mean[None, :]
            store_tile(out, image, head, token, mask, start, result, left, CHUNK)
