"""Tiles of every kernel, with the reason and the budget of each; the choice is pure.

NOTE no figure here was measured on a GPU. Registers and the absence of spills are what ptxas says
of the kernels compiled for sm_80 and sm_90 (tests/test_triton_build.py holds each row to its
budget); occupancy follows from them. At most 4 warps, as 8 gave wrong results in other
projects' Triton convolutions on unaligned channels: more only when proven on a GPU.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Tile(NamedTuple):
    """BM outputs x BN output channels, BK of depth a step."""

    BM: int
    BN: int
    BK: int
    warps: int
    stages: int
    registers: int  # budget of a thread
    shared: int  # budget of a block in KiB


class Device(NamedTuple):
    """What a choice depends on: compute capability (80, 90), 0 for the interpreter;
    streaming multiprocessors."""

    arch: int
    sms: int


# By precision, then from the largest tile to the smallest.
TILES: dict[str, dict[int, tuple[Tile, ...]]] = {
    "half": {
        80: (
            Tile(128, 128, 32, 4, 4, 255, 48),  # the largest that does not spill with 4 warps
            Tile(128, 64, 64, 4, 4, 255, 72),  # residual, phases and addresses fit as well
            Tile(64, 64, 64, 4, 4, 168, 48),  # few outputs: more blocks
            Tile(128, 32, 64, 4, 4, 168, 60),  # few output channels: no empty columns
        ),
        90: (
            Tile(128, 128, 64, 4, 3, 255, 96),
            Tile(128, 64, 64, 4, 4, 168, 96),
            Tile(64, 64, 64, 4, 4, 96, 64),
            Tile(128, 32, 64, 4, 4, 128, 80),
        ),
    },
    # Operands are rounded in registers.
    "tf32": {
        80: (Tile(128, 64, 32, 4, 3, 224, 48), Tile(64, 64, 32, 4, 3, 128, 32)),
        90: (Tile(128, 64, 32, 4, 3, 200, 56), Tile(64, 64, 32, 4, 3, 128, 40)),
    },
    # Three products, and sums in float32 beside the tensor core's: small tiles.
    "tf32x3": {
        80: (Tile(64, 64, 16, 4, 3, 168, 24),),
        90: (Tile(64, 64, 32, 4, 3, 168, 56),),
    },
    # Accumulators are twice as wide.
    "f64": {
        80: (Tile(32, 32, 16, 4, 3, 96, 16),),
        90: (Tile(32, 32, 16, 4, 3, 96, 16),),
    },
}

# The interpreter's time goes by steps and blocks: of every precision, large steps.
INTERPRETED = (Tile(128, 128, 128, 4, 2, 0, 0), Tile(64, 32, 64, 4, 2, 0, 0))

# Outputs and channels of a block of the kernels without tensor cores: 16 bytes of a half type per
# thread where channels are innermost, neighbouring outputs per warp where columns are.
CHANNELS_INNERMOST = (16, 64)
COLUMNS_INNERMOST = (256, 4)
INTERPRETED_BLOCK = (256, 16)
# Rows and columns of a block that adds partial sums.
SUMS, INTERPRETED_SUMS = (16, 64), (512, 64)


# The most outputs of a tile, BM x BN, by what else wants registers in the epilogue.
PLAIN, CROWDED, RAGGED = 128 * 128, 128 * 64, 64 * 64


def precision_of(dtype: torch.dtype, tf32: int) -> str:
    """The constexpr PRECISION of `language.product`."""
    if dtype == torch.float64:
        return "f64"
    if dtype == torch.float32:
        return "tf32" if tf32 else "tf32x3"
    return "half"


def choose_tile(
    precision: str, device: Device, outputs: int, channels: int, depth: int, largest: int
) -> Tile:
    """The tile of a GEMM of outputs x channels over depth.

    The largest whose blocks fill the device, or the smallest; none of more than `largest` outputs.
    """
    table = TILES[precision][90 if device.arch >= 90 else 80] if device.arch else INTERPRETED
    narrow = -(-channels // 64) * 64 if channels > 32 else 32  # columns of narrow tiles
    fitting = [t for t in table if -(-channels // t.BN) * t.BN <= 1.25 * narrow] or [table[-1]]
    fitting = [t for t in fitting if t.BM * t.BN <= largest] or [table[-1]]
    filling = [t for t in fitting if _blocks(t, outputs, channels) >= device.sms]
    tile = filling[0] if filling else min(fitting, key=lambda t: t.BM * t.BN)
    shallow = max(16, 1 << (depth - 1).bit_length())
    return tile._replace(BK=min(tile.BK, shallow))


def _blocks(tile: Tile, outputs: int, channels: int) -> int:
    return -(-outputs // tile.BM) * -(-channels // tile.BN)


def choose_splits(blocks: int, steps: int, device: Device, least: int = 8) -> int:
    """Splits of a sum of `steps` steps over `blocks` blocks: about two blocks on each
    multiprocessor, each of at least `least` steps."""
    return max(1, min(2 * device.sms // max(blocks, 1), steps // least, 64))


def taps_at_once(taps: int) -> int:
    """How many loads of a window's row are under way together in kernels bound by memory."""
    return taps if taps <= 5 else 4
