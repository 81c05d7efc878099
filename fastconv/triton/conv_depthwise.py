"""Depthwise convolution and narrow groups, their input and weight gradients: bound by memory.

A block computes BM outputs x BC channels without tensor cores: every channel multiplies inputs of
its own, which lie next to each other in channels_last tensors.
"""

import triton.language as tl

from .epilogue import store_outputs
from .language import kernel, offsets, outputs_at, phase_of, phase_outputs_at, widen


@kernel
def conv_depthwise(
    x, w, y, bias, residual, N, H, W, K, P, Q,
    x_n, x_h, x_w, x_c, y_n, y_h, y_w, y_c, residual_n, residual_h, residual_w, residual_c,
    stride_h, stride_w, pad_h, pad_w, dil_h, dil_w, common_h, inverse_h, common_w, inverse_w,
    UNIT: tl.constexpr, Y_UNIT: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    FIRST_R: tl.constexpr, FIRST_S: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    IN: tl.constexpr, OUT: tl.constexpr, GRADIENT: tl.constexpr, WIDE: tl.constexpr,
    ACTIVATION: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """y[n,p,q,k] = act(sum_{r,s,i} x[n, …, (k / OUT) IN + i] w[r,s,i,k] + bias[k] + residual).

    K counts the channels of y in all groups; a group reads IN channels and makes OUT. GRADIENT: x
    is the output's gradient, y the input's, as in `conv_implicit_gemm`, with FIRST_R x FIRST_S taps
    of a phase at most; ROWS x COLUMNS of them are read at once.

    Grid: tiles of outputs x tiles of K; 1; phases.
    """
    K = K * Y_UNIT
    tiles_k = tl.cdiv(K, BC)
    tile, phase = tl.program_id(0), tl.program_id(2)
    if GRADIENT:
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
    k = (tile % tiles_k) * BC + tl.arange(0, BC)
    columns_in = k < K
    channel = (k // OUT * IN).to(tl.int64) * x_c
    row = x + offsets(n, h, wide, x_n, x_h, x_w, UNIT)
    places = row[:, None] + channel[None, :]
    acc = tl.zeros((BM, BC), tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32)
    for r0 in range(0, FIRST_R, ROWS):
        for s0 in range(0, FIRST_S, COLUMNS):
            for j in tl.static_range(ROWS * COLUMNS):  # loads under way together
                r, s = r0 + j // COLUMNS, s0 + j % COLUMNS
                at_h, at_w = h + r * move_h, wide + s * move_w
                reads = valid & (at_h >= 0) & (at_h < H) & (at_w >= 0) & (at_w < W)
                exists = columns_in
                if GRADIENT:  # a phase may have fewer taps
                    exists = k < tl.where((r < taps_r) & (s < taps_s), K, 0)
                reads = reads[:, None] & exists[None, :]
                at = offsets(0, r * move_h, s * move_w, 0, x_h, x_w, UNIT)
                tap = (first_r + r * next_r) * S + first_s + s * next_s
                for i in tl.static_range(IN):
                    a = widen(tl.load(places + (at + i * x_c), mask=reads, other=0.0))
                    filters = w + tl.cast(tap * IN + i, tl.int64) * K
                    b = widen(tl.load(filters + k, mask=exists, other=0.0))
                    acc += a * b[None, :]
    store_outputs(
        acc, y, bias, residual,
        offsets(n, p, q, y_n, y_h, y_w, Y_UNIT), y_c,
        offsets(n, p, q, residual_n, residual_h, residual_w, Y_UNIT), residual_c,
        k, valid, columns_in, ACTIVATION,
    )  # fmt: skip


@kernel
def conv_depthwise_weight_grad(
    dy, x, partial, N, H, W, K, P, Q, R, S,
    dy_n, dy_h, dy_w, dy_c, x_n, x_h, x_w, x_c,
    stride_h, stride_w, pad_h, pad_w, dil_h, dil_w, steps_each,
    DY_UNIT: tl.constexpr, UNIT: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr,
    WIDE: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """partial[split, (i, r, s), k] = sum_{n,p,q} dy[n,p,q,k] x[n, …, (k / OUT) IN + i].

    Grid: tiles of K x IN R S; 1; splits of the outputs.
    """
    K = K * DY_UNIT
    rows = IN * R * S
    tile, row, split = tl.program_id(0) // rows, tl.program_id(0) % rows, tl.program_id(2)
    r, s = row // S % R, row % S
    i = 0 if IN == 1 else row // (R * S)  # a constant keeps rows aligned
    k = tile * BC + tl.arange(0, BC)
    columns_in = k < K
    channel = (k // OUT * IN + i).to(tl.int64) * x_c
    acc = tl.zeros((BM, BC), partial.dtype.element_ty)
    steps = tl.cdiv(tl.cast(N, tl.int64) * P * Q, BM)
    begin = tl.cast(split, tl.int64) * steps_each
    for step in range(begin, tl.minimum(begin + steps_each, steps)):
        n, p, q = outputs_at(step, N, P, Q, BM, WIDE)
        h, w = p * stride_h + r * dil_h - pad_h, q * stride_w + s * dil_w - pad_w
        reads = (n < N) & (h >= 0) & (h < H) & (w >= 0) & (w < W)
        reads = reads[:, None] & columns_in[None, :]
        at = offsets(n, p, q, dy_n, dy_h, dy_w, DY_UNIT)
        a = tl.load(
            dy + at[:, None] + (k * tl.cast(dy_c, tl.int64))[None, :], mask=reads, other=0.0
        )
        at = offsets(n, h, w, x_n, x_h, x_w, UNIT)
        b = tl.load(x + at[:, None] + channel[None, :], mask=reads, other=0.0)
        acc += widen(a) * widen(b)
    place = partial + (tl.cast(split, tl.int64) * rows + row) * K + k
    tl.store(place, tl.sum(acc, 0), mask=columns_in)
