"""Torch side of `split_k.py`: parts of sums, and the kernel that adds them."""

from __future__ import annotations

import torch
from torch import Tensor

from . import tiles
from .launch import cdiv, common_unit, device_of, is_wide, launch
from .split_k import add_splits

NOTHING = (0, 0, 0, 1)  # strides of an operand that is not there


def new_parts(like: Tensor, *size: int) -> Tensor:
    """Parts of a sum (splits, …, columns), in float32, or float64 where `like` is."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return torch.empty(size, dtype=dtype, device=like.device)


def add_parts(parts, y, bias, residual, rows, places, residual_places, activation) -> None:
    """y = act(the sum of parts + bias + residual).

    rows: three sizes; places: the strides in y of each, and of a column.
    """
    splits, width, device = parts.shape[0], parts.shape[-1], device_of(y)
    at_once, bm, bn = tiles.choose_sums(rows[0], rows[1] * rows[2], width, splits, device)
    dense = all(rows[1] == 1 or by[1] == rows[2] * by[2] for by in (places, residual_places))
    widest = 16 // y.element_size()
    columns_first = places[3] == 1
    by = common_unit(widest, *places[:3], *residual_places[:3]) if columns_first else 1
    width_by = common_unit(max(widest, 4), width)
    launch(
        add_splits, (rows[0] * cdiv(rows[1] * rows[2], bm) * cdiv(width, bn),), y, parts, y, bias,
        residual, splits, *rows, width // width_by, *(s // by for s in places[:3]), places[3],
        *(s // by for s in residual_places[:3]), residual_places[3],
        UNIT=width_by, Y_UNIT=by, DENSE=dense, WIDE=is_wide(1, rows[1:]), ACTIVATION=activation,
        BS=at_once, BM=bm, BN=bn, num_warps=4,
    )  # fmt: skip
