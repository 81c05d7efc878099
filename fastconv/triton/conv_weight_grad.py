"""The weight gradient as a GEMM: output channels x input channels over the outputs, per tap.

The incoming gradient is read transposed by its pointers, as `tl.trans` of a loaded tile would stop
asynchronous copies on sm_80. A step is a rectangle of BP x BQ outputs, whose offsets are made once;
the outputs are cut into splits whose sums are added afterwards (`split_k.py`).
"""

import triton.language as tl

from .language import kernel, narrow, offsets, product


@kernel
def conv_weight_grad(
    dy, x, dw, N, H, W, C, K, P, Q, R, S,
    dy_n, dy_h, dy_w, dy_c, x_n, x_h, x_w, x_c, dw_split, dw_k, dw_r, dw_s, dw_c,
    stride_h, stride_w, pad_h, pad_w, dil_h, dil_w, steps_each,
    DY_UNIT: tl.constexpr, UNIT: tl.constexpr, DW_UNIT: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BP: tl.constexpr, BQ: tl.constexpr,
):  # fmt: skip
    """dw[split, k, c, r, s] = sum_{n,p,q} dy[n,p,q,k] x[n, p stride + r dil - pad, …, c].

    C and K are channels of one group. dw has a part for each split, or is the result of one; its
    strides are in units of DW_UNIT, but for c's.

    Grid: tiles of K x tiles of C x R S; groups; splits.
    """
    K, C = K * DY_UNIT, C * UNIT
    tiles_c = tl.cdiv(C, BN)
    tile, tap = tl.program_id(0) // (R * S), tl.program_id(0) % (R * S)
    tile_k, tile_c, r, s = tile // tiles_c, tile % tiles_c, tap // S, tap % S
    group, split = tl.program_id(1), tl.program_id(2)

    k, c = tile_k * BM + tl.arange(0, BM), tile_c * BN + tl.arange(0, BN)
    place = tl.arange(0, BP * BQ)
    dp, dq = place // BQ, place % BQ
    k_in, c_in = (k < K)[:, None], (c < C)[None, :]
    dy_tile = (
        dy
        + ((group * K + k) * tl.cast(dy_c, tl.int64))[:, None]
        + offsets(0, dp, dq, 0, dy_h, dy_w, DY_UNIT)[None, :]
    )  # [BM, BP BQ]
    up, left = r * dil_h - pad_h, s * dil_w - pad_w  # of an output's place, times the stride
    x_tile = (
        x
        + ((group * C + c) * tl.cast(x_c, tl.int64))[None, :]
        + offsets(0, dp * stride_h, dq * stride_w, 0, x_h, x_w, UNIT)[:, None]
    )  # [BP BQ, BN]

    tiles_p, tiles_q = tl.cdiv(P, BP), tl.cdiv(Q, BQ)
    begin = split * steps_each  # steps are fewer than 2^31
    end = tl.minimum(begin + steps_each, N * tiles_p * tiles_q)
    q0, p0 = begin % tiles_q * BQ, begin // tiles_q % tiles_p * BP
    n = begin // tiles_q // tiles_p
    acc = tl.zeros((BM, BN), tl.float64 if PRECISION == "f64" else tl.float32)
    for _ in range(begin, end):
        p, q = p0 + dp, q0 + dq
        h, w = p * stride_h + up, q * stride_w + left
        exists = (p < P) & (q < Q)
        reads = exists & (h >= 0) & (h < H) & (w >= 0) & (w < W)
        dy_at = offsets(n, p0, q0, dy_n, dy_h, dy_w, DY_UNIT)
        h0, w0 = tl.cast(p0, tl.int64) * stride_h + up, tl.cast(q0, tl.int64) * stride_w + left
        x_at = offsets(n, h0, w0, x_n, x_h, x_w, UNIT)
        a = tl.load(dy_tile + dy_at, mask=exists[None, :] & k_in, other=0.0)
        b = tl.load(x_tile + x_at, mask=reads[:, None] & c_in, other=0.0)
        acc = product(a, b, acc, PRECISION)
        q0 += BQ
        wraps = q0 >= Q
        q0 = tl.where(wraps, 0, q0)
        p0 = tl.where(wraps, p0 + BP, p0)
        wraps = p0 >= P
        p0 = tl.where(wraps, 0, p0)
        n = tl.where(wraps, n + 1, n)

    row = offsets(group * K + k, r, s, dw_k, dw_r, dw_s, DW_UNIT)
    row += tl.cast(split, tl.int64) * dw_split * DW_UNIT
    places = dw + row[:, None] + (c * tl.cast(dw_c, tl.int64))[None, :]
    tl.store(places, narrow(acc, dw.dtype.element_ty), mask=k_in & c_in)
