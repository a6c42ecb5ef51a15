"""Products of matrices whose entries have more bits than a matrix unit takes.

For tensors of 16 bits an entry is the sum of two bfloat16, high and low, which hold at least 16 of its bits: what is
given in bfloat16 is its own high part, and no product but that of two low parts, below 2 ** -16, is left out. Products
of bfloat16 cost a sixth of the three TF32 products that float32 tensors take.
"""

import triton
import triton.language as tl


@triton.jit
def in_parts(x, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    """(high, low) of ``x``; both are ``x`` itself where it is in bfloat16, or PRECISION is another than "bf16"."""
    if x.dtype == tl.bfloat16:
        high, low = x, x
    else:
        high = x.to(tl.float32)
        low = high
        if PRECISION == "bf16":
            # Cut, not rounded: one instruction, and bfloat16 as it stands.
            high = (high.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)
            low = (low - high).to(tl.bfloat16)
            if UPCAST:
                low = low.to(tl.float32)
            else:
                high = high.to(tl.bfloat16)
    return high, low


@triton.jit
def product(a, b, total, A_EXACT: tl.constexpr, B_EXACT: tl.constexpr, PRECISION: tl.constexpr):
    """total + a @ b of what :func:`in_parts` returned; EXACT says that the low part is zero."""
    if PRECISION != "bf16":
        return tl.dot(a[0], b[0], total, input_precision=PRECISION)
    if not A_EXACT:
        total = tl.dot(a[1], b[0], total, input_precision="ieee")
    if not B_EXACT:
        total = tl.dot(a[0], b[1], total, input_precision="ieee")
    return tl.dot(a[0], b[0], total, input_precision="ieee")


@triton.jit
def transposed(a):
    return tl.trans(a[0]), tl.trans(a[1])
