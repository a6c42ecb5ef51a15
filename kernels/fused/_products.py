"""Products of matrices whose entries have more bits than a matrix unit takes.

For tensors of 16 bits an entry is the sum of two bfloat16, high and low: what is given in bfloat16 is its own high
part, and of a product all is kept but that of two low parts. Where high parts are cut from float32, which is one
instruction less, that is some 2 ** -16 of it and of one sign, far from what a result in bfloat16 is rounded by; for
float16 they are rounded. One product of bfloat16 costs a sixth of the three of TF32 that float32 tensors take.
"""

import triton
import triton.language as tl


@triton.jit
def in_parts(x, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    """(high, low) of ``x`` for PRECISION "bf16" or "bf16_rounded"; else, or where it is in bfloat16, both are ``x``."""
    if x.dtype == tl.bfloat16:
        high, low = x, x
    else:
        high = x.to(tl.float32)
        low = high
        if PRECISION == "bf16" or PRECISION == "bf16_rounded":
            bits = high.to(tl.int32, bitcast=True)
            if PRECISION == "bf16_rounded":
                bits += 0x8000
            # In float32 still, but bfloat16 as it stands.
            high = (bits & -65536).to(tl.float32, bitcast=True)
            low = (low - high).to(tl.bfloat16)
            if UPCAST:
                low = low.to(tl.float32)
            else:
                high = high.to(tl.bfloat16)
    return high, low


@triton.jit
def product(a, b, total, A_EXACT: tl.constexpr, B_EXACT: tl.constexpr, PRECISION: tl.constexpr):
    """total + a @ b of what :func:`in_parts` returned; EXACT says that the low part is zero."""
    if PRECISION != "bf16" and PRECISION != "bf16_rounded":
        return tl.dot(a[0], b[0], total, input_precision=PRECISION)
    if not A_EXACT:
        total = tl.dot(a[1], b[0], total, input_precision="ieee")
    if not B_EXACT:
        total = tl.dot(a[0], b[1], total, input_precision="ieee")
    return tl.dot(a[0], b[0], total, input_precision="ieee")


@triton.jit
def transposed(a):
    return tl.trans(a[0]), tl.trans(a[1])
