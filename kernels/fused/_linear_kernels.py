"""Triton kernels of attention of linear cost; see :mod:`.linear`.

A token's D channels are taken in two halves, which is what a half-split rotation turns against each other. A state
``[D + 2, W]`` of a head holds the sum of feature^T value, then the sum of the features, then that of the values.
Tensors come as (pointer, stride of images, of tokens, of heads, of channels).
"""

import triton
import triton.language as tl


@triton.jit
def place(parts, heads):
    """This program's (image, head, part of the tokens); parts run fastest, images slowest."""
    pid = tl.program_id(0)
    return pid // (parts * heads), pid // parts % heads, pid % parts


@triton.jit
def load_tile(x, image, head, token, mask, first, width, BLOCK: tl.constexpr):
    """``[tokens, BLOCK]`` in float32: ``width`` channels from ``first`` on, zeros elsewhere."""
    channel = tl.arange(0, BLOCK)
    offset = token.to(tl.int64)[:, None] * x[2] + (first + channel)[None, :] * x[4]
    base = x[0] + image.to(tl.int64) * x[1] + head * x[3]
    return tl.load(base + offset, mask=mask[:, None] & (channel < width)[None, :], other=0.0).to(tl.float32)


@triton.jit
def store_tile(x, image, head, token, mask, first, values, width, BLOCK: tl.constexpr):
    """Stores ``values`` where :func:`load_tile` would load them."""
    channel = tl.arange(0, BLOCK)
    offset = token.to(tl.int64)[:, None] * x[2] + (first + channel)[None, :] * x[4]
    base = x[0] + image.to(tl.int64) * x[1] + head * x[3]
    values = values.to(x[0].dtype.element_ty)
    tl.store(base + offset, values, mask=mask[:, None] & (channel < width)[None, :])


@triton.jit
def load_matrix(base, rows, columns, STRIDE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr):
    """``[BLOCK_ROWS, BLOCK_COLUMNS]``, zero past ``rows`` and ``columns``."""
    row, column = tl.arange(0, BLOCK_ROWS)[:, None], tl.arange(0, BLOCK_COLUMNS)[None, :]
    return tl.load(base + row * STRIDE + column, mask=(row < rows) & (column < columns), other=0.0)


@triton.jit
def store_matrix(base, values, rows, columns, STRIDE: tl.constexpr,
                 BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr):  # fmt: skip
    row, column = tl.arange(0, BLOCK_ROWS)[:, None], tl.arange(0, BLOCK_COLUMNS)[None, :]
    tl.store(base + row * STRIDE + column, values, mask=(row < rows) & (column < columns))


@triton.jit
def load_vector(base, width, BLOCK: tl.constexpr):
    channel = tl.arange(0, BLOCK)
    return tl.load(base + channel, mask=channel < width, other=0.0)


@triton.jit
def store_vector(base, values, width, BLOCK: tl.constexpr):
    channel = tl.arange(0, BLOCK)
    tl.store(base + channel, values, mask=channel < width)


@triton.jit
def _halves(x, image, head, token, mask, WIDTH: tl.constexpr, HALF: tl.constexpr, BLOCK_HALF: tl.constexpr):
    first = load_tile(x, image, head, token, mask, 0, HALF, BLOCK_HALF)
    return first, load_tile(x, image, head, token, mask, HALF, WIDTH - HALF, BLOCK_HALF)


@triton.jit
def _features(first, second, mask, MAGNITUDE: tl.constexpr, WIDTH: tl.constexpr,
              HALF: tl.constexpr, BLOCK_HALF: tl.constexpr):  # fmt: skip
    """elu + 1 of both halves, zero where nothing was loaded; without MAGNITUDE the halves themselves."""
    if MAGNITUDE:
        channel = tl.arange(0, BLOCK_HALF)[None, :]
        first = tl.where(mask[:, None] & (channel < HALF), tl.exp(tl.minimum(first, 0)) + tl.maximum(first, 0), 0)
        rest = mask[:, None] & (channel < WIDTH - HALF)
        second = tl.where(rest, tl.exp(tl.minimum(second, 0)) + tl.maximum(second, 0), 0)
    return first, second


@triton.jit
def _rotate(first, second, cos, sin, token, mask, BACK: tl.constexpr, HALF: tl.constexpr, BLOCK_HALF: tl.constexpr):
    """Both halves turned by the tables ``[tokens, HALF]``, or BACK; as they are without tables."""
    if cos is not None:
        channel = tl.arange(0, BLOCK_HALF)[None, :]
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
                  PRECISION: tl.constexpr):  # fmt: skip
    """Sums over a part of the tokens: state ``[B, heads, parts, D + 2, W]`` of x's features and y.

    ``weights`` ``[B, heads, 3, N]`` or None: factors of a token in the sum of products, of features and of values.
    """
    image, head, part = place(parts, heads)
    item = image.to(tl.int64) * heads + head
    first_state = tl.zeros([BLOCK_HALF, BLOCK_VALUE], tl.float32)
    second_state = tl.zeros([BLOCK_HALF, BLOCK_VALUE], tl.float32)
    first_sum, second_sum = tl.zeros([BLOCK_HALF], tl.float32), tl.zeros([BLOCK_HALF], tl.float32)
    value_sum = tl.zeros([BLOCK_VALUE], tl.float32)
    last = tl.minimum((part + 1) * part_tokens, tokens)
    for start in range(part * part_tokens, last, BLOCK):
        token = start + tl.arange(0, BLOCK)
        mask = token < last
        first, second = _halves(x, image, head, token, mask, WIDTH, HALF, BLOCK_HALF)
        first, second = _features(first, second, mask, MAGNITUDE, WIDTH, HALF, BLOCK_HALF)
        values = load_tile(y, image, head, token, mask, 0, VALUE_WIDTH, BLOCK_VALUE)
        if weights is None:
            first_sum += tl.sum(first, 0)
            second_sum += tl.sum(second, 0)
            value_sum += tl.sum(values, 0)
        else:
            base = weights + item * (3 * tokens) + token
            of_features = tl.load(base + tokens, mask=mask, other=0.0)[:, None]
            first_sum += tl.sum(first * of_features, 0)
            second_sum += tl.sum(second * of_features, 0)
            value_sum += tl.sum(values * tl.load(base + 2 * tokens, mask=mask, other=0.0)[:, None], 0)
            values *= tl.load(base, mask=mask, other=0.0)[:, None]
        first, second = _rotate(first, second, cos, sin, token, mask, False, HALF, BLOCK_HALF)
        first_state = tl.dot(tl.trans(first), values, first_state, input_precision=PRECISION)
        second_state = tl.dot(tl.trans(second), values, second_state, input_precision=PRECISION)
    state += (item * parts + part) * ((WIDTH + 2) * STRIDE)
    store_matrix(state, first_state, HALF, VALUE_WIDTH, STRIDE, BLOCK_HALF, BLOCK_VALUE)
    state += HALF * STRIDE
    store_matrix(state, second_state, WIDTH - HALF, VALUE_WIDTH, STRIDE, BLOCK_HALF, BLOCK_VALUE)
    state += (WIDTH - HALF) * STRIDE
    store_vector(state, first_sum, HALF, BLOCK_HALF)
    store_vector(state + HALF, second_sum, WIDTH - HALF, BLOCK_HALF)
    store_vector(state + STRIDE, value_sum, VALUE_WIDTH, BLOCK_VALUE)


@triton.jit
def apply_kernel(q, state, out, cos, sin, heads, parts, tokens, scale, eps,
                 MAGNITUDE: tl.constexpr, WIDTH: tl.constexpr, HALF: tl.constexpr, VALUE_WIDTH: tl.constexpr,
                 STRIDE: tl.constexpr, BLOCK_HALF: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
                 PRECISION: tl.constexpr):  # fmt: skip
    """The result of a block of queries from the state of all keys; parts are blocks."""
    image, head, part = place(parts, heads)
    state += (image.to(tl.int64) * heads + head) * ((WIDTH + 2) * STRIDE)
    token = part * BLOCK + tl.arange(0, BLOCK)
    mask = token < tokens
    first, second = _halves(q, image, head, token, mask, WIDTH, HALF, BLOCK_HALF)
    first, second = _features(first, second, mask, MAGNITUDE, WIDTH, HALF, BLOCK_HALF)
    sums = state + WIDTH * STRIDE
    z = tl.sum(first * load_vector(sums, HALF, BLOCK_HALF)[None, :], 1)
    z += tl.sum(second * load_vector(sums + HALF, WIDTH - HALF, BLOCK_HALF)[None, :], 1)
    first, second = _rotate(first, second, cos, sin, token, mask, False, HALF, BLOCK_HALF)
    if MAGNITUDE:
        z = z * (scale / tokens)
        weight = (1 + 1 / (z + eps)) * (scale / tokens)
    else:
        weight = 1 / tl.maximum(z, eps)
    for start in range(0, VALUE_WIDTH, CHUNK):
        left = VALUE_WIDTH - start
        matrix = load_matrix(state + start, HALF, left, STRIDE, BLOCK_HALF, CHUNK)
        result = tl.dot(first, matrix, input_precision=PRECISION)
        matrix = load_matrix(state + HALF * STRIDE + start, WIDTH - HALF, left, STRIDE, BLOCK_HALF, CHUNK)
        result = tl.dot(second, matrix, result, input_precision=PRECISION) * weight[:, None]
        if MAGNITUDE:
            mean = load_vector(sums + STRIDE + start, left, CHUNK) / tokens
            result -= z[:, None] * mean[None, :]
        store_tile(out, image, head, token, mask, start, result, left, CHUNK)


@triton.jit
def query_gradient_kernel(q, d_out, state, d_q, weights, cos, sin, heads, parts, tokens, scale, eps,
                          MAGNITUDE: tl.constexpr, WIDTH: tl.constexpr, HALF: tl.constexpr,
                          VALUE_WIDTH: tl.constexpr, STRIDE: tl.constexpr, BLOCK_HALF: tl.constexpr,
                          CHUNK: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """d_q of a block of queries, and the weights with which :func:`reduce_kernel` makes the state's gradient."""
    image, head, part = place(parts, heads)
    item = image.to(tl.int64) * heads + head
    state += item * ((WIDTH + 2) * STRIDE)
    token = part * BLOCK + tl.arange(0, BLOCK)
    mask = token < tokens
    x_first, x_second = _halves(q, image, head, token, mask, WIDTH, HALF, BLOCK_HALF)
    first, second = _features(x_first, x_second, mask, MAGNITUDE, WIDTH, HALF, BLOCK_HALF)
    sums = state + WIDTH * STRIDE
    first_sum = load_vector(sums, HALF, BLOCK_HALF)[None, :]
    second_sum = load_vector(sums + HALF, WIDTH - HALF, BLOCK_HALF)[None, :]
    z = tl.sum(first * first_sum, 1) + tl.sum(second * second_sum, 1)
    first, second = _rotate(first, second, cos, sin, token, mask, False, HALF, BLOCK_HALF)
    d_first = tl.zeros([BLOCK, BLOCK_HALF], tl.float32)
    d_second = tl.zeros([BLOCK, BLOCK_HALF], tl.float32)
    along_mean = tl.zeros([BLOCK], tl.float32)
    for start in range(0, VALUE_WIDTH, CHUNK):
        left = VALUE_WIDTH - start
        gradient = load_tile(d_out, image, head, token, mask, start, left, CHUNK)
        matrix = load_matrix(state + start, HALF, left, STRIDE, BLOCK_HALF, CHUNK)
        d_first = tl.dot(gradient, tl.trans(matrix), d_first, input_precision=PRECISION)
        matrix = load_matrix(state + HALF * STRIDE + start, WIDTH - HALF, left, STRIDE, BLOCK_HALF, CHUNK)
        d_second = tl.dot(gradient, tl.trans(matrix), d_second, input_precision=PRECISION)
        if MAGNITUDE:
            along_mean += tl.sum(gradient * load_vector(sums + STRIDE + start, left, CHUNK)[None, :], 1)
    # d_out . (features @ state), without the product of the forward pass.
    along = tl.sum(first * d_first, 1) + tl.sum(second * d_second, 1)
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
    d_first, d_second = _rotate(d_first, d_second, cos, sin, token, mask, True, HALF, BLOCK_HALF)
    d_first += d_sum[:, None] * first_sum
    d_second += d_sum[:, None] * second_sum
    if MAGNITUDE:
        d_first *= tl.exp(tl.minimum(x_first, 0))
        d_second *= tl.exp(tl.minimum(x_second, 0))
    store_tile(d_q, image, head, token, mask, 0, d_first, HALF, BLOCK_HALF)
    store_tile(d_q, image, head, token, mask, HALF, d_second, WIDTH - HALF, BLOCK_HALF)


@triton.jit
def key_gradient_kernel(k, v, state, d_k, d_v, cos, sin, heads, parts, tokens,
                        MAGNITUDE: tl.constexpr, WIDTH: tl.constexpr, HALF: tl.constexpr, VALUE_WIDTH: tl.constexpr,
                        STRIDE: tl.constexpr, BLOCK_HALF: tl.constexpr, CHUNK: tl.constexpr,
                        BLOCK: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """d_k and d_v of a block of keys from the gradient of the state."""
    image, head, part = place(parts, heads)
    state += (image.to(tl.int64) * heads + head) * ((WIDTH + 2) * STRIDE)
    token = part * BLOCK + tl.arange(0, BLOCK)
    mask = token < tokens
    x_first, x_second = _halves(k, image, head, token, mask, WIDTH, HALF, BLOCK_HALF)
    first, second = _features(x_first, x_second, mask, MAGNITUDE, WIDTH, HALF, BLOCK_HALF)
    first, second = _rotate(first, second, cos, sin, token, mask, False, HALF, BLOCK_HALF)
    sums = state + WIDTH * STRIDE
    # Two loops: the operands of both products at once would spill.
    for start in range(0, VALUE_WIDTH, CHUNK):
        left = VALUE_WIDTH - start
        matrix = load_matrix(state + start, HALF, left, STRIDE, BLOCK_HALF, CHUNK)
        d_values = tl.dot(first, matrix, input_precision=PRECISION)
        matrix = load_matrix(state + HALF * STRIDE + start, WIDTH - HALF, left, STRIDE, BLOCK_HALF, CHUNK)
        d_values = tl.dot(second, matrix, d_values, input_precision=PRECISION)
        d_values += load_vector(sums + STRIDE + start, left, CHUNK)[None, :]
        store_tile(d_v, image, head, token, mask, start, d_values, left, CHUNK)
    d_first = tl.zeros([BLOCK, BLOCK_HALF], tl.float32)
    d_second = tl.zeros([BLOCK, BLOCK_HALF], tl.float32)
    for start in range(0, VALUE_WIDTH, CHUNK):
        left = VALUE_WIDTH - start
        values = load_tile(v, image, head, token, mask, start, left, CHUNK)
        matrix = load_matrix(state + start, HALF, left, STRIDE, BLOCK_HALF, CHUNK)
        d_first = tl.dot(values, tl.trans(matrix), d_first, input_precision=PRECISION)
        matrix = load_matrix(state + HALF * STRIDE + start, WIDTH - HALF, left, STRIDE, BLOCK_HALF, CHUNK)
        d_second = tl.dot(values, tl.trans(matrix), d_second, input_precision=PRECISION)
    d_first, d_second = _rotate(d_first, d_second, cos, sin, token, mask, True, HALF, BLOCK_HALF)
    d_first += load_vector(sums, HALF, BLOCK_HALF)[None, :]
    d_second += load_vector(sums + HALF, WIDTH - HALF, BLOCK_HALF)[None, :]
    if MAGNITUDE:
        d_first *= tl.exp(tl.minimum(x_first, 0))
        d_second *= tl.exp(tl.minimum(x_second, 0))
    store_tile(d_k, image, head, token, mask, 0, d_first, HALF, BLOCK_HALF)
    store_tile(d_k, image, head, token, mask, HALF, d_second, WIDTH - HALF, BLOCK_HALF)
