"""Triton kernels of the gradients of attention of linear cost; the sum between them is ``reduce_kernel``."""

import triton
import triton.language as tl

from ._linear_kernels import features, halves, load_state, rotate
from ._products import in_parts, product, transposed
from ._token_tiles import exp, load_tile, load_vector, place, store_tile


@triton.jit
def query_gradient_kernel(q, d_out, state, d_q, weights, cos, sin, heads, parts, tokens, part_tokens, scale, eps,
                          MAGNITUDE: tl.constexpr, WIDTH: tl.constexpr, HALF: tl.constexpr,
                          VALUE_WIDTH: tl.constexpr, STRIDE: tl.constexpr, BLOCK_HALF: tl.constexpr,
                          CHUNK: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr, GIVEN: tl.constexpr,
                          UPCAST: tl.constexpr):  # fmt: skip
    """d_q of a part of the queries, and the weights with which :func:`reduce_kernel` makes the state's gradient."""
    image, head, part = place(parts, heads)
    item = image.to(tl.int64) * heads + head
    state += item * ((WIDTH + 2) * STRIDE)
    sums = state + WIDTH * STRIDE
    first_sum = load_vector(sums, HALF, BLOCK_HALF)[None, :]
    second_sum = load_vector(sums + HALF, WIDTH - HALF, BLOCK_HALF)[None, :]
    matrices = load_state(state, 0, WIDTH, HALF, VALUE_WIDTH, STRIDE, BLOCK_HALF, CHUNK, PRECISION, UPCAST)
    last = tl.minimum((part + 1) * part_tokens, tokens)
    for first_token in range(part * part_tokens, last, BLOCK):
        token = first_token + tl.arange(0, BLOCK)
        mask = token < last
        x_first, x_second = halves(q, image, head, token, mask, 0, MAGNITUDE, WIDTH, HALF, BLOCK_HALF, UPCAST)
        first, second = features(x_first, x_second, MAGNITUDE)
        z = tl.sum(first * first_sum + second * second_sum, 1)
        first, second = rotate(first, second, cos, sin, token, mask, 0, False, HALF, BLOCK_HALF)
        d_first = tl.zeros([BLOCK, BLOCK_HALF], tl.float32)
        d_second = tl.zeros([BLOCK, BLOCK_HALF], tl.float32)
        along_mean = tl.zeros([BLOCK], tl.float32)
        for start in range(0, VALUE_WIDTH, CHUNK):
            left = VALUE_WIDTH - start
            gradient = load_tile(d_out, image, head, token, mask, start, left, CHUNK, UPCAST)
            parts_of = in_parts(gradient, PRECISION, UPCAST)
            if CHUNK < VALUE_WIDTH:
                matrices = load_state(
                    state, start, WIDTH, HALF, VALUE_WIDTH, STRIDE, BLOCK_HALF, CHUNK, PRECISION, UPCAST
                )
            d_first = product(parts_of, transposed(matrices[0]), d_first, GIVEN, False, PRECISION)
            d_second = product(parts_of, transposed(matrices[1]), d_second, GIVEN, False, PRECISION)
            if MAGNITUDE:
                mean = load_vector(sums + STRIDE + start, left, CHUNK)
                along_mean += tl.sum(gradient.to(tl.float32) * mean[None, :], 1)
        # d_out . (features @ state), without the product of the forward pass.
        along = tl.sum(first * d_first + second * d_second, 1)
        base = weights + item * (3 * tokens) + token
        if MAGNITUDE:
            factor = scale / tokens
            z = z * factor
            d_z = -along * factor / ((z + eps) * (z + eps)) - along_mean / tokens
            weight = (1 + 1 / (z + eps)) * factor
            d_sum = d_z * factor
            tl.store(base + 2 * tokens, -z / tokens, mask=mask)
        else:
            weight = 1 / tl.maximum(z, eps)
            d_sum = tl.where(z >= eps, -along * weight * weight, 0.0)
            tl.store(base + 2 * tokens, tl.zeros_like(z), mask=mask)
        tl.store(base, weight, mask=mask)
        tl.store(base + tokens, d_sum, mask=mask)
        d_first, d_second = d_first * weight[:, None], d_second * weight[:, None]
        d_first, d_second = rotate(d_first, d_second, cos, sin, token, mask, 0, True, HALF, BLOCK_HALF)
        d_first += d_sum[:, None] * first_sum
        d_second += d_sum[:, None] * second_sum
        if MAGNITUDE:
            d_first *= exp(tl.minimum(x_first.to(tl.float32), 0))
            d_second *= exp(tl.minimum(x_second.to(tl.float32), 0))
        store_tile(d_q, image, head, token, mask, 0, d_first, HALF, BLOCK_HALF)
        store_tile(d_q, image, head, token, mask, HALF, d_second, WIDTH - HALF, BLOCK_HALF)


@triton.jit
def key_gradient_kernel(k, v, state, d_k, d_v, cos, sin, heads, parts, tokens, part_tokens,
                        MAGNITUDE: tl.constexpr, WIDTH: tl.constexpr, HALF: tl.constexpr, VALUE_WIDTH: tl.constexpr,
                        STRIDE: tl.constexpr, BLOCK_HALF: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
                        PRECISION: tl.constexpr, GIVEN: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    """d_k and d_v of a part of the keys from the gradient of the state."""
    image, head, part = place(parts, heads)
    state += (image.to(tl.int64) * heads + head) * ((WIDTH + 2) * STRIDE)
    sums = state + WIDTH * STRIDE
    EXACT: tl.constexpr = GIVEN and not MAGNITUDE
    matrices = load_state(state, 0, WIDTH, HALF, VALUE_WIDTH, STRIDE, BLOCK_HALF, CHUNK, PRECISION, UPCAST)
    last = tl.minimum((part + 1) * part_tokens, tokens)
    for first_token in range(part * part_tokens, last, BLOCK):
        token = first_token + tl.arange(0, BLOCK)
        mask = token < last
        x_first, x_second = halves(k, image, head, token, mask, 0, MAGNITUDE, WIDTH, HALF, BLOCK_HALF, UPCAST)
        first, second = features(x_first, x_second, MAGNITUDE)
        first, second = rotate(first, second, cos, sin, token, mask, 0, False, HALF, BLOCK_HALF)
        first, second = in_parts(first, PRECISION, UPCAST), in_parts(second, PRECISION, UPCAST)
        # Two loops: the operands of both products at once would spill.
        for start in range(0, VALUE_WIDTH, CHUNK):
            left = VALUE_WIDTH - start
            d_values = tl.zeros([BLOCK, CHUNK], tl.float32)
            if CHUNK < VALUE_WIDTH:
                matrices = load_state(
                    state, start, WIDTH, HALF, VALUE_WIDTH, STRIDE, BLOCK_HALF, CHUNK, PRECISION, UPCAST
                )
            d_values = product(first, matrices[0], d_values, EXACT, False, PRECISION)
            d_values = product(second, matrices[1], d_values, EXACT, False, PRECISION)
            if MAGNITUDE:
                d_values += load_vector(sums + STRIDE + start, left, CHUNK)[None, :]
            store_tile(d_v, image, head, token, mask, start, d_values, left, CHUNK)
        d_first = tl.zeros([BLOCK, BLOCK_HALF], tl.float32)
        d_second = tl.zeros([BLOCK, BLOCK_HALF], tl.float32)
        for start in range(0, VALUE_WIDTH, CHUNK):
            left = VALUE_WIDTH - start
            values = load_tile(v, image, head, token, mask, start, left, CHUNK, UPCAST)
            values = in_parts(values, PRECISION, UPCAST)
            if CHUNK < VALUE_WIDTH:
                matrices = load_state(
                    state, start, WIDTH, HALF, VALUE_WIDTH, STRIDE, BLOCK_HALF, CHUNK, PRECISION, UPCAST
                )
            d_first = product(values, transposed(matrices[0]), d_first, GIVEN, False, PRECISION)
            d_second = product(values, transposed(matrices[1]), d_second, GIVEN, False, PRECISION)
        d_first, d_second = rotate(d_first, d_second, cos, sin, token, mask, 0, True, HALF, BLOCK_HALF)
        d_first += load_vector(sums, HALF, BLOCK_HALF)[None, :]
        d_second += load_vector(sums + HALF, WIDTH - HALF, BLOCK_HALF)[None, :]
        if MAGNITUDE:
            d_first *= exp(tl.minimum(x_first.to(tl.float32), 0))
            d_second *= exp(tl.minimum(x_second.to(tl.float32), 0))
        store_tile(d_k, image, head, token, mask, 0, d_first, HALF, BLOCK_HALF)
        store_tile(d_k, image, head, token, mask, HALF, d_second, WIDTH - HALF, BLOCK_HALF)
