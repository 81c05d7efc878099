"""1x1 convolution as a GEMM: outputs x output channels over c, strided or not.

Rows past the last output read the last one's input instead of being masked, and the stride is in
each row's pointer, so that the loop holds nothing but copies and products. PLANAR: operands are
planes of pixels (NCHW), read and written as such; a tile stays within one image, so that its pixels
are next to each other.
"""

import triton.language as tl

from .epilogue import store_outputs
from .language import filters_at, kernel, load_filters, offsets, outputs_at, product
from .split_k import store_partial


@kernel
def conv1x1(
    x, w, y, bias, residual, N, C, K, P, Q,
    x_n, x_h, x_w, x_c, y_n, y_h, y_w, y_c, residual_n, residual_h, residual_w, residual_c,
    w_far, steps_each,
    UNIT: tl.constexpr, Y_UNIT: tl.constexpr, C_UNIT: tl.constexpr, K_UNIT: tl.constexpr,
    W_UNIT: tl.constexpr, W_BY_DEPTH: tl.constexpr,
    PLANAR: tl.constexpr, SPLIT: tl.constexpr, EVEN_C: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr, ACTIVATION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """y[n,p,q,k] = act(sum_c x[n,p,q,c] w[k,c] + bias[k] + residual[n,p,q,k]).

    x_h x_w are the input's strides times the convolution's; w is [K, C], or [C, K], of rows w_far
    apart in units of W_UNIT. PLANAR: P is 1 and Q the plane's pixels in units of UNIT, as the
    strides of n and c are. SPLIT: y is [split, N P Q, K] of partial sums.

    Grid: tiles of outputs x tiles of K; 1, or images; splits of the depth.
    """
    C, K = C * C_UNIT, K * K_UNIT
    tiles_k = tl.cdiv(K, BN)
    tile, part = tl.program_id(0), tl.program_id(2)
    depth = tl.arange(0, BK)
    k = (tile % tiles_k) * BN + tl.arange(0, BN)
    if PLANAR:
        Q, x_c = Q * UNIT, tl.cast(x_c, tl.int64) * UNIT
        y_c, residual_c = tl.cast(y_c, tl.int64) * Y_UNIT, tl.cast(residual_c, tl.int64) * Y_UNIT
        n = tl.program_id(1)
        place = (tile // tiles_k) * BM + tl.arange(0, BM)
        valid = place < Q
        row = offsets(n, 0, 0, x_n, 0, 0, UNIT) + place
        y_row = offsets(n, 0, 0, y_n, 0, 0, Y_UNIT) + place
        residual_row = offsets(n, 0, 0, residual_n, 0, 0, Y_UNIT) + place
    else:
        n, p, q = outputs_at(tile // tiles_k, N, P, Q, BM, WIDE)
        valid = n < N
        row = offsets(tl.minimum(n, N - 1), p, q, x_n, x_h, x_w, UNIT)
        y_row = offsets(n, p, q, y_n, y_h, y_w, Y_UNIT)
        residual_row = offsets(n, p, q, residual_n, residual_h, residual_w, Y_UNIT)
    x_tile = x + row[:, None] + (depth * tl.cast(x_c, tl.int64))[None, :]  # [BM, BK]
    columns_in = k < K
    w_tile = filters_at(w, 0, depth, k, C, K, w_far, W_UNIT, W_BY_DEPTH)  # [BK, BN]
    w_step = 1 if W_BY_DEPTH else tl.cast(w_far, tl.int64) * W_UNIT

    steps = tl.cdiv(C, BK)
    begin, end = 0, steps
    if SPLIT:
        begin = part * steps_each
        end = tl.minimum(begin + steps_each, steps)
    acc = tl.zeros((BM, BN), tl.float64 if PRECISION == "f64" else tl.float32)
    for i in range(begin, end):
        c0 = i * BK
        x_at = tl.cast(c0, tl.int64) * x_c
        c_in = depth < C - c0
        b = load_filters(w_tile + c0 * w_step, c_in, columns_in, EVEN_C, W_BY_DEPTH)
        if PLANAR and EVEN_C:
            a = tl.load(x_tile + x_at, mask=valid[:, None], other=0.0)
        elif PLANAR:
            a = tl.load(x_tile + x_at, mask=valid[:, None] & c_in[None, :], other=0.0)
        elif EVEN_C:
            a = tl.load(x_tile + x_at)
        else:
            a = tl.load(x_tile + x_at, mask=c_in[None, :], other=0.0)
        acc = product(a, b, acc, PRECISION)

    if SPLIT:
        outputs = tl.cast(N, tl.int64) * P * Q
        store_partial(acc, y, part, tile // tiles_k, outputs, k, K, columns_in, BM)
    else:
        store_outputs(
            acc, y, bias, residual, y_row, y_c, residual_row, residual_c, k, valid, columns_in,
            ACTIVATION,
        )  # fmt: skip
