"""What every kernel is written with: storage types, products, and the phases of a gradient.

Kernels compute in float32, or in float64 where they store it. Under TRITON_INTERPRET=1 bfloat16 is
converted by its bits, since the interpreter's own conversions and products of it are wrong.
"""

import inspect
import re

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


# Sizes, paddings and strides in units: what divides them says nothing of the width of a load, which
# the UNITs do, so none is worth a compilation. A stride of channels is, where it is 1.
PLAIN = re.compile(r"N|C|H|W|K|P|Q|D0|D1|D2|width|\w+_(n|p|q|h|w|k|r|s|0|1|2|split|far|tap|each)")
KEPT = re.compile(r"(stride|dil|common|inverse)_\w+")  # mostly 1: what they multiply then goes


def kernel(function):
    """`triton.jit` of a kernel that one compilation serves at all sizes."""
    names = inspect.signature(function).parameters.values()
    names = [p.name for p in names if p.annotation is p.empty]
    plain = [name for name in names if PLAIN.fullmatch(name) and not KEPT.fullmatch(name)]
    return triton.jit(do_not_specialize=plain)(function)


@triton.jit
def widen(x):
    """Storage to the arithmetic's type: float32, or float64."""
    if x.dtype == tl.float64:
        return x
    elif INTERPRETED and x.dtype == tl.bfloat16:
        return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        return x.to(tl.float32)


@triton.jit
def widen_to_compare(x):
    """`widen`, of which LLVM does not see that it changes no order: it would compare half types in
    pairs, whose results take more instructions to tell apart than conversions do."""
    if x.dtype == tl.bfloat16:
        return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    elif x.dtype == tl.float16 and not INTERPRETED:
        return tl.inline_asm_elementwise(
            "{ .reg .b16 lo, hi; mov.b32 {lo, hi}, $2; cvt.f32.f16 $0, lo; cvt.f32.f16 $1, hi; }",
            "=r,=r,r", [x], dtype=tl.float32, is_pure=True, pack=2,
        )  # fmt: skip
    else:
        return widen(x)


@triton.jit
def narrow(x, dtype: tl.constexpr):
    """The arithmetic's type to storage, rounded to nearest even."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        kept = tl.where(x == x, rounded, (bits >> 16) | 0x40)  # NaN stays NaN
        return kept.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return x.to(dtype)


@triton.jit
def round_tf32(x):
    """float32 to the nearest tf32. NOTE tl.dot by itself drops the low 13 bits."""
    if INTERPRETED:
        bits = x.to(tl.int32, bitcast=True)
        return tl.where(x == x, (bits + 0x1000) & ~0x1FFF, bits).to(tl.float32, bitcast=True)
    else:
        return tl.inline_asm_elementwise(
            "cvt.rna.tf32.f32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def product(a, b, total, PRECISION: tl.constexpr):
    """total + a b, of tiles as they are stored."""
    if PRECISION == "tf32":
        return tl.dot(round_tf32(a), round_tf32(b), total, input_precision="tf32")
    elif PRECISION == "tf32x3":
        # Tensor cores round their sums toward zero: each product starts from zero and is added in
        # float32.
        return total + tl.dot(a, b, input_precision="tf32x3")
    elif PRECISION == "f64":
        return tl.dot(a, b, total, out_dtype=tl.float64)
    elif INTERPRETED and a.dtype == tl.bfloat16:
        return tl.dot(widen(a), widen(b), total)
    else:
        return tl.dot(a, b, total)


@triton.jit
def filters_at(
    w, group, depth, k, C, K, far, UNIT: tl.constexpr, BY_DEPTH: tl.constexpr
):  # fmt: skip
    """Pointers [BK, BN] to weights of one tap: [K, R, S, C] BY_DEPTH, else [C, R, S, K]; `far` is
    the stride of the first axis, in units of UNIT."""
    if BY_DEPTH:  # past the last k those of another, which nobody stores
        filters = offsets(0, 0, group * K + tl.minimum(k, K - 1), 0, 0, far, UNIT)
        return w + filters[None, :] + depth[:, None]
    else:
        filters = offsets(0, 0, group * C + depth, 0, 0, far, UNIT)
        return w + filters[:, None] + k[None, :]


@triton.jit
def load_filters(places, c_in, k_in, EVEN_C: tl.constexpr, BY_DEPTH: tl.constexpr):
    """Weights [BK, BN], 0 past the last c. A clamp of k would cost the wide loads along it."""
    if BY_DEPTH and EVEN_C:
        return tl.load(places)
    elif BY_DEPTH:
        return tl.load(places, mask=c_in[:, None], other=0.0)
    elif EVEN_C:
        return tl.load(places, mask=k_in[None, :], other=0.0)
    else:
        return tl.load(places, mask=c_in[:, None] & k_in[None, :], other=0.0)


@triton.jit
def outputs_at(pid, N, P, Q, BM: tl.constexpr, WIDE: tl.constexpr):
    """n, p, q of outputs [BM], the batch outermost; n >= N past the last.

    WIDE where there are 2^31 of them and more (`launch.is_wide`): divisions of int64 cost an NVIDIA
    GPU some 100 instructions, of int32 20.
    """
    WORD: tl.constexpr = tl.int64 if WIDE else tl.int32
    plane = tl.cast(P, WORD) * Q
    place = tl.cast(pid, WORD) * BM + tl.arange(0, BM)
    n = place // plane
    place -= n * plane
    p = place // Q
    return n, p, place - p * Q


@triton.jit
def phase_outputs_at(pid, N, rows, columns, BM: tl.constexpr, WIDE: tl.constexpr):
    """outputs_at of a stride phase, which has neither a row nor a column where the stride is past
    the size."""
    n, p, q = outputs_at(pid, N, tl.maximum(rows, 1), tl.maximum(columns, 1), BM, WIDE)
    return tl.where(tl.minimum(rows, columns) > 0, n, N), p, q


@triton.jit
def offsets(n, h, w, by_n, by_h, by_w, UNIT: tl.constexpr):
    """Of pixels in a tensor, in elements; its strides are in units of UNIT of them. int64, as each
    of these products may pass 2^31."""
    at = tl.cast(n, tl.int64) * by_n + tl.cast(h, tl.int64) * by_h + tl.cast(w, tl.int64) * by_w
    return at * UNIT


@triton.jit
def phase_of(a, size, taps, stride, pad, dil, common, inverse):
    """Where the gradient of one axis reads at h = a + stride i: at y[i + start - j dil/common].

    The taps that reach these inputs are r = first + j stride/common, j < count, common being
    gcd(stride, dil) and inverse that of dil/common modulo stride/common.

    Returns:
        start, first, count, and how many inputs the phase has.
    """
    step = stride // common
    reached = (a + pad) % common == 0
    first = ((a + pad) // common * inverse) % step
    count = tl.where(reached, tl.maximum(taps - first + step - 1, 0) // step, 0)
    start = (a + pad - first * dil) // stride  # exact where a tap reaches
    return start, first, count, (size - a + stride - 1) // stride
