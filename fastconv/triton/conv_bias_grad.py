"""The bias gradient: db[k] = sum_{n,p,q} dy[n,k,p,q], in splits whose sums are added in order."""

import triton
import triton.language as tl

from .language import outputs_at, widen


@triton.jit
def conv_bias_grad(
    dy, partial, N, K, P, Q, dy_n, dy_h, dy_w, dy_c, steps_each,
    DY_UNIT: tl.constexpr, WIDE: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """partial[split, k]. Grid: tiles of K; 1; splits of the outputs."""
    dy_n, dy_h, dy_w, K = dy_n * DY_UNIT, dy_h * DY_UNIT, dy_w * DY_UNIT, K * DY_UNIT
    split = tl.program_id(2)
    k = tl.program_id(0) * BC + tl.arange(0, BC)
    acc = tl.zeros((BM, BC), partial.dtype.element_ty)
    steps = tl.cdiv(tl.cast(N, tl.int64) * P * Q, BM)
    begin = tl.cast(split, tl.int64) * steps_each
    for step in range(begin, tl.minimum(begin + steps_each, steps)):
        n, p, q = outputs_at(step, N, P, Q, BM, WIDE)
        at = n * dy_n + p.to(tl.int64) * dy_h + q.to(tl.int64) * dy_w
        places = dy + at[:, None] + (k * tl.cast(dy_c, tl.int64))[None, :]
        acc += widen(tl.load(places, mask=(n < N)[:, None] & (k < K)[None, :], other=0.0))
    tl.store(partial + tl.cast(split, tl.int64) * K + k, tl.sum(acc, 0), mask=k < K)
