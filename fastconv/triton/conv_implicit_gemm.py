"""Convolution and its input gradient as one GEMM: outputs x output channels over (r, s, c).

One loop over every (r, s, chunk of c), so that the pipeline never drains: static loops over r and s
around one over c would empty it R S times. What varies in the loop are scalars: a row keeps one
64-bit pointer, and one word whose bit r S + s says whether the tap lies inside the input. An input
gradient is the same loop over the taps of its stride phase: no zero is multiplied.

C, K and strides come in units of UNIT elements: the JIT by itself knows only divisibility by 16.
"""

import triton
import triton.language as tl

from .epilogue import store_outputs
from .language import (
    filters_at,
    kernel,
    load_filters,
    offsets,
    outputs_at,
    phase_of,
    phase_outputs_at,
    product,
)
from .split_k import store_partial


@triton.jit
def taps_inside(h, w, H, W, dil_h, dil_w, R: tl.constexpr, S: tl.constexpr):
    """Words [BM] whose bit r S + s, of 64 at most, says that the tap (r, s) lies in the input."""
    WORD: tl.constexpr = tl.int32 if R * S <= 32 else tl.int64
    columns = tl.zeros(h.shape, WORD)
    for s in tl.static_range(S):
        at = w + s * dil_w
        columns |= ((at >= 0) & (at < W)).to(WORD) << s
    inside = tl.zeros(h.shape, WORD)
    for r in tl.static_range(R):
        at = h + r * dil_h
        inside |= tl.where((at >= 0) & (at < H), columns << (r * S), 0)
    return inside


@kernel
def conv_implicit_gemm(
    x, w, y, bias, residual, N, H, W, C, K, P, Q,
    x_n, x_h, x_w, x_c, y_n, y_h, y_w, y_c, residual_n, residual_h, residual_w, residual_c,
    stride_h, stride_w, pad_h, pad_w, dil_h, dil_w,
    common_h, inverse_h, common_w, inverse_w, w_far, w_tap, steps_each,
    UNIT: tl.constexpr, Y_UNIT: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    FIRST_R: tl.constexpr, FIRST_S: tl.constexpr, GRADIENT: tl.constexpr, SPLIT: tl.constexpr,
    W_UNIT: tl.constexpr, W_BY_DEPTH: tl.constexpr, EVEN_C: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr, ACTIVATION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Forward: y[n,p,q,k] = act(sum x[n, p stride + r dil - pad, …, c] w[k,r,s,c] + …).

    GRADIENT: H W C are those of the output's gradient (x here), P Q K those of the input's (y).
    C and K are channels of one group; w is [K, R, S, C], or else [C, R, S, K], its strides w_far
    w_tap in units of W_UNIT. FIRST_R FIRST_S are the most taps of a phase, R S those of w. SPLIT: y
    is [split, N P Q, K] of partial sums.

    Grid: tiles of outputs x tiles of K; groups; phases, or splits of the depth.
    """
    C, K = C * UNIT, K * Y_UNIT
    tiles_k = tl.cdiv(K, BN)
    tile, group, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)

    # Which taps, and where the first of them reads.
    if GRADIENT:
        phase = 0 if SPLIT else part  # only strides of 1 are split
        a_h, a_w = phase // stride_w, phase % stride_w
        start_h, first_r, taps_r, rows = phase_of(
            a_h, P, R, stride_h, pad_h, dil_h, common_h, inverse_h
        )
        start_w, first_s, taps_s, columns = phase_of(
            a_w, Q, S, stride_w, pad_w, dil_w, common_w, inverse_w
        )
        next_r, next_s = stride_h // common_h, stride_w // common_w
        move_h, move_w = -(dil_h // common_h), -(dil_w // common_w)
    else:
        start_h, first_r, taps_r, next_r, move_h = -pad_h, 0, R, 1, dil_h
        start_w, first_s, taps_s, next_s, move_w = -pad_w, 0, S, 1, dil_w

    if GRADIENT:
        n, p, q = phase_outputs_at(tile // tiles_k, N, rows, columns, BM, WIDE)
        h, wide = p + start_h, q + start_w
        p, q = a_h + p * stride_h, a_w + q * stride_w
    else:
        n, p, q = outputs_at(tile // tiles_k, N, P, Q, BM, WIDE)
        h, wide = p * stride_h + start_h, q * stride_w + start_w
    valid = n < N
    if FIRST_R * FIRST_S <= 64:
        inside = taps_inside(h, wide, H, W, move_h, move_w, FIRST_R, FIRST_S)
        inside = tl.where(valid, inside, 0)

    depth = tl.arange(0, BK)
    k = (tile % tiles_k) * BN + tl.arange(0, BN)
    channel = group * C + depth
    row = offsets(n, h, wide, x_n, x_h, x_w, UNIT)
    x_tile = x + row[:, None] + (channel * tl.cast(x_c, tl.int64))[None, :]  # [BM, BK]
    columns_in = k < K
    w_tile = filters_at(w, group, depth, k, C, K, w_far, W_UNIT, W_BY_DEPTH)  # [BK, BN]
    w_step = 1 if W_BY_DEPTH else tl.cast(w_far, tl.int64) * W_UNIT

    step_h = tl.cast(move_h, tl.int64) * x_h * UNIT
    step_w = tl.cast(move_w, tl.int64) * x_w * UNIT
    chunks = tl.cdiv(C, BK)
    begin, end = 0, taps_r * taps_s * chunks
    c0, r, s = 0, 0, 0
    if SPLIT:
        begin = part * steps_each
        end = tl.minimum(begin + steps_each, end)
        c0 = begin % chunks * BK
        r, s = begin // chunks // taps_s, begin // chunks % taps_s
    acc = tl.zeros((BM, BN), tl.float64 if PRECISION == "f64" else tl.float32)
    for _ in range(begin, end):
        tap = (first_r + r * next_r) * S + first_s + s * next_s
        x_at = r * step_h + s * step_w + tl.cast(c0, tl.int64) * x_c
        w_at = tl.cast(tap, tl.int64) * w_tap * W_UNIT + c0 * w_step
        if FIRST_R * FIRST_S <= 64:
            reads = (inside >> (r * FIRST_S + s)) & 1 != 0
        else:
            at_h, at_w = h + r * move_h, wide + s * move_w
            reads = valid & (at_h >= 0) & (at_h < H) & (at_w >= 0) & (at_w < W)
        reads = reads[:, None]
        c_in = depth < C - c0
        if not EVEN_C:
            reads &= c_in[None, :]
        a = tl.load(x_tile + x_at, mask=reads, other=0.0)
        b = load_filters(w_tile + w_at, c_in, columns_in, EVEN_C, W_BY_DEPTH)
        acc = product(a, b, acc, PRECISION)
        c0 += BK
        wraps = c0 >= C
        c0 = tl.where(wraps, 0, c0)
        s = tl.where(wraps, s + 1, s)
        wraps = s == taps_s
        s = tl.where(wraps, 0, s)
        r = tl.where(wraps, r + 1, r)

    if SPLIT:
        store_partial(
            acc, y, part, tile // tiles_k, tl.cast(N, tl.int64) * P * Q, group * K + k,
            tl.num_programs(1) * K, columns_in, BM,
        )  # fmt: skip
    else:
        store_outputs(
            acc, y, bias, residual,
            offsets(n, p, q, y_n, y_h, y_w, Y_UNIT), y_c,
            offsets(n, p, q, residual_n, residual_h, residual_w, Y_UNIT), residual_c,
            group * K + k, valid, columns_in, ACTIVATION,
        )  # fmt: skip
