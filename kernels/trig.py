"""Sine and cosine for hot kernels (``tl.sin`` is libdevice's accurate one: a slow path of thousands
of local loads).

- ``fast``: the special-function unit alone, which takes the multiples of 2 pi off itself. Absolute
  error about 1.2e-7 |x|: for |x| < 200 less than a tenth of what rounding the result to float16
  costs, and everywhere far less than what the operands' rounding has cost the argument;
- else: reduction to [-pi/2, pi/2] and an odd polynomial; absolute error below 2.5e-7 for |x| < 1e4.
  The reduction subtracts n pi in three parts (Cody and Waite); the first two have so few bits that
  their product with n is exact, with or without fused multiply-add.

NaN and infinities give NaN.
"""

import os

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
"""Kernels run in Triton's interpreter on the CPU, which has no inline assembly and no bfloat16
products.
"""

# 1.5 * 2^23: adding it rounds to an integer, left in the low bits of the sum.
ROUND = tl.constexpr(12582912.0)
PI = (
    tl.constexpr(3.140625),
    tl.constexpr(9.675025939941406e-4),
    tl.constexpr(1.5099580252808664e-7),
)
PI_1, PI_2, PI_3 = PI
INVERSE_PI = tl.constexpr(0.3183098861837907)
# sin(r) = r (1 + r^2 (S3 + r^2 (S5 + ...))) on [-pi/2, pi/2], minimax: relative error 4.9e-9 before
# rounding
S3 = tl.constexpr(-1.66666605e-01)
S5 = tl.constexpr(8.33308817e-03)
S7 = tl.constexpr(-1.98111127e-04)
S9 = tl.constexpr(2.60893255e-06)


@triton.jit
def sin(x, FAST: tl.constexpr):
    """Sine of float32 x."""
    if FAST:
        if INTERPRETED:
            return tl.sin(x)
        else:
            return tl.inline_asm_elementwise(
                "sin.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1
            )
    else:
        # The rounded multiple's lowest bit says whether the sine changes its sign.
        shifted = x * INVERSE_PI + ROUND
        return _reduced(x, shifted - ROUND, shifted.to(tl.int32, bitcast=True) << 31)


@triton.jit
def cos(x, FAST: tl.constexpr):
    """Cosine of float32 x."""
    if FAST:
        if INTERPRETED:
            return tl.cos(x)
        else:
            return tl.inline_asm_elementwise(
                "cos.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1
            )
    else:
        # cos(x) = -(-1)^n sin(x - (n + 1/2) pi)
        shifted = x * INVERSE_PI - 0.5 + ROUND
        return _reduced(x, shifted - ROUND + 0.5, (shifted.to(tl.int32, bitcast=True) + 1) << 31)


@triton.jit
def _reduced(x, n, sign):
    """sin(x - n pi) with its sign bit flipped by ``sign``."""
    r = ((x - n * PI_1) - n * PI_2) - n * PI_3
    z = r * r
    value = r + r * z * (S3 + z * (S5 + z * (S7 + z * S9)))
    return (value.to(tl.int32, bitcast=True) ^ sign).to(tl.float32, bitcast=True)
