"""Loads and stores of tokens and of the sums over them, for attention of linear cost.

Tokens come as (pointer, stride of images, of tokens, of heads, of channels); sums are contiguous and float32.
"""

import triton
import triton.language as tl

from ._attention import LOG2_E

_LOG2_E = tl.constexpr(LOG2_E)


@triton.jit
def exp(x):
    """In two instructions; ``tl.exp`` takes five, as it keeps what is below 2 ** -126."""
    return tl.exp2(x * _LOG2_E)


@triton.jit
def place(parts, heads):
    """This program's (image, head, part of the tokens); parts run fastest, images slowest."""
    pid = tl.program_id(0)
    return pid // (parts * heads), pid // parts % heads, pid % parts


@triton.jit
def load_tile(x, image, head, token, mask, first, width, BLOCK: tl.constexpr, UPCAST: tl.constexpr,
              FILL: tl.constexpr = 0.0):  # fmt: skip
    """``[tokens, BLOCK]``: ``width`` channels from ``first`` on, FILL elsewhere."""
    channel = tl.arange(0, BLOCK)
    offset = token.to(tl.int64)[:, None] * x[2] + (first + channel)[None, :] * x[4]
    base = x[0] + image.to(tl.int64) * x[1] + head * x[3]
    values = tl.load(base + offset, mask=mask[:, None] & (channel < width)[None, :], other=FILL)
    return values.to(tl.float32) if UPCAST else values


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
