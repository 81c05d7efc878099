"""Sums cut into parts: each block stores its part, a second kernel adds them.

No atomics, and an order that depends on sizes alone: results do not depend on which block comes
first.
"""

import triton
import triton.language as tl

from .epilogue import store_outputs
from .language import kernel, offsets


@triton.jit
def store_partial(acc, partial, split, tile, rows, columns, width, columns_in, BM: tl.constexpr):
    """Stores the tile acc [BM, BN] of partial, which is [split, rows, width]."""
    row = tl.cast(tile, tl.int64) * BM + tl.arange(0, BM)
    places = partial + (tl.cast(split, tl.int64) * rows + row)[:, None] * width + columns[None, :]
    tl.store(places, acc, mask=(row < rows)[:, None] & columns_in[None, :])


@kernel
def add_splits(
    partial, y, bias, residual, splits, D0, D1, D2, width, y_0, y_1, y_2, y_c,
    residual_0, residual_1, residual_2, residual_c,
    UNIT: tl.constexpr, Y_UNIT: tl.constexpr, DENSE: tl.constexpr, WIDE: tl.constexpr,
    ACTIVATION: tl.constexpr, BS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """y[i, j, k, c] = act(sum over splits of partial[split, (i, j, k), c] + bias + residual).

    DENSE: rows (j, k) are evenly spaced, y_2 apart, so that the compiler sees which way outputs lie
    next to each other. BS splits are read at once, and their sums added last. width is in units of
    UNIT; y_0, y_1, y_2 and the residual's in units of Y_UNIT.

    Grid: D0 x tiles of BM rows (j, k) x tiles of BN columns, columns innermost.
    """
    width = width * UNIT
    plane = tl.cast(D1, tl.int64) * D2
    tiles, tiles_plane = tl.cdiv(width, BN), tl.cdiv(plane, BM)
    if not WIDE:
        plane, tiles_plane = tl.cast(plane, tl.int32), tl.cast(tiles_plane, tl.int32)
    columns = tl.program_id(0) % tiles * BN + tl.arange(0, BN)
    row_tile = tl.program_id(0) // tiles
    i, place = row_tile // tiles_plane, row_tile % tiles_plane * BM + tl.arange(0, BM)
    rows_in, columns_in = place < plane, columns < width

    part = tl.arange(0, BS)
    row = tl.cast(i, tl.int64) * plane + place
    size = tl.cast(D0, tl.int64) * plane * width
    places = partial + part.to(tl.int64)[:, None, None] * size  # [BS, BM, BN]
    places += (row * width)[None, :, None] + columns[None, None, :]
    inside = rows_in[None, :, None] & columns_in[None, None, :]
    acc = tl.zeros((BS, BM, BN), partial.dtype.element_ty)
    for split in range(0, splits, BS):
        reads = inside & (part < splits - split)[:, None, None]
        acc += tl.load(places + tl.cast(split, tl.int64) * size, mask=reads, other=0.0)
    acc = tl.sum(acc, 0)

    if DENSE:
        j, k = 0, place
    else:
        j, k = place // D2, place % D2
    store_outputs(
        acc, y, bias, residual, offsets(i, j, k, y_0, y_1, y_2, Y_UNIT), y_c,
        offsets(i, j, k, residual_0, residual_1, residual_2, Y_UNIT), residual_c,
        columns, rows_in, columns_in, ACTIVATION,
    )  # fmt: skip
