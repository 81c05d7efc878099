"""Average, adaptive average and global average pooling, and their gradients.

Small windows: a block sums BM windows tap by tap. Large ones: a block sums one window, many places
at a time. The gradient gathers from the windows that cover an input.
"""

import triton
import triton.language as tl

from .language import kernel, narrow, offsets, outputs_at, widen


@triton.jit
def window_of(
    p, size, outputs, k, stride, pad, ADAPTIVE: tl.constexpr, COUNT_PAD: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """One axis of window p: its places [first, last) inside the input, and its divisor's factor."""
    if ADAPTIVE:
        p = tl.cast(p, tl.int64 if WIDE else tl.int32)
        first = p * size // outputs
        last = ((p + 1) * size + outputs - 1) // outputs
        return first, last, last - first
    else:
        origin = p * stride - pad
        end = origin + k
        first = tl.minimum(tl.maximum(origin, 0), size)
        last = tl.maximum(tl.minimum(end, size), first)
        counted = tl.minimum(end, size + pad) - origin if COUNT_PAD else last - first
        return first, last, counted


@triton.jit
def divide(total, count_h, count_w, divisor, dtype: tl.constexpr, WIDE: tl.constexpr):
    """total / divisor, or by the window's places where that is 0, to be stored as dtype."""
    count = tl.maximum(tl.cast(count_h, tl.int64 if WIDE else tl.int32) * count_w, 1)
    count = tl.where(divisor != 0, divisor, count).to(total.dtype)
    if dtype.primitive_bitwidth == 16:  # nothing is seen of a product's rounding
        return total * (1 / count)
    else:
        return total / count


@kernel
def avg_pool(
    x, y, N, C, H, W, P, Q, x_n, x_h, x_w, x_c, y_n, y_h, y_w, y_c,
    pad_h, pad_w, divisor, R: tl.constexpr, S: tl.constexpr,
    stride_h: tl.constexpr, stride_w: tl.constexpr,
    UNIT: tl.constexpr, ADAPTIVE: tl.constexpr, COUNT_PAD: tl.constexpr, WIDE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """y[n,p,q,c] = the mean of a window of at most R x S places, ROWS x COLUMNS at once.

    Grid: tiles of outputs x tiles of C.
    """
    C = C * UNIT
    tiles = tl.cdiv(C, BC)
    n, p, q = outputs_at(tl.program_id(0) // tiles, N, P, Q, BM, WIDE)
    c = (tl.program_id(0) % tiles * BC + tl.arange(0, BC)).to(tl.int64)
    valid, columns_in = n < N, c < C
    top, bottom, count_h = window_of(p, H, P, R, stride_h, pad_h, ADAPTIVE, COUNT_PAD, WIDE)
    left, right, count_w = window_of(q, W, Q, S, stride_w, pad_w, ADAPTIVE, COUNT_PAD, WIDE)
    row = x + offsets(n, top, left, x_n, x_h, x_w, UNIT)
    places = row[:, None] + (c * x_c)[None, :]
    acc = tl.zeros((BM, BC), tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32)
    for r0 in range(0, R, ROWS):
        for s0 in range(0, S, COLUMNS):
            for i in tl.static_range(ROWS * COLUMNS):  # loads under way together
                r, s = r0 + i // COLUMNS, s0 + i % COLUMNS
                reads = valid & (top + r < bottom) & (left + s < right)
                reads = reads[:, None] & columns_in[None, :]
                at = offsets(0, r, s, 0, x_h, x_w, UNIT)
                acc += widen(tl.load(places + at, mask=reads, other=0.0))
    row = y + offsets(n, p, q, y_n, y_h, y_w, UNIT)
    DTYPE: tl.constexpr = y.dtype.element_ty
    mean = divide(acc, count_h[:, None], count_w[:, None], divisor, DTYPE, WIDE)
    inside = valid[:, None] & columns_in[None, :]
    tl.store(row[:, None] + (c * y_c)[None, :], narrow(mean, y.dtype.element_ty), mask=inside)


@kernel
def avg_pool_large(
    x, y, C, H, W, P, Q, x_n, x_h, x_w, x_c, y_n, y_h, y_w, y_c,
    R, S, stride_h, stride_w, pad_h, pad_w, divisor,
    UNIT: tl.constexpr, ADAPTIVE: tl.constexpr, COUNT_PAD: tl.constexpr, WIDE: tl.constexpr,
    BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """`avg_pool` of one window and BC channels, BM places at a time. Grid: outputs x tiles of C."""
    C = C * UNIT
    tiles = tl.cdiv(C, BC)
    output = tl.program_id(0) // tiles
    n, p, q = output // Q // P, output // Q % P, output % Q
    c = (tl.program_id(0) % tiles * BC + tl.arange(0, BC)).to(tl.int64)
    top, bottom, count_h = window_of(p, H, P, R, stride_h, pad_h, ADAPTIVE, COUNT_PAD, WIDE)
    left, right, count_w = window_of(q, W, Q, S, stride_w, pad_w, ADAPTIVE, COUNT_PAD, WIDE)
    WORD: tl.constexpr = tl.int64 if WIDE else tl.int32
    places, width = tl.cast(bottom - top, WORD) * (right - left), tl.maximum(right - left, 1)
    base = x + offsets(n, top, left, x_n, x_h, x_w, UNIT) + c * x_c
    acc = tl.zeros((BM, BC), tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32)
    for first in range(0, places, BM):
        place = first + tl.arange(0, BM)
        at = offsets(0, place // width, place % width, 0, x_h, x_w, UNIT)
        reads = (place < places)[:, None] & (c < C)[None, :]
        acc += widen(tl.load(base[None, :] + at[:, None], mask=reads, other=0.0))
    mean = divide(tl.sum(acc, 0), count_h, count_w, divisor, y.dtype.element_ty, WIDE)
    at = y + offsets(n, p, q, y_n, y_h, y_w, UNIT) + c * y_c
    tl.store(at, narrow(mean, y.dtype.element_ty), mask=c < C)


@kernel
def avg_pool_grad(
    dy, dx, N, C, H, W, P, Q, dy_n, dy_h, dy_w, dy_c, dx_n, dx_h, dx_w, dx_c,
    pad_h, pad_w, divisor, R: tl.constexpr, S: tl.constexpr,
    stride_h: tl.constexpr, stride_w: tl.constexpr,
    windows_h: tl.constexpr, windows_w: tl.constexpr,
    UNIT: tl.constexpr, ADAPTIVE: tl.constexpr, COUNT_PAD: tl.constexpr, WIDE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """dx[n,h,w,c] = the sum of dy / divisor over the windows that hold (h, w).

    At most windows_h x windows_w windows do, ROWS x COLUMNS of them are read at once.
    Grid: tiles of inputs x tiles of C.
    """
    C = C * UNIT
    tiles = tl.cdiv(C, BC)
    n, h, w = outputs_at(tl.program_id(0) // tiles, N, H, W, BM, WIDE)
    c = (tl.program_id(0) % tiles * BC + tl.arange(0, BC)).to(tl.int64)
    valid, columns_in = n < N, c < C
    WORD: tl.constexpr = tl.int64 if WIDE else tl.int32
    if ADAPTIVE:  # the first windows that may hold it; else the last
        p0, q0 = h.to(WORD) * P // H, w.to(WORD) * Q // W
    else:
        p0, q0 = (h + pad_h) // stride_h, (w + pad_w) // stride_w
    NEXT: tl.constexpr = 1 if ADAPTIVE else -1
    row = dy + offsets(n, p0, q0, dy_n, dy_h, dy_w, UNIT)
    places = row[:, None] + (c * dy_c)[None, :]
    DTYPE: tl.constexpr = dx.dtype.element_ty
    acc = tl.zeros((BM, BC), tl.float64 if dx.dtype.element_ty == tl.float64 else tl.float32)
    for i0 in range(0, windows_h, ROWS):
        for j0 in range(0, windows_w, COLUMNS):
            for k in tl.static_range(ROWS * COLUMNS):  # loads under way together
                i, j = (i0 + k // COLUMNS) * NEXT, (j0 + k % COLUMNS) * NEXT
                p, q = p0 + i, q0 + j
                top, bottom, count_h = window_of(
                    p, H, P, R, stride_h, pad_h, ADAPTIVE, COUNT_PAD, WIDE
                )
                left, right, count_w = window_of(
                    q, W, Q, S, stride_w, pad_w, ADAPTIVE, COUNT_PAD, WIDE
                )
                reads = valid & (p >= 0) & (p < P) & (h >= top) & (h < bottom)
                reads = reads & (q >= 0) & (q < Q) & (w >= left) & (w < right)
                reads = reads[:, None] & columns_in[None, :]
                at = offsets(0, i, j, 0, dy_h, dy_w, UNIT)
                value = widen(tl.load(places + at, mask=reads, other=0.0))
                acc += divide(value, count_h[:, None], count_w[:, None], divisor, DTYPE, WIDE)
    row = dx + offsets(n, h, w, dx_n, dx_h, dx_w, UNIT)
    inside = valid[:, None] & columns_in[None, :]
    tl.store(row[:, None] + (c * dx_c)[None, :], narrow(acc, dx.dtype.element_ty), mask=inside)
