"""The bias gradient: db[k] = sum_{n,p,q} dz[n,k,p,q], in splits that are added afterwards.

dz is dy, or the gradient of an activation, made in the same pass. Pixels are walked in runs of
evenly spaced ones, by counting: nothing is divided, and a step has several loads under way.
"""

import triton.language as tl

from .add import combine
from .language import kernel, narrow, offsets, widen


@kernel
def conv_bias_grad(
    dy, z, dz, partial, N, P, Q, K, dy_n, dy_h, dy_w, dy_c, z_n, z_h, z_w, z_c, dz_n, dz_h, dz_w,
    dz_c, steps_each, UNIT: tl.constexpr, PLANAR: tl.constexpr, ACTIVATION: tl.constexpr,
    MASKED: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """partial[split, k]. MASKED: dz = dy at the activation's output z.

    N P runs of Q pixels. Strides of n and p come in units of UNIT; so do that of q and K, or where
    PLANAR, whose pixels are next to each other, Q and the strides of c.

    Grid: tiles of K; splits of the steps, which are tiles of runs.
    """
    Q_UNIT: tl.constexpr = 1 if PLANAR else UNIT
    C_UNIT: tl.constexpr = UNIT if PLANAR else 1
    K, Q = K * Q_UNIT, Q * C_UNIT
    split = tl.program_id(1)
    k, place = tl.program_id(0) * BC + tl.arange(0, BC), tl.arange(0, BM)
    columns_in = (k < K)[None, :]
    dy_tile = dy + offsets(0, 0, place, 0, 0, dy_w, Q_UNIT)[:, None]
    dy_tile += offsets(0, 0, k, 0, 0, dy_c, C_UNIT)[None, :]  # [BM, BC]
    z_tile = z + offsets(0, 0, place, 0, 0, z_w, Q_UNIT)[:, None]
    z_tile += offsets(0, 0, k, 0, 0, z_c, C_UNIT)[None, :]
    dz_tile = dz + offsets(0, 0, place, 0, 0, dz_w, Q_UNIT)[:, None]
    dz_tile += offsets(0, 0, k, 0, 0, dz_c, C_UNIT)[None, :]

    tiles = tl.cast(tl.cdiv(Q, BM), tl.int32)  # steps are fewer than 2^31: divisions of 32 bits
    begin = split * steps_each
    end = tl.minimum(begin + steps_each, N * P * tiles)
    q0, p, n = tl.cast(begin % tiles, tl.int64) * BM, begin // tiles % P, begin // tiles // P
    acc = tl.zeros((BM, BC), partial.dtype.element_ty)
    for _ in range(begin, end):
        inside = (place < Q - q0)[:, None] & columns_in
        at = offsets(n, p, 0, dy_n, dy_h, 0, UNIT) + q0 * dy_w * Q_UNIT
        value = widen(tl.load(dy_tile + at, mask=inside, other=0.0))
        if MASKED:
            at = offsets(n, p, 0, z_n, z_h, 0, UNIT) + q0 * z_w * Q_UNIT
            output = widen(tl.load(z_tile + at, mask=inside, other=0.0))
            rounded = narrow(combine(value, output, ACTIVATION, True), dz.dtype.element_ty)
            at = offsets(n, p, 0, dz_n, dz_h, 0, UNIT) + q0 * dz_w * Q_UNIT
            tl.store(dz_tile + at, rounded, mask=inside)
            value = widen(rounded)
        acc += value
        q0 += BM
        wraps = q0 >= Q
        q0 = tl.where(wraps, 0, q0)
        p = tl.where(wraps, p + 1, p)
        wraps = p >= P
        p = tl.where(wraps, 0, p)
        n = tl.where(wraps, n + 1, n)
    tl.store(partial + tl.cast(split, tl.int64) * K + k, tl.sum(acc, 0), mask=k < K)
