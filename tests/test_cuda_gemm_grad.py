"""The tensor-core gradients of the CUDA backend, every tile, under the emulator, against float64.

Each runs in ascending, descending and random order of its fibers, which must agree to the bit, on
buffers that end and on buffers that begin at a page that cannot be accessed.
"""

import emulator
import pytest
import torch
from emulator import grads, kernels
from test_cuda_grad import operands, torch_gradients
from test_cuda_kernels import RUNS, channels_last, round_tf32

from fastconv.testing.compare import assert_good, relative_rms

DIRECTIONS = ("input_grad", "weight_grad")


def run_orders(direction, first, second, size, **options):
    outputs = [
        kernels.conv_grad(direction, first, second, size, order=o, seed=s, right=r, **options)
        for o, s, r in RUNS
    ]
    outputs = [output if isinstance(output, tuple) else (output,) for output in outputs]
    for (order, *_), output in zip(RUNS[1:], outputs[1:], strict=True):
        for one, first in zip(output, outputs[0], strict=True):
            same = (one == first) | (one.isnan() & first.isnan())
            assert same.all(), f"{order} order differs from ascending in {int((~same).sum())}"
    return outputs[0]


def check(direction, math, tile, x, w, splits=1, pointwise=False, bias=False, **settings):
    """``bias``: the weight gradient's kernel sums dy too."""
    dtype = kernels.DTYPES[math]
    x, w, dy = operands(x, w, dtype, **settings)
    which = DIRECTIONS.index(direction)
    given = ((dy, w), (x, dy))[which]
    size = (x if which == 0 else w).shape[2:]
    options = dict(math=math, tile=tile, splits=splits, pointwise=pointwise, **settings)
    options["bias"] = bias = bias and which == 1
    emulator.take_log()
    ours, *db = run_orders(direction, *given, size, **options)
    if bias:
        assert_good(db[0], dy.sum((0, 2, 3)), dy.double().sum((0, 2, 3)), dtype, name="db")
    stem = "conv1x1" if pointwise else "conv_implicit_gemm"
    name = f"{stem}_{direction}_{math}_{kernels.tiles(math, direction)[tile]}"
    assert emulator.take_log().count(name) == len(RUNS)
    if math == "tf32":  # against the same rounded operands only the summation is left
        x, w, dy = (round_tf32(t) for t in (x, w, dy))
    truth = torch_gradients(x.double(), w.double(), dy.double(), **settings)[which]
    if math == "tf32":
        assert relative_rms(ours, truth) < 2e-5
    else:
        assert_good(ours, torch_gradients(x, w, dy, **settings)[which], truth, dtype)


TILES = [
    (d, m, i) for d in DIRECTIONS for m in kernels.MATHS for i in range(len(kernels.tiles(m, d)))
]


def tile_id(value):
    return "-".join(map(str, (*value[:2], kernels.tiles(value[1], value[0])[value[2]])))


# Tails in every dimension of a tile: 24 and 72 channels, 286 pixels.
@pytest.mark.parametrize("tile", TILES, ids=tile_id)
def test_every_tile(tile):
    check(*tile, (1, 24, 22, 13), (72, 24, 3, 3), padding=(0, 1), splits=1 + tile[2] % 2, bias=True)


@pytest.mark.parametrize("tile", TILES, ids=tile_id)
def test_every_tile_1x1(tile):
    check(*tile, (1, 24, 22, 13), (72, 24, 1, 1), pointwise=True, bias=True)


CASES = [
    # Strides: phases of different sizes and numbers of taps, phases without any.
    ((2, 16, 9, 12), (24, 16, 3, 3), dict(stride=(2, 1), padding=(1, 1))),
    ((2, 16, 12, 9), (24, 16, 3, 3), dict(stride=(2, 2), padding=(1, 1))),
    ((1, 8, 13, 11), (16, 8, 5, 3), dict(stride=(3, 2), padding=(2, 1), dilation=(2, 1))),
    ((2, 24, 9, 7), (16, 24, 1, 1), dict(stride=(2, 2))),
    ((1, 8, 21, 19), (16, 8, 7, 7), dict(stride=(4, 4), padding=(2, 3))),
    # Dilation; padding beyond the kernel; an even kernel, padded on one side.
    ((1, 8, 13, 17), (16, 8, 3, 5), dict(dilation=(2, 3), padding=(2, 5))),
    ((1, 8, 6, 5), (16, 8, 5, 3), dict(padding=(5, 4), stride=(1, 2))),
    ((2, 16, 7, 6), (8, 16, 2, 4), dict(padding=(0, 1, 1, 2))),
    ((1, 8, 17, 19), (8, 8, 15, 15), dict(padding=(7, 6))),
    ((1, 48, 7, 10), (72, 16, 3, 3), dict(groups=3, padding=(1, 1))),
    ((3, 40, 5, 4), (16, 40, 1, 1), dict(stride=(2, 1), padding=(1, 0))),
    ((1, 64, 6, 7), (24, 64, 3, 3), dict(padding=(1, 1), splits=3)),
    ((2, 32, 5, 4), (80, 16, 3, 3), dict(groups=2, padding=(1, 1), stride=(2, 1), splits=2)),
]


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("math", kernels.MATHS)
@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[0]} {c[1]}".replace(", ", ","))
def test_gradients(case, math, direction):
    x, w, settings = case
    check(direction, math, 2, x, w, bias=True, **settings)  # 64 x 64, the longest step


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("math", kernels.MATHS)
@pytest.mark.parametrize("splits", [1, 2])
def test_1x1(math, direction, splits):
    settings = dict(groups=3, splits=splits, pointwise=True)
    check(direction, math, 1, (2, 72, 7, 10), (48, 24, 1, 1), **settings)


@pytest.mark.parametrize(
    "size, w, settings, expected",
    [
        ((9, 12), (8, 8, 3, 3), dict(padding=(1, 1)), [(72, 108)]),
        # By (h, w) mod 2, of 4, 2, 2 and 1 taps: (1, 1), (0, 1), (1, 0), (0, 0).
        (
            (9, 12),
            (8, 8, 3, 3),
            dict(stride=(2, 2), padding=(1, 1)),
            [(32, 24), (16, 30), (16, 24), (8, 30)],
        ),
        ((9, 7), (16, 8, 1, 1), dict(stride=(2, 2)), [(16, 20), (0, 15), (0, 16), (0, 12)]),
        ((1, 6), (8, 8, 1, 2), dict(stride=(3, 2)), [(8, 3), (8, 3)]),
    ],
)
def test_phases_of_most_taps_come_first_and_zeros_are_not_multiplied(size, w, settings, expected):
    assert kernels.phases(kernels.problem((1, w[1], *size), w, **settings)) == expected


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_float32_over_a_long_reduction(direction):
    """3xTF32 is promoted each 32 of depth: without that the error here is 1e-5 and more."""
    deep = direction == "input_grad"
    x, w = ((1, 16, 7, 5), (256, 16, 3, 3)) if deep else ((9, 16, 15, 17), (16, 16, 3, 3))
    x, w, dy = operands(x, w, torch.float32, padding=(1, 1))
    given = ((dy, w), (7, 5)) if deep else ((x, dy), (3, 3))
    ours = kernels.conv_grad(direction, *given[0], given[1], math="f32", tile=3, padding=(1, 1))
    truth = torch_gradients(x.double(), w.double(), dy.double(), padding=(1, 1))
    assert relative_rms(ours, truth[not deep]) < 4e-7


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("math", kernels.MATHS)
@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
def test_values_that_are_not_finite(math, direction, splits, stride):
    """Inf stays Inf, also where 3xTF32's small terms make NaN of it; NaN stays NaN."""
    dtype = kernels.DTYPES[math]
    # No padding: a weight's gradient has no zero to multiply.
    settings = dict(stride=(stride, stride))
    x, w, dy = operands((1, 16, 9, 11), (24, 16, 3, 3), dtype, **settings)
    x, w, dy = x.abs() + 1, w.abs() + 1, dy.abs() + 1
    dy[0, 3, 0, 1], dy[0, 20, 2, 1] = torch.inf, torch.nan
    dy[0, 7, 1, 0], dy[0, 7, 1, 1] = torch.inf, -torch.inf
    given, size = ((dy, w), (9, 11)) if direction == "input_grad" else ((x, dy), (3, 3))
    ours = kernels.conv_grad(direction, *given, size, math=math, tile=2, splits=splits, **settings)
    truth = torch_gradients(x.double(), w.double(), dy.double(), **settings)
    truth = truth[DIRECTIONS.index(direction)]
    assert truth.isnan().any() and truth.isinf().any() and truth.isfinite().any()
    assert torch.equal(ours.isnan(), truth.isnan())
    assert torch.equal(ours[truth.isinf()].double(), truth[truth.isinf()])


@pytest.mark.parametrize("tile", TILES, ids=tile_id)
def test_no_bank_conflicts(tile):
    """Each 128 bytes of shared memory cost one cycle: fragments, copies and the epilogue's slab.

    A few reads of the table of taps at its ends are all that may differ.
    """
    direction, math, index = tile
    x, w, dy = operands((1, 24, 22, 13), (72, 24, 3, 3), kernels.DTYPES[math], padding=(0, 1))
    given, size = ((dy, w), (22, 13)) if direction == "input_grad" else ((x, dy), (3, 3))
    emulator.take_bank_count()
    kernels.conv_grad(
        direction, *given, size, math=math, tile=index, padding=(0, 1), count_banks=True
    )
    phases, cycles = emulator.take_bank_count()
    assert phases > 1000 and cycles <= 1.01 * phases


def test_slices_of_channels_and_other_layouts():
    """Gradients and inputs that are parts of a concatenation, in place; NCHW by a copy."""
    x = channels_last(2, 48, 7, 5, dtype=torch.float16)[:, 16:32]
    dy = channels_last(2, 64, 5, 3, dtype=torch.float16)[:, 32:56]
    w = channels_last(24, 16, 3, 3, dtype=torch.float16, scale=1 / 12)
    exact = torch_gradients(x.double(), w.double(), dy.double())
    theirs = torch_gradients(x, w, dy)
    for first in (True, False):
        if not first:
            x, w, dy = (t.contiguous() for t in (x, w, dy))
        dx, log = grads.input_grad(dy, w, (7, 5))
        assert_good(dx, theirs[0], exact[0], torch.float16)
        assert any(name.startswith("conv_implicit_gemm_input_grad_f16") for name in log)
        dw, log = grads.weight_grad(x, dy, (3, 3))
        assert_good(dw, theirs[1], exact[1], torch.float16)
        assert any(name.startswith("conv_implicit_gemm_weight_grad_f16") for name in log)
