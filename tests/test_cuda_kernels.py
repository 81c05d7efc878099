"""Every CUDA kernel and tile under the emulator, against float64.

Each runs in ascending, descending and random order of its fibers, which must agree to the bit, on
buffers that end and on buffers that begin at a page that cannot be accessed.
"""

from dataclasses import dataclass, field

import emulator
import pytest
import torch
from emulator import kernels

from fastconv.testing.compare import assert_good, relative_rms

RUNS = [("ascending", 1, True), ("descending", 1, False), ("random", 1, True)]


def round_tf32(t):
    """To 10 bits of mantissa, ties away from zero."""
    return ((t.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def channels_last(*sizes, dtype, scale=1.0):
    t = torch.randn(sizes) * scale
    return t.to(dtype).contiguous(memory_format=torch.channels_last)


def activate(y, activation):
    return {None: lambda v: v, "relu": torch.relu, "sigmoid": torch.sigmoid}[activation](y)


def reference(x, w, bias, residual, activation=None, padding=(0, 0), **settings):
    if len(padding) == 4:
        top, left, bottom, right = padding
        x = torch.nn.functional.pad(x, (left, right, top, bottom))
        padding = (0, 0)
    y = torch.nn.functional.conv2d(x, w, bias, padding=padding, **settings)
    return activate(y if residual is None else y + residual, activation)


@dataclass
class Case:
    """Sizes small enough for the emulator, none of them square."""

    x: tuple
    w: tuple
    settings: dict = field(default_factory=dict)
    bias: bool = True
    residual: bool = False
    splits: int = 1

    def __str__(self):
        words = [f"{k}={v}" for k, v in self.settings.items()]
        words += ["residual"] * self.residual + [f"splits={self.splits}"] * (self.splits > 1)
        return " ".join([str(self.x), str(self.w), *words]).replace(", ", ",")


def operands(case, math):
    dtype = kernels.DTYPES[math]
    depth = case.w[1] * case.w[2] * case.w[3]
    x = channels_last(*case.x, dtype=dtype)
    w = channels_last(*case.w, dtype=dtype, scale=depth**-0.5)
    p = kernels.problem(case.x, case.w, **case.settings)
    bias = torch.randn(p.K).to(dtype) if case.bias else None
    residual = channels_last(p.N, p.K, p.P, p.Q, dtype=dtype) if case.residual else None
    return x, w, bias, residual


def run_orders(kernel, given, math, tile, case):
    """The output, the same under every order."""
    options = dict(math=math, tile=tile, splits=case.splits, **case.settings)
    outputs = [
        kernels.conv(kernel, *given, order=order, seed=seed, right=right, **options)
        for order, seed, right in RUNS
    ]
    for (order, *_), output in zip(RUNS[1:], outputs[1:], strict=True):
        same = (output == outputs[0]) | (output.isnan() & outputs[0].isnan())
        assert same.all(), f"{order} order differs from ascending in {int((~same).sum())} outputs"
    return outputs[0]


def check(kernel, math, tile, case):
    given = operands(case, math)
    y = run_orders(kernel, given, math, tile, case)
    double = [None if t is None else t.double() for t in given]
    truth = reference(*double, **case.settings)
    rounded = given
    if math == "tf32":
        rounded = (round_tf32(given[0]), round_tf32(given[1]), *given[2:])
        # Against the same rounded operands only the summation is left, rounded toward zero.
        exact = reference(*(None if t is None else t.double() for t in rounded), **case.settings)
        assert relative_rms(y, exact) < 2e-5
    assert_good(y, reference(*rounded, **case.settings), truth, kernels.DTYPES[math])
    kind = [name for name in emulator.take_log() if name.startswith(kernel)]
    assert len(kind) == len(RUNS) and str(kernels.tiles(math)[tile]) in kind[0]


TILES = [(m, i) for m in kernels.MATHS for i in range(len(kernels.tiles(m)))]


def tile_id(value):
    return "-".join(map(str, (value[0], kernels.tiles(value[0])[value[1]])))


# Tails in every dimension of a tile: 286 pixels, 72 channels, a depth of 24 * 9.
TAILS = Case(
    (1, 24, 24, 13),
    (72, 24, 3, 3),
    dict(padding=(0, 1), activation="relu"),
    residual=True,
)
TAILS_1X1 = Case((1, 24, 24, 13), (72, 24, 1, 1), dict(activation="relu"), residual=True)


@pytest.mark.parametrize("tile", TILES, ids=tile_id)
def test_every_tile(tile):
    check("conv_implicit_gemm", *tile, TAILS)


@pytest.mark.parametrize("tile", TILES, ids=tile_id)
def test_every_tile_1x1(tile):
    check("conv1x1", *tile, TAILS_1X1)


CASES = [
    Case((2, 16, 9, 12), (24, 16, 3, 3), dict(stride=(2, 1), padding=(1, 1))),
    Case((2, 16, 12, 9), (24, 16, 3, 3), dict(stride=(2, 2), padding=(1, 1)), residual=True),
    Case((1, 8, 13, 17), (16, 8, 3, 5), dict(dilation=(2, 3), padding=(2, 5))),
    # More than one tap in a step of 64; padding beyond the kernel leaves rows with no tap inside.
    Case((1, 8, 6, 5), (16, 8, 5, 3), dict(padding=(5, 4), stride=(1, 2))),
    Case((2, 16, 7, 6), (8, 16, 2, 4), dict(padding=(0, 1, 1, 2), activation="sigmoid")),
    Case((1, 8, 17, 19), (8, 8, 15, 15), dict(padding=(7, 6)), bias=False),
    Case((1, 48, 7, 10), (48, 16, 3, 3), dict(groups=3, padding=(1, 1)), residual=True),
    Case((3, 40, 5, 4), (16, 40, 1, 1), dict(stride=(2, 1), padding=(1, 0))),
    Case((1, 64, 6, 7), (24, 64, 3, 3), dict(padding=(1, 1), activation="relu"), True, True, 3),
    Case((2, 32, 5, 4), (32, 16, 3, 3), dict(groups=2, padding=(1, 1)), True, True, 2),
]
CASES_1X1 = [
    Case((2, 40, 9, 12), (24, 40, 1, 1), dict(stride=(2, 2)), residual=True),
    Case((1, 48, 7, 10), (48, 16, 1, 1), dict(groups=3, stride=(1, 2), activation="sigmoid")),
    Case((2, 136, 7, 5), (40, 136, 1, 1), dict(activation="relu"), True, True, 2),
]


@pytest.mark.parametrize("math", kernels.MATHS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_conv_implicit_gemm(case, math):
    tile = 4 if math in ("f16", "bf16") else 2  # 64 x 64, the longest step
    check("conv_implicit_gemm", math, tile, case)


@pytest.mark.parametrize("math", kernels.MATHS)
@pytest.mark.parametrize("case", CASES_1X1, ids=str)
def test_conv1x1(case, math):
    check("conv1x1", math, 1, case)


@pytest.mark.parametrize("math", kernels.MATHS)
def test_slices_of_channels(math):
    """Pixels further apart than their channels: input, residual and output of a concatenation."""
    dtype = kernels.DTYPES[math]
    x = channels_last(2, 48, 7, 5, dtype=dtype)[:, 16:32]
    w = channels_last(24, 16, 3, 3, dtype=dtype, scale=1 / 12)
    residual = channels_last(2, 64, 5, 3, dtype=dtype)[:, 32:56]
    y = channels_last(2, 40, 5, 3, dtype=dtype)[:, 8:32]
    given = (x, w, None, residual)
    for splits in (1, 2):
        out = kernels.conv("conv_implicit_gemm", *given, math=math, tile=1, y=y, splits=splits)
        rounded = [t if t is None or math != "tf32" else round_tf32(t.contiguous()) for t in given]
        rounded[3] = residual
        truth = reference(*(None if t is None else t.double() for t in given))
        assert_good(out, reference(*rounded), truth, dtype)


def test_float32_over_a_long_reduction():
    """3xTF32 is promoted each 32 of depth: without that the error here is 2e-5."""
    x, w = channels_last(1, 256, 7, 5, dtype=torch.float32), torch.randn(16, 256, 3, 3)
    w = w.contiguous(memory_format=torch.channels_last)
    y = kernels.conv("conv_implicit_gemm", x, w, math="f32", tile=3, padding=(1, 1))
    assert relative_rms(y, reference(x.double(), w.double(), None, None, padding=(1, 1))) < 3.5e-7


@pytest.mark.parametrize("math", kernels.MATHS)
@pytest.mark.parametrize("splits", [1, 2])
def test_values_that_are_not_finite(math, splits):
    """Inf stays Inf, also where 3xTF32's small terms make NaN of it; NaN stays NaN."""
    dtype = kernels.DTYPES[math]
    x = channels_last(1, 16, 7, 9, dtype=dtype)
    w = torch.ones(16, 16, 3, 3, dtype=dtype).to(memory_format=torch.channels_last)
    x[0, 3, 1, 1], x[0, 4, 3, 7], x[0, 5, 6, 0] = torch.inf, -torch.inf, torch.nan
    x[0, 6, 0, 4] = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)  # a GPU's NaN
    for activation in (None, "relu", "sigmoid"):
        settings = dict(padding=(1, 1), activation=activation)
        y = kernels.conv("conv_implicit_gemm", x, w, math=math, tile=1, splits=splits, **settings)
        truth = reference(x.double(), w.double(), None, None, **settings)
        assert truth.isnan().any() and torch.equal(y.isnan(), truth.isnan())
        infinite = truth.isinf()
        assert infinite.any() or activation == "sigmoid"
        assert torch.equal(y[infinite].double(), truth[infinite])


@pytest.mark.parametrize("tile", TILES, ids=tile_id)
def test_no_bank_conflicts(tile):
    """Each 128 bytes of shared memory cost one cycle: fragments, copies and the epilogue's slab."""
    x, w, bias, residual = operands(TAILS, tile[0])
    emulator.take_bank_count()
    kernels.conv(
        *("conv_implicit_gemm", x, w), math=tile[0], tile=tile[1], padding=(0, 1), count_banks=True
    )
    phases, cycles = emulator.take_bank_count()
    assert phases > 1000 and cycles == phases


def test_a_grid_that_no_gpu_takes_is_an_error_with_the_kernels_name():
    """The planner refuses so many groups; the launcher does not."""
    x, w = (channels_last(n, c, 1, 1, dtype=torch.half) for n, c in ((1, 8 << 16), (8 << 16, 8)))
    with pytest.raises(RuntimeError, match=r"conv1x1_f16_\S+: the grid is too large .* x 65536 x"):
        kernels.conv("conv1x1", x, w, math="f16", tile=0, groups=1 << 16)
