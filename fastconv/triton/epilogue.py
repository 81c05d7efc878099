"""activation(acc + bias + residual), written once for every kernel."""

import triton
import triton.language as tl

from .language import narrow, widen


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """Code 0: x. 1: relu, which keeps NaN. 2: sigmoid."""
    if ACTIVATION == 1:
        x = tl.where(x <= 0, 0.0, x)
    if ACTIVATION == 2:
        x = 1 / (1 + tl.exp(-x))
    return x


@triton.jit
def store_outputs(
    acc, y, bias, residual, y_rows, y_c, residual_rows, residual_c, columns, rows_in, columns_in,
    ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Stores the tile acc [BM, BN] through the epilogue; bias and residual may be None.

    y_rows, residual_rows: offsets [BM] of its outputs; columns: [BN] its channels, of the strides
    y_c and residual_c; rows_in, columns_in: which of them exist.
    """
    inside = rows_in[:, None] & columns_in[None, :]
    if bias is not None:
        acc += widen(tl.load(bias + columns, mask=columns_in, other=0.0))[None, :]
    if residual is not None:
        places = residual + residual_rows[:, None] + columns.to(tl.int64)[None, :] * residual_c
        acc += widen(tl.load(places, mask=inside, other=0.0))
    places = y + y_rows[:, None] + columns.to(tl.int64)[None, :] * y_c
    tl.store(places, narrow(activate(acc, ACTIVATION), y.dtype.element_ty), mask=inside)
