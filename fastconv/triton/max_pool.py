"""Max pooling, its gradient and its gradient's gradient.

An index says where a maximum came from: r S + s within the window (INDEX 1), h W + w within the
plane (INDEX 2); without one (INDEX 0) the kernel is a chain of maxima. The gradient gathers: each
input looks at the windows that cover it, so nothing is added atomically.
"""

import triton
import triton.language as tl

from .language import kernel, narrow, offsets, outputs_at, widen, widen_to_compare


@kernel
def max_pool(
    x, y, index, N, C, H, W, P, Q,
    x_n, x_h, x_w, x_c, y_n, y_h, y_w, y_c, index_n, index_h, index_w, index_c,
    pad_h, pad_w, R: tl.constexpr, S: tl.constexpr,
    stride_h: tl.constexpr, stride_w: tl.constexpr, dil_h: tl.constexpr, dil_w: tl.constexpr,
    UNIT: tl.constexpr, INDEX: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """y[n,p,q,c] = max over r, s of x[n, p stride + r dil - pad, …, c]; NaN wins, else the first.

    ROWS x COLUMNS taps at once, which divide R x S. Grid: tiles of outputs x tiles of C.
    """
    C = C * UNIT
    tiles = tl.cdiv(C, BC)
    n, p, q = outputs_at(tl.program_id(0) // tiles, N, P, Q, BM, WIDE)
    c = tl.program_id(0) % tiles * BC + tl.arange(0, BC)
    valid, columns_in = n < N, c < C
    h, w = p * stride_h - pad_h, q * stride_w - pad_w
    row = x + offsets(n, h, w, x_n, x_h, x_w, UNIT)
    places = row[:, None] + (c * tl.cast(x_c, tl.int64))[None, :]
    # Maxima of half types need no conversion, except bfloat16's, which tl.maximum widens.
    WIDEN: tl.constexpr = INDEX != 0 or x.dtype.element_ty == tl.bfloat16
    if WIDEN:
        best = widen(tl.full((BM, BC), 0, x.dtype.element_ty)) + float("-inf")
    else:
        best = tl.full((BM, BC), float("-inf"), x.dtype.element_ty)
    # The first tap inside the input, where every value is -inf.
    first_r = tl.maximum((dil_h - 1 - h) // dil_h, 0)
    first_s = tl.maximum((dil_w - 1 - w) // dil_w, 0)
    tap = tl.zeros((BM, BC), tl.int32) + (first_r * S + first_s).to(tl.int32)[:, None]
    for r0 in range(0, R, ROWS):
        for s0 in range(0, S, COLUMNS):
            for i in tl.static_range(ROWS * COLUMNS):  # loads under way together
                r, s = r0 + i // COLUMNS, s0 + i % COLUMNS
                at_h, at_w = h + r * dil_h, w + s * dil_w
                reads = valid & (at_h >= 0) & (at_h < H) & (at_w >= 0) & (at_w < W)
                reads = reads[:, None] & columns_in[None, :]
                at = offsets(0, r * dil_h, s * dil_w, 0, x_h, x_w, UNIT)
                value = tl.load(places + at, mask=reads, other=float("-inf"))
                if INDEX:
                    value = widen_to_compare(value)
                elif WIDEN:
                    value = widen(value)
                if INDEX == 0:
                    best = tl.maximum(best, value, propagate_nan=tl.PropagateNan.ALL)
                else:
                    wins = (value > best) | (value != value)
                    best = tl.where(wins, value, best)
                    tap = tl.where(wins, r * S + s, tap)
    inside = valid[:, None] & columns_in[None, :]
    row = y + offsets(n, p, q, y_n, y_h, y_w, UNIT)
    best = narrow(best, y.dtype.element_ty) if WIDEN else best
    tl.store(row[:, None] + (c * tl.cast(y_c, tl.int64))[None, :], best, mask=inside)
    if INDEX:
        empty = (h + first_r * dil_h >= H) | (w + first_s * dil_w >= W)
        empty = (empty | (first_r >= R) | (first_s >= S))[:, None]
        if INDEX == 2:
            at_h = h.to(tl.int64)[:, None] + tap // S * dil_h
            tap = at_h * W + w[:, None] + tap % S * dil_w
        tap = tl.where(empty, 0, tap)
        row = index + offsets(n, p, q, index_n, index_h, index_w, UNIT)
        places = row[:, None] + (c * tl.cast(index_c, tl.int64))[None, :]
        tl.store(places, tap.to(index.dtype.element_ty), mask=inside)


@kernel
def max_pool_grad(
    dy, index, dx, N, C, H, W, P, Q,
    dy_n, dy_h, dy_w, dy_c, index_n, index_h, index_w, index_c, dx_n, dx_h, dx_w, dx_c,
    pad_h, pad_w, R: tl.constexpr, S: tl.constexpr,
    stride_h: tl.constexpr, stride_w: tl.constexpr, dil_h: tl.constexpr, dil_w: tl.constexpr,
    windows_h: tl.constexpr, windows_w: tl.constexpr,
    UNIT: tl.constexpr, INDEX: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """dx[n,h,w,c] = the sum of dy over the windows whose index says (h, w).

    At most windows_h x windows_w windows cover an input, ROWS x COLUMNS of them are read at once.
    Grid: tiles of inputs x tiles of C.
    """
    C = C * UNIT
    tiles = tl.cdiv(C, BC)
    n, h, w = outputs_at(tl.program_id(0) // tiles, N, H, W, BM, WIDE)
    c = (tl.program_id(0) % tiles * BC + tl.arange(0, BC)).to(tl.int64)
    valid, columns_in = n < N, c < C
    acc = tl.zeros((BM, BC), tl.float64 if dx.dtype.element_ty == tl.float64 else tl.float32)
    last_p, last_q = (h + pad_h) // stride_h, (w + pad_w) // stride_w
    first_r, first_s = h + pad_h - last_p * stride_h, w + pad_w - last_q * stride_w
    row = index + offsets(n, last_p, last_q, index_n, index_h, index_w, UNIT)
    indices = row[:, None] + (c * index_c)[None, :]
    row = dy + offsets(n, last_p, last_q, dy_n, dy_h, dy_w, UNIT)
    values = row[:, None] + (c * dy_c)[None, :]
    for i0 in range(0, windows_h, ROWS):
        for j0 in range(0, windows_w, COLUMNS):
            for k in tl.static_range(ROWS * COLUMNS):  # loads under way together
                i, j = i0 + k // COLUMNS, j0 + k % COLUMNS
                p, r, q, s = last_p - i, first_r + i * stride_h, last_q - j, first_s + j * stride_w
                reads = valid & (p >= 0) & (p < P) & (r % dil_h == 0) & (r // dil_h < R)
                reads = reads & (q >= 0) & (q < Q) & (s % dil_w == 0) & (s // dil_w < S)
                reads = reads[:, None] & columns_in[None, :]
                at = offsets(0, -i, -j, 0, index_h, index_w, UNIT)
                found = tl.load(indices + at, mask=reads, other=0)
                if INDEX == 2:
                    here = h.to(tl.int64) * W + w
                else:
                    here = (r // dil_h * S + s // dil_w).to(tl.int32)
                    found = found.to(tl.int32)
                at = offsets(0, -i, -j, 0, dy_h, dy_w, UNIT)
                value = widen(tl.load(values + at, mask=reads, other=0.0))
                acc += tl.where(found == here[:, None], value, 0.0)  # 0 where not read
    row = dx + offsets(n, h, w, dx_n, dx_h, dx_w, UNIT)
    places = row[:, None] + (c * dx_c)[None, :]
    inside = valid[:, None] & columns_in[None, :]
    tl.store(places, narrow(acc, dx.dtype.element_ty), mask=inside)


@triton.jit
def take(
    acc, found, value, i: tl.constexpr, j: tl.constexpr, a: tl.constexpr, b: tl.constexpr,
    R: tl.constexpr, S: tl.constexpr, stride_h: tl.constexpr, stride_w: tl.constexpr,
    dil_h: tl.constexpr, dil_w: tl.constexpr,
):  # fmt: skip
    """acc and the value of the window (i, j) above and to the left of a patch, where its index says
    the patch's input (a, b): a constant tap, unless that lies between taps or past the last."""
    r: tl.constexpr = i * stride_h + a
    s: tl.constexpr = j * stride_w + b
    if r % dil_h == 0 and r // dil_h < R and s % dil_w == 0 and s // dil_w < S:
        acc += tl.where(found == r // dil_h * S + s // dil_w, value, 0.0)
    return acc


@triton.jit
def store_place(
    acc, places, h, w, valid, columns_in, H, W, dx_h, dx_w, a: tl.constexpr, b: tl.constexpr,
    UNIT: tl.constexpr,
):  # fmt: skip
    """Stores acc [BM, BC] at (h + a, w + b), where that is inside."""
    inside = valid & (h + a >= 0) & (h + a < H) & (w + b >= 0) & (w + b < W)
    at = offsets(0, a, b, 0, dx_h, dx_w, UNIT)
    mask = inside[:, None] & columns_in[None, :]
    tl.store(places + at, narrow(acc, places.dtype.element_ty), mask=mask)


@kernel
def max_pool_grad_patches(
    dy, index, dx, N, C, H, W, P, Q, D0, D1,
    dy_n, dy_h, dy_w, dy_c, index_n, index_h, index_w, index_c, dx_n, dx_h, dx_w, dx_c,
    pad_h, pad_w, R: tl.constexpr, S: tl.constexpr,
    stride_h: tl.constexpr, stride_w: tl.constexpr, dil_h: tl.constexpr, dil_w: tl.constexpr,
    windows_h: tl.constexpr, windows_w: tl.constexpr, UNIT: tl.constexpr, WIDE: tl.constexpr,
    BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """`max_pool_grad` of a stride of 2 and of indices within windows, by patches of stride_h x
    stride_w inputs: windows are read once for all of a patch, whose taps are constants.

    Grid: tiles of the N D0 D1 patches x tiles of C.
    """
    C = C * UNIT
    tiles = tl.cdiv(C, BC)
    n, p, q = outputs_at(tl.program_id(0) // tiles, N, D0, D1, BM, WIDE)
    c = (tl.program_id(0) % tiles * BC + tl.arange(0, BC)).to(tl.int64)
    valid, columns_in = n < N, c < C
    acc = tl.zeros((BM, BC), tl.float64 if dx.dtype.element_ty == tl.float64 else tl.float32)
    acc_01, acc_10, acc_11 = acc, acc, acc  # the patch's inputs to the right and below
    row = index + offsets(n, p, q, index_n, index_h, index_w, UNIT)
    indices = row[:, None] + (c * index_c)[None, :]
    row = dy + offsets(n, p, q, dy_n, dy_h, dy_w, UNIT)
    values = row[:, None] + (c * dy_c)[None, :]
    for i in tl.static_range(windows_h):
        for j in tl.static_range(windows_w):
            reads = valid & (p >= i) & (p - i < P) & (q >= j) & (q - j < Q)
            reads = reads[:, None] & columns_in[None, :]
            at = offsets(0, -i, -j, 0, index_h, index_w, UNIT)
            found = tl.load(indices + at, mask=reads, other=0).to(tl.int32)
            at = offsets(0, -i, -j, 0, dy_h, dy_w, UNIT)
            value = widen(tl.load(values + at, mask=reads, other=0.0))
            acc = take(acc, found, value, i, j, 0, 0, R, S, stride_h, stride_w, dil_h, dil_w)
            if stride_w == 2:
                acc_01 = take(
                    acc_01, found, value, i, j, 0, 1, R, S, stride_h, stride_w, dil_h, dil_w
                )
            if stride_h == 2:
                acc_10 = take(
                    acc_10, found, value, i, j, 1, 0, R, S, stride_h, stride_w, dil_h, dil_w
                )
            if stride_h == 2 and stride_w == 2:
                acc_11 = take(
                    acc_11, found, value, i, j, 1, 1, R, S, stride_h, stride_w, dil_h, dil_w
                )
    h, w = p * stride_h - pad_h, q * stride_w - pad_w
    row = dx + offsets(n, h, w, dx_n, dx_h, dx_w, UNIT)
    places = row[:, None] + (c * dx_c)[None, :]
    store_place(acc, places, h, w, valid, columns_in, H, W, dx_h, dx_w, 0, 0, UNIT)
    if stride_w == 2:
        store_place(acc_01, places, h, w, valid, columns_in, H, W, dx_h, dx_w, 0, 1, UNIT)
    if stride_h == 2:
        store_place(acc_10, places, h, w, valid, columns_in, H, W, dx_h, dx_w, 1, 0, UNIT)
    if stride_h == 2 and stride_w == 2:
        store_place(acc_11, places, h, w, valid, columns_in, H, W, dx_h, dx_w, 1, 1, UNIT)


@kernel
def max_pool_gather(
    x, index, y, N, C, H, W, P, Q,
    x_n, x_h, x_w, x_c, index_n, index_h, index_w, index_c, y_n, y_h, y_w, y_c,
    S, stride_h, stride_w, pad_h, pad_w, dil_h, dil_w,
    UNIT: tl.constexpr, INDEX: tl.constexpr, WIDE: tl.constexpr,
    BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """y[n,p,q,c] = x where the index says, 0 where that is outside the plane.

    Grid: tiles of outputs x tiles of C.
    """
    C = C * UNIT
    tiles = tl.cdiv(C, BC)
    n, p, q = outputs_at(tl.program_id(0) // tiles, N, P, Q, BM, WIDE)
    c = (tl.program_id(0) % tiles * BC + tl.arange(0, BC)).to(tl.int64)
    inside = (n < N)[:, None] & (c < C)[None, :]
    row = index + offsets(n, p, q, index_n, index_h, index_w, UNIT)
    found = tl.load(row[:, None] + (c * index_c)[None, :], mask=inside, other=0)
    if INDEX == 2:
        known = (found >= 0) & (found < tl.cast(H, tl.int64) * W)
        h, w = found // W, found % W
    else:
        found = found.to(tl.int64)
        h = (p * stride_h - pad_h)[:, None] + found // S * dil_h
        w = (q * stride_w - pad_w)[:, None] + found % S * dil_w
        known = (h >= 0) & (h < H) & (w >= 0) & (w < W)
    places = x + offsets(n[:, None], h, w, x_n, x_h, x_w, UNIT) + (c * x_c)[None, :]
    value = tl.load(places, mask=inside & known, other=0.0)
    row = y + offsets(n, p, q, y_n, y_h, y_w, UNIT)
    tl.store(row[:, None] + (c * y_c)[None, :], value, mask=inside)
