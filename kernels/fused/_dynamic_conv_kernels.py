"""Triton kernels of dynamic depth-wise convolution; see :mod:`.dynamic_conv`.

A program owns a tile of TILE x TILE positions of one head and walks over the positions that its windows reach, in
blocks of BLOCK (rows, columns), down before across. Maps come as (pointer, stride of images, of rows, of columns, of
heads, of channels).
"""

import triton
import triton.language as tl

from ._attention import LOG2_E, head_of, load_rows, online_softmax, quotient, row_offsets, store_rows

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
def _place(heads, tiles, factors, TILE: tl.constexpr):
    """This program's (image, head, first row, first column); heads run fastest, images slowest."""
    pid = tl.program_id(0)
    rest = quotient(pid, heads, factors, 0)
    head = pid - rest * heads
    pid, rest = rest, quotient(rest, tiles[1], factors, 2)
    column = pid - rest * tiles[1]
    image = quotient(rest, tiles[0], factors, 1)
    return image, head, (rest - image * tiles[0]) * TILE, column * TILE


@triton.jit
def _tile(row, column, size, TILE: tl.constexpr):
    """Rows, columns and mask of the positions of a tile."""
    index = tl.arange(0, TILE * TILE)
    row, column = row + index // TILE, column + index % TILE
    return row, column, (row < size[0]) & (column < size[1])


@triton.jit
def _rows_of(line, BLOCK: tl.constexpr):
    """Rows of the positions of a block that begins with row ``line``."""
    return line + tl.arange(0, BLOCK[0] * BLOCK[1]) // BLOCK[1]


@triton.jit
def _columns_of(column, BLOCK: tl.constexpr):
    return column + tl.arange(0, BLOCK[0] * BLOCK[1]) % BLOCK[1]


@triton.jit
def _rows(x, row, column):
    return row_offsets(x, (row, column))


@triton.jit
def _along_columns(weight, column, key_column, mask, size, KERNEL: tl.constexpr):
    """What the columns of positions and keys, which broadcast, say of a block's weights: whether a key may be in the
    window, the offset in the weights and that in the table of biases. A loop over rows keeps all three."""
    slot = key_column - _start(column, size[1], KERNEL[1])
    inside = mask & (slot >= 0) & (slot < KERNEL[1])
    return inside, column.to(tl.int64) * weight[3] + slot.to(tl.int64) * weight[5], key_column - column


@triton.jit
def _along_rows(weight, row, key_row, columns, size, KERNEL: tl.constexpr):
    """The same of rows and columns."""
    slot = key_row - _start(row, size[0], KERNEL[0])
    inside = columns[0] & (slot >= 0) & (slot < KERNEL[0])
    offset = columns[1] + (row.to(tl.int64) * weight[2] + (slot * KERNEL[1]).to(tl.int64) * weight[5])
    distance = (key_row - row + KERNEL[0] - 1) * (2 * KERNEL[1] - 1) + KERNEL[1] - 1
    return inside, offset, columns[2] + distance


@triton.jit
def _load_weights(weight, bias, image, head, places, KERNEL: tl.constexpr):
    """Weights in float32 with their bias, zero outside the windows; ``places`` is what :func:`_along_rows` returned."""
    values = tl.load(head_of(weight, image, head)[0] + places[1], mask=places[0], other=0.0).to(tl.float32)
    if bias is not None:
        table = bias + head * ((2 * KERNEL[0] - 1) * (2 * KERNEL[1] - 1))
        values += tl.load(table + places[2], mask=places[0], other=0.0).to(tl.float32)
    return values


@triton.jit
def _per_position(x, image, head, heads, row, column, size):
    """Pointers into a contiguous ``[B, heads, H, W]``."""
    return x + (image.to(tl.int64) * heads + head) * (size[0] * size[1]) + row * size[1] + column


@triton.jit
def forward_kernel(x, weight, out, bias, lse, heads, size, tiles, factors, KERNEL: tl.constexpr,
                   SOFTMAX: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr, TILE: tl.constexpr,
                   BLOCK: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    image, head, first_row, first_column = _place(heads, tiles, factors, TILE)
    row, column, mask = _tile(first_row, first_column, size, TILE)
    begin_row, rows = _keys(first_row, size[0], TILE, KERNEL[0])
    begin_column, number = _keys(first_column, size[1], TILE, KERNEL[1])
    acc = tl.zeros([TILE * TILE, D], tl.float32)
    top = tl.full([TILE * TILE], float("-inf"), tl.float32)
    total = tl.zeros([TILE * TILE], tl.float32)
    for start in range(begin_column, begin_column + number, BLOCK[1]):
        key_column = _columns_of(start, BLOCK)
        columns = _along_columns(weight, column[:, None], key_column[None, :], mask[:, None], size, KERNEL)
        for line in range(begin_row, begin_row + rows, BLOCK[0]):
            key_row = _rows_of(line, BLOCK)
            places = _along_rows(weight, row[:, None], key_row[None, :], columns, size, KERNEL)
            present = (key_row < size[0]) & (key_column < size[1])
            values = load_rows(head_of(x, image, head), _rows(x, key_row, key_column), present, WIDTH, D, UPCAST)
            weights = _load_weights(weight, bias, image, head, places, KERNEL)
            if SOFTMAX:
                scores = tl.where(places[0], weights * _LOG2_E, float("-inf"))
                acc, top, total = online_softmax(acc, top, total, scores, values, PRECISION)
            else:
                acc = tl.dot(weights.to(values.dtype), values, acc, input_precision=PRECISION)
    if SOFTMAX:
        total = tl.where(mask, total, 1.0)
        acc = acc * (1 / total)[:, None]
        tl.store(_per_position(lse, image, head, heads, row, column, size), top + tl.log2(total), mask=mask)
    store_rows(head_of(out, image, head), _rows(out, row, column), mask, acc, WIDTH, D)


@triton.jit
def weight_gradient_kernel(x, weight, out, d_out, d_weight, bias, lse, heads, size, tiles, factors,
                           KERNEL: tl.constexpr, SOFTMAX: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr,
                           TILE: tl.constexpr, BLOCK: tl.constexpr, UPCAST: tl.constexpr,
                           PRECISION: tl.constexpr):  # fmt: skip
    """The gradient of the weights of a tile."""
    image, head, first_row, first_column = _place(heads, tiles, factors, TILE)
    row, column, mask = _tile(first_row, first_column, size, TILE)
    begin_row, rows = _keys(first_row, size[0], TILE, KERNEL[0])
    begin_column, number = _keys(first_column, size[1], TILE, KERNEL[1])
    gradient = load_rows(head_of(d_out, image, head), _rows(d_out, row, column), mask, WIDTH, D, UPCAST)
    if SOFTMAX:
        result = load_rows(head_of(out, image, head), _rows(out, row, column), mask, WIDTH, D, UPCAST)
        along = tl.sum(result.to(tl.float32) * gradient.to(tl.float32), 1)
        norm = tl.load(_per_position(lse, image, head, heads, row, column, size), mask=mask, other=0.0)
    for start in range(begin_column, begin_column + number, BLOCK[1]):
        key_column = _columns_of(start, BLOCK)
        columns = _along_columns(weight, column[:, None], key_column[None, :], mask[:, None], size, KERNEL)
        d_columns = _along_columns(d_weight, column[:, None], key_column[None, :], mask[:, None], size, KERNEL)
        for line in range(begin_row, begin_row + rows, BLOCK[0]):
            key_row = _rows_of(line, BLOCK)
            present = (key_row < size[0]) & (key_column < size[1])
            values = load_rows(head_of(x, image, head), _rows(x, key_row, key_column), present, WIDTH, D, UPCAST)
            d_weights = tl.dot(gradient, tl.trans(values), input_precision=PRECISION)
            if SOFTMAX:
                places = _along_rows(weight, row[:, None], key_row[None, :], columns, size, KERNEL)
                weights = _load_weights(weight, bias, image, head, places, KERNEL)
                d_weights = tl.exp2(weights * _LOG2_E - norm[:, None]) * (d_weights - along[:, None])
            places = _along_rows(d_weight, row[:, None], key_row[None, :], d_columns, size, KERNEL)
            d_weights = d_weights.to(d_weight[0].dtype.element_ty)
            tl.store(head_of(d_weight, image, head)[0] + places[1], d_weights, mask=places[0])


@triton.jit
def value_gradient_kernel(weight, d_out, d_x, bias, lse, heads, size, tiles, factors, KERNEL: tl.constexpr,
                          SOFTMAX: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr, TILE: tl.constexpr,
                          BLOCK: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """The gradient of a tile of x, from the positions whose windows reach it."""
    image, head, first_row, first_column = _place(heads, tiles, factors, TILE)
    key_row, key_column, mask = _tile(first_row, first_column, size, TILE)
    begin_row, rows = _queries(first_row, size[0], TILE, KERNEL[0])
    begin_column, number = _queries(first_column, size[1], TILE, KERNEL[1])
    acc = tl.zeros([TILE * TILE, D], tl.float32)
    for start in range(begin_column, begin_column + number, BLOCK[1]):
        column = _columns_of(start, BLOCK)
        there = mask[:, None] & (column < size[1])[None, :]
        columns = _along_columns(weight, column[None, :], key_column[:, None], there, size, KERNEL)
        for line in range(begin_row, begin_row + rows, BLOCK[0]):
            row = _rows_of(line, BLOCK)
            present = (row < size[0]) & (column < size[1])
            inside, offset, distance = _along_rows(weight, row[None, :], key_row[:, None], columns, size, KERNEL)
            inside = inside & (row < size[0])[None, :]
            gradient = load_rows(head_of(d_out, image, head), _rows(d_out, row, column), present, WIDTH, D, UPCAST)
            weights = _load_weights(weight, bias, image, head, (inside, offset, distance), KERNEL)
            if SOFTMAX:
                norm = tl.load(_per_position(lse, image, head, heads, row, column, size), mask=present, other=0.0)
                weights = tl.where(inside, tl.exp2(weights * _LOG2_E - norm[None, :]), 0.0)
            acc = tl.dot(weights.to(gradient.dtype), gradient, acc, input_precision=PRECISION)
    store_rows(head_of(d_x, image, head), _rows(d_x, key_row, key_column), mask, acc, WIDTH, D)
