"""Sums cut into parts: each block stores its part, a second kernel adds them in order.

No atomics, so results do not depend on which block comes first.
"""

import triton
import triton.language as tl

from .epilogue import store_outputs
from .language import outputs_at


@triton.jit
def store_partial(acc, partial, split, tile, rows, columns, width, columns_in, BM: tl.constexpr):
    """Stores the tile acc [BM, BN] of partial, which is [split, rows, width]."""
    row = tl.cast(tile, tl.int64) * BM + tl.arange(0, BM)
    places = partial + (tl.cast(split, tl.int64) * rows + row)[:, None] * width + columns[None, :]
    tl.store(places, acc, mask=(row < rows)[:, None] & columns_in[None, :])


@triton.jit
def add_splits(
    partial, y, bias, residual, splits, D0, D1, D2, width, y_0, y_1, y_2, y_c,
    residual_0, residual_1, residual_2, residual_c,
    WIDE: tl.constexpr, ACTIVATION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """y[i, j, k, c] = act(sum over splits of partial[split, (i, j, k), c] + bias + residual).

    Grid: tiles of BM rows x BN columns, columns innermost.
    """
    tiles = tl.cdiv(width, BN)
    row_tile, columns = tl.program_id(0) // tiles, tl.program_id(0) % tiles * BN + tl.arange(0, BN)
    i, j, k = outputs_at(row_tile, D0, D1, D2, BM, WIDE)
    rows_in, columns_in = i < D0, columns < width
    rows = tl.cast(D0, tl.int64) * D1 * D2
    row = tl.cast(row_tile, tl.int64) * BM + tl.arange(0, BM)
    places = partial + row[:, None] * width + columns[None, :]
    acc = tl.zeros((BM, BN), partial.dtype.element_ty)
    for split in range(splits):
        part = places + tl.cast(split, tl.int64) * rows * width
        acc += tl.load(part, mask=rows_in[:, None] & columns_in[None, :], other=0.0)
    j, k = j.to(tl.int64), k.to(tl.int64)
    store_outputs(
        acc, y, bias, residual, i * y_0 + j * y_1 + k * y_2, y_c,
        i * residual_0 + j * residual_1 + k * residual_2, residual_c,
        columns, rows_in, columns_in, ACTIVATION,
    )  # fmt: skip
