"""Residual add with activation, and the activation's gradient: one value in, one value out."""

import torch
import triton
import triton.language as tl

from .epilogue import activate
from .language import kernel, narrow, offsets, outputs_at, widen
from .launch import block, cdiv, is_wide, launch, strides, unit


@triton.jit
def combine(a, b, ACTIVATION: tl.constexpr, GRADIENT: tl.constexpr):
    """act(a + b); GRADIENT: a times act' at the output b."""
    if not GRADIENT:
        return activate(a + b, ACTIVATION)
    elif ACTIVATION == 1:
        return tl.where(b <= 0, 0.0, a)
    elif ACTIVATION == 2:
        return a * b * (1 - b)
    else:
        return a


@triton.jit
def add_dense(
    a, b, y, count, ACTIVATION: tl.constexpr, GRADIENT: tl.constexpr, BLOCK: tl.constexpr
):
    """Operands of one dense layout. Grid: blocks."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    x, z = tl.load(a + at, mask=inside), tl.load(b + at, mask=inside)
    result = combine(widen(x), widen(z), ACTIVATION, GRADIENT)
    tl.store(y + at, narrow(result, y.dtype.element_ty), mask=inside)


@kernel
def add_strided(
    a, b, y, N, C, P, Q, a_n, a_h, a_w, a_c, b_n, b_h, b_w, b_c, y_n, y_h, y_w, y_c,
    UNIT: tl.constexpr, ACTIVATION: tl.constexpr, GRADIENT: tl.constexpr, WIDE: tl.constexpr,
    BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Operands of any strides. Grid: tiles of pixels x tiles of C."""
    C = C * UNIT
    tiles = tl.cdiv(C, BC)
    n, p, q = outputs_at(tl.program_id(0) // tiles, N, P, Q, BM, WIDE)
    c = (tl.program_id(0) % tiles * BC + tl.arange(0, BC)).to(tl.int64)
    inside = (n < N)[:, None] & (c < C)[None, :]
    row = a + offsets(n, p, q, a_n, a_h, a_w, UNIT)
    x = tl.load(row[:, None] + (c * a_c)[None, :], mask=inside)
    row = b + offsets(n, p, q, b_n, b_h, b_w, UNIT)
    z = tl.load(row[:, None] + (c * b_c)[None, :], mask=inside)
    result = narrow(combine(widen(x), widen(z), ACTIVATION, GRADIENT), y.dtype.element_ty)
    row = y + offsets(n, p, q, y_n, y_h, y_w, UNIT)
    tl.store(row[:, None] + (c * y_c)[None, :], result, mask=inside)


def _dense(t: torch.Tensor) -> bool:
    return t.is_contiguous() or t.is_contiguous(memory_format=torch.channels_last)


def _add(y, a, b, activation, gradient) -> None:
    if y.stride() == a.stride() == b.stride() and _dense(y):
        size = 1024
        launch(
            add_dense, (cdiv(y.numel(), size),), y, a, b, y, y.numel(),
            ACTIVATION=activation, GRADIENT=gradient, BLOCK=size, num_warps=4,
        )  # fmt: skip
        return
    n, c, p, q = y.shape
    by = unit(y, c, a, b)
    bm, bc = block(y, a, b)
    launch(
        add_strided, (cdiv(n * p * q, bm) * cdiv(c, bc),), y, a, b, y, n, c // by, p, q,
        *strides(a, by), *strides(b, by), *strides(y, by),
        UNIT=by, ACTIVATION=activation, GRADIENT=gradient, WIDE=is_wide(n, (p, q)), BM=bm, BC=bc,
        num_warps=4,
    )  # fmt: skip


def residual_add(y, input, shortcut, activation) -> None:
    """y = act(input + shortcut)."""
    _add(y, input, shortcut, activation, gradient=False)


def activation_grad(dz, grad, output, activation) -> None:
    """dz = grad times the activation's derivative at its output."""
    _add(dz, grad, output, activation, gradient=True)
