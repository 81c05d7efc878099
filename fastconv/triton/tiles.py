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


# By precision, then from the largest tile to the smallest. Rows of sm_90 have sm_80's reasons where
# none is written.
TILES: dict[str, dict[int, tuple[Tile, ...]]] = {
    "half": {
        80: (
            Tile(128, 128, 32, 4, 4, 255, 48),  # the largest that does not spill with 4 warps
            Tile(128, 64, 64, 4, 4, 255, 72),  # residual, phases and addresses fit as well
            Tile(64, 64, 64, 4, 4, 168, 48),  # few outputs: more blocks
            Tile(128, 32, 64, 4, 4, 168, 60),  # few output channels: no empty columns
        ),
        90: (
            # A step of 64, so that a wgmma of 256 cycles hides some 160 other instructions, where
            # one of 32 would hide half as many of 110 (computed, not measured).
            Tile(128, 128, 64, 4, 3, 255, 96),
            Tile(128, 64, 64, 4, 4, 168, 96),
            Tile(64, 64, 64, 4, 4, 96, 64),
            Tile(128, 32, 64, 4, 4, 128, 80),
        ),
    },
    # Operands are rounded in registers.
    "tf32": {
        80: (
            Tile(128, 64, 32, 4, 3, 224, 48),  # the largest that does not spill
            Tile(64, 64, 32, 4, 3, 128, 32),  # few outputs
        ),
        90: (Tile(128, 64, 32, 4, 3, 200, 56), Tile(64, 64, 32, 4, 3, 128, 40)),
    },
    # Three products, and sums in float32 beside the tensor core's: small tiles.
    "tf32x3": {
        80: (Tile(64, 64, 16, 4, 3, 168, 24),),  # a step of 32 takes 250 registers
        90: (Tile(64, 64, 32, 4, 3, 168, 56),),  # of which wgmma needs fewer
    },
    # Accumulators are twice as wide.
    "f64": {
        80: (Tile(32, 32, 16, 4, 3, 96, 16),),  # no table of precision's size: correct first
        90: (Tile(32, 32, 16, 4, 3, 96, 16),),
    },
}

# The interpreter's time goes by steps and blocks: of every precision, large steps.
INTERPRETED = (Tile(128, 128, 128, 4, 2, 0, 0), Tile(64, 32, 64, 4, 2, 0, 0))

# Outputs and channels of a block of the kernels without tensor cores: 16 bytes of a half type per
# thread where channels are innermost, neighbouring outputs per warp where columns are.
CHANNELS_INNERMOST = (16, 64)
COLUMNS_INNERMOST = (512, 1)
INTERPRETED_BLOCK = (256, 16)
# Bytes that a block of the bias gradient has under way, 64 a thread: four blocks on each of an
# H100's multiprocessors ask for 4.3 MB at once, and 3.35 TB/s are 2.3 MB in 700 ns (computed). And
# the most pixels of a block where those are next to each other.
RUN, LONGEST_RUN = 8192, 1024
# Elements and columns of a block that adds partial sums.
SUMS, SUM_COLUMNS, INTERPRETED_SUMS = 1024, 64, 1 << 15

# The most outputs of a tile, BM x BN, by what else wants registers in the epilogue.
PLAIN, CROWDED, RAGGED = 128 * 128, 128 * 64, 64 * 64
RAGGED_STEP = 16  # of operands that are read one by one, in registers: of 64, 80 bytes were spilled

MOST_TAPS = 9  # unrolled: the 9 loads of 3 x 3; more would not fit 64 registers
LEAST_STEPS = 8  # of a split, beside which the pipeline's first steps and the partial sum are small


def precision_of(dtype: torch.dtype, tf32: int) -> str:
    """The constexpr PRECISION of `language.product`."""
    if dtype == torch.float64:
        return "f64"
    if dtype == torch.float32:
        return "tf32" if tf32 else "tf32x3"
    return "half"


def power_of_two(least: int, size: int, most: int) -> int:
    """The first power of two, from `least` to `most`, that holds `size`.

    By comparisons, as all of this file: a symbolic size is bounded by them and not made a number.
    """
    while least < most and least < size:
        least *= 2
    return least


def choose_tile(
    precision: str, device: Device, rows: int, channels: int, depth: int, largest: int,
    copies: int = 1, is_split: bool = False,
) -> Tile:  # fmt: skip
    """The tile of `copies` GEMMs of rows x channels over depth.

    The largest whose blocks fill the device, or the smallest; none of more than `largest` outputs,
    or of which more than a fifth lies outside where another does not. `is_split`: where the depth
    may be cut so that blocks fill the device.
    """
    table = TILES[precision][90 if device.arch >= 90 else 80] if device.arch else INTERPRETED
    fitting = [t for t in table if t.BM * t.BN <= largest]
    fitting = [t for t in fitting if _fits(channels, t.BN)] or [table[-1]]
    fitting = [t for t in fitting if _fits(rows, t.BM)] or fitting

    def fills(tile: Tile) -> bool:
        parts = -(-depth // (tile.BK * LEAST_STEPS)) if is_split else 1
        return -(-rows // tile.BM) * -(-channels // tile.BN) * copies * parts >= device.sms

    filling = [t for t in fitting if fills(t)]
    tile = filling[0] if filling else min(fitting, key=lambda t: t.BM * t.BN)
    return tile._replace(BK=power_of_two(16, depth, tile.BK))


def _fits(size: int, block: int) -> bool:
    narrow = -(-size // 64) * 64 if size > 32 else 32  # of the narrowest tiles
    return -(-size // block) * block <= 1.25 * narrow


def choose_splits(
    blocks: int, steps: int, device: Device, least: int = LEAST_STEPS, resident: int = 2
) -> int:
    """Splits of a sum of `steps` steps over `blocks` blocks, each of at least `least` steps:
    `resident` blocks on each multiprocessor."""
    return max(1, min(resident * device.sms // max(blocks, 1), steps // least))


def choose_sums(planes: int, plane: int, width: int, splits: int, device: Device):
    """BS, BM, BN of `add_splits`: splits, rows of a plane and columns of a block.

    The more splits at once, the fewer blocks there would be.
    """
    columns, size = power_of_two(16, width, SUM_COLUMNS), SUMS if device.arch else INTERPRETED_SUMS
    at_once, rows = 1, power_of_two(1, plane, size // columns)
    while (
        at_once < splits
        and planes * -(-plane // rows) * -(-width // columns) < 2 * device.sms
        and (1 < rows < plane or at_once * rows * columns < 4 * size)
    ):
        at_once *= 2
        if 1 < rows < plane:  # rows of a whole plane stay together
            rows //= 2
    return at_once, rows, columns


def depthwise_block(element_size: int) -> tuple[int, int]:
    """CHANNELS_INNERMOST of twice the outputs in half types: a thread's two pixels share a tap's
    weights, whose loads and conversions are a third of its instructions (computed)."""
    outputs, channels = CHANNELS_INNERMOST
    return (2 * outputs if element_size == 2 else outputs), channels


def taps_at_once(rows: int, columns: int, each: int = 1) -> dict[str, int]:
    """ROWS and COLUMNS of a window's taps that are under way together in kernels bound by memory,
    with `each` loads: all of a small window, a row of a large one or a part that divides it."""
    if rows * columns * each <= MOST_TAPS:
        return {"ROWS": rows, "COLUMNS": columns}
    most = max(1, min(columns, MOST_TAPS // each))
    return {"ROWS": 1, "COLUMNS": next(n for n in range(most, 0, -1) if columns % n == 0)}
