"""Triton kernels of dynamic depth-wise convolution; see :mod:`.dynamic_conv`.

A program owns a tile of TILE x TILE positions of one head and walks over the positions that its windows reach, BLOCK at
a time, row by row. Maps come as (pointer, stride of images, of rows, of columns, of heads, of channels).
"""

import triton
import triton.language as tl

from ._attention import LOG2_E, head_of, load_rows, online_softmax, row_offsets, store_rows

_LOG2_E = tl.constexpr(LOG2_E)


@triton.jit
def _start(position, length, KERNEL: tl.constexpr):
    """Where the window of a position begins."""
    return tl.minimum(tl.maximum(position - KERNEL // 2, 0), length - KERNEL)


@triton.jit
def _keys(first, length, TILE: tl.constexpr, KERNEL: tl.constexpr):
    """(first, number) of the positions that the windows of a tile reach along an axis."""
    last = tl.minimum(first + TILE, length) - 1
    begin = _start(first, length, KERNEL)
    return begin, _start(last, length, KERNEL) + KERNEL - begin


@triton.jit
def _queries(first, length, TILE: tl.constexpr, KERNEL: tl.constexpr):
    """(first, number) of the positions whose windows reach a tile along an axis: at borders windows are shifted, so
    that the outermost positions are reached from further away."""
    last = tl.minimum(first + TILE, length) - 1
    begin = tl.where(first < KERNEL, 0, first - KERNEL + 1 + KERNEL // 2)
    return begin, tl.where(last >= length - KERNEL, length - 1, last + KERNEL // 2) + 1 - begin


@triton.jit
def _place(heads, tiles, TILE: tl.constexpr):
    """This program's (image, head, first row, first column); heads run fastest, images slowest."""
    pid = tl.program_id(0)
    head, pid = pid % heads, pid // heads
    column, pid = pid % tiles[1], pid // tiles[1]
    return pid // tiles[0], head, pid % tiles[0] * TILE, column * TILE


@triton.jit
def _tile(row, column, size, TILE: tl.constexpr):
    """Rows, columns and mask of the positions of a tile."""
    index = tl.arange(0, TILE * TILE)
    row, column = row + index // TILE, column + index % TILE
    return row, column, (row < size[0]) & (column < size[1])


@triton.jit
def _block(start, row, column, rows, columns, BLOCK: tl.constexpr):
    """Rows, columns and mask of a block of the rows x columns positions from (row, column) on."""
    index = start + tl.arange(0, BLOCK)
    return row + index // columns, column + index % columns, index < rows * columns


@triton.jit
def _rows(x, row, column):
    return row_offsets(x, (row.to(tl.int64), column.to(tl.int64)))


@triton.jit
def _slots(row, column, key_row, key_column, size, KERNEL: tl.constexpr):
    """(slot of a key in a position's window, whether it is in it); the arguments broadcast."""
    slot_row = key_row - _start(row, size[0], KERNEL[0])
    slot_column = key_column - _start(column, size[1], KERNEL[1])
    inside = (slot_row >= 0) & (slot_row < KERNEL[0]) & (slot_column >= 0) & (slot_column < KERNEL[1])
    return slot_row * KERNEL[1] + slot_column, inside


@triton.jit
def _load_weights(weight, bias, image, head, row, column, key_row, key_column, slot, inside, KERNEL: tl.constexpr):
    """Weights in float32 with their bias, zero outside the windows."""
    base, stride = head_of(weight, image, head)
    values = tl.load(base + _rows(weight, row, column) + slot * stride, mask=inside, other=0.0).to(tl.float32)
    if bias is not None:
        offset = (key_row - row + KERNEL[0] - 1) * (2 * KERNEL[1] - 1) + key_column - column + KERNEL[1] - 1
        table = bias + head * ((2 * KERNEL[0] - 1) * (2 * KERNEL[1] - 1))
        values += tl.load(table + offset, mask=inside, other=0.0).to(tl.float32)
    return values


@triton.jit
def _per_position(x, image, head, heads, row, column, size):
    """Pointers into a contiguous ``[B, heads, H, W]``."""
    return x + (image.to(tl.int64) * heads + head) * (size[0] * size[1]) + row * size[1] + column


@triton.jit
def forward_kernel(x, weight, out, bias, lse, heads, size, tiles, KERNEL: tl.constexpr, SOFTMAX: tl.constexpr,
                   WIDTH: tl.constexpr, D: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
                   UPCAST: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    image, head, first_row, first_column = _place(heads, tiles, TILE)
    row, column, mask = _tile(first_row, first_column, size, TILE)
    begin_row, rows = _keys(first_row, size[0], TILE, KERNEL[0])
    begin_column, columns = _keys(first_column, size[1], TILE, KERNEL[1])
    acc = tl.zeros([TILE * TILE, D], tl.float32)
    top = tl.full([TILE * TILE], float("-inf"), tl.float32)
    total = tl.zeros([TILE * TILE], tl.float32)
    for start in range(0, rows * columns, BLOCK):
        key_row, key_column, present = _block(start, begin_row, begin_column, rows, columns, BLOCK)
        slot, inside = _slots(row[:, None], column[:, None], key_row[None, :], key_column[None, :], size, KERNEL)
        inside = inside & mask[:, None] & present[None, :]
        values = load_rows(head_of(x, image, head), _rows(x, key_row, key_column), present, WIDTH, D, UPCAST)
        weights = _load_weights(weight, bias, image, head, row[:, None], column[:, None], key_row[None, :],
                                key_column[None, :], slot, inside, KERNEL)  # fmt: skip
        if SOFTMAX:
            scores = tl.where(inside, weights * _LOG2_E, float("-inf"))
            acc, top, total = online_softmax(acc, top, total, scores, values, PRECISION)
        else:
            acc = tl.dot(weights.to(values.dtype), values, acc, input_precision=PRECISION)
    if SOFTMAX:
        total = tl.where(mask, total, 1.0)
        acc = acc / total[:, None]
        tl.store(_per_position(lse, image, head, heads, row, column, size), top + tl.log2(total), mask=mask)
    store_rows(head_of(out, image, head), _rows(out, row, column), mask, acc, WIDTH, D)


@triton.jit
def weight_gradient_kernel(x, weight, out, d_out, d_weight, bias, lse, heads, size, tiles,
                           KERNEL: tl.constexpr, SOFTMAX: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr,
                           TILE: tl.constexpr, BLOCK: tl.constexpr, UPCAST: tl.constexpr,
                           PRECISION: tl.constexpr):  # fmt: skip
    """The gradient of the weights of a tile."""
    image, head, first_row, first_column = _place(heads, tiles, TILE)
    row, column, mask = _tile(first_row, first_column, size, TILE)
    begin_row, rows = _keys(first_row, size[0], TILE, KERNEL[0])
    begin_column, columns = _keys(first_column, size[1], TILE, KERNEL[1])
    gradient = load_rows(head_of(d_out, image, head), _rows(d_out, row, column), mask, WIDTH, D, UPCAST)
    if SOFTMAX:
        result = load_rows(head_of(out, image, head), _rows(out, row, column), mask, WIDTH, D, UPCAST)
        along = tl.sum(result.to(tl.float32) * gradient.to(tl.float32), 1)
        norm = tl.load(_per_position(lse, image, head, heads, row, column, size), mask=mask, other=0.0)
    base, stride = head_of(d_weight, image, head)
    base += _rows(d_weight, row, column)[:, None]
    for start in range(0, rows * columns, BLOCK):
        key_row, key_column, present = _block(start, begin_row, begin_column, rows, columns, BLOCK)
        slot, inside = _slots(row[:, None], column[:, None], key_row[None, :], key_column[None, :], size, KERNEL)
        inside = inside & mask[:, None] & present[None, :]
        values = load_rows(head_of(x, image, head), _rows(x, key_row, key_column), present, WIDTH, D, UPCAST)
        d_weights = tl.dot(gradient, tl.trans(values), input_precision=PRECISION)
        if SOFTMAX:
            weights = _load_weights(weight, bias, image, head, row[:, None], column[:, None], key_row[None, :],
                                    key_column[None, :], slot, inside, KERNEL)  # fmt: skip
            d_weights = tl.exp2(weights * _LOG2_E - norm[:, None]) * (d_weights - along[:, None])
        tl.store(base + slot * stride, d_weights.to(d_weight[0].dtype.element_ty), mask=inside)


@triton.jit
def value_gradient_kernel(weight, d_out, d_x, bias, lse, heads, size, tiles, KERNEL: tl.constexpr,
                          SOFTMAX: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr, TILE: tl.constexpr,
                          BLOCK: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """The gradient of a tile of x, from the positions whose windows reach it."""
    image, head, first_row, first_column = _place(heads, tiles, TILE)
    key_row, key_column, mask = _tile(first_row, first_column, size, TILE)
    begin_row, rows = _queries(first_row, size[0], TILE, KERNEL[0])
    begin_column, columns = _queries(first_column, size[1], TILE, KERNEL[1])
    acc = tl.zeros([TILE * TILE, D], tl.float32)
    for start in range(0, rows * columns, BLOCK):
        row, column, present = _block(start, begin_row, begin_column, rows, columns, BLOCK)
        slot, inside = _slots(row[None, :], column[None, :], key_row[:, None], key_column[:, None], size, KERNEL)
        inside = inside & mask[:, None] & present[None, :]
        gradient = load_rows(head_of(d_out, image, head), _rows(d_out, row, column), present, WIDTH, D, UPCAST)
        weights = _load_weights(weight, bias, image, head, row[None, :], column[None, :], key_row[:, None],
                                key_column[:, None], slot, inside, KERNEL)  # fmt: skip
        if SOFTMAX:
            norm = tl.load(_per_position(lse, image, head, heads, row, column, size), mask=present, other=0.0)
            weights = tl.where(inside, tl.exp2(weights * _LOG2_E - norm[None, :]), 0.0)
        acc = tl.dot(weights.to(gradient.dtype), gradient, acc, input_precision=PRECISION)
    store_rows(head_of(d_x, image, head), _rows(d_x, key_row, key_column), mask, acc, WIDTH, D)
