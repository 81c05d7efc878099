"""The bias gradient: db[k] = sum_{n,p,q} dz[n,k,p,q], in splits whose sums are added in order.

dz is dy, or the gradient of an activation, made in the same pass.
"""

import triton
import triton.language as tl

from .add import combine
from .language import narrow, offsets, outputs_at, widen


@triton.jit
def conv_bias_grad(
    dy, z, dz, partial, N, K, P, Q, dy_n, dy_h, dy_w, dy_c, z_n, z_h, z_w, z_c, dz_n, dz_h, dz_w,
    dz_c, steps_each, UNIT: tl.constexpr, ACTIVATION: tl.constexpr, MASKED: tl.constexpr,
    WIDE: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """partial[split, k]. MASKED: dz = dy at the activation's output z. Grid: tiles of K; 1; splits
    of the outputs."""
    K = K * UNIT
    split = tl.program_id(2)
    k = tl.program_id(0) * BC + tl.arange(0, BC)
    acc = tl.zeros((BM, BC), partial.dtype.element_ty)
    steps = tl.cdiv(tl.cast(N, tl.int64) * P * Q, BM)
    begin = tl.cast(split, tl.int64) * steps_each
    for step in range(begin, tl.minimum(begin + steps_each, steps)):
        n, p, q = outputs_at(step, N, P, Q, BM, WIDE)
        inside = (n < N)[:, None] & (k < K)[None, :]
        row = dy + offsets(n, p, q, dy_n, dy_h, dy_w, UNIT)
        channels = (k * tl.cast(dy_c, tl.int64))[None, :]
        value = widen(tl.load(row[:, None] + channels, mask=inside, other=0.0))
        if MASKED:
            row = z + offsets(n, p, q, z_n, z_h, z_w, UNIT)
            channels = (k * tl.cast(z_c, tl.int64))[None, :]
            at = widen(tl.load(row[:, None] + channels, mask=inside, other=0.0))
            rounded = narrow(combine(value, at, ACTIVATION, True), dz.dtype.element_ty)
            row = dz + offsets(n, p, q, dz_n, dz_h, dz_w, UNIT)
            channels = (k * tl.cast(dz_c, tl.int64))[None, :]
            tl.store(row[:, None] + channels, rounded, mask=inside)
            value = widen(rounded)
        acc += value
    tl.store(partial + tl.cast(split, tl.int64) * K + k, tl.sum(acc, 0), mask=k < K)
