"""Depthwise and narrow groups on the CPU: every tile of every instruction set, and the bounds."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conv_cases import LAYOUTS, gradients, make
from guarded import guarded
from test_conv import check_threads, compare_all

import fastconv
from fastconv import _C

# Outputs of a row, which choose a tile's pixels (kGroupedPixels in csrc/cpu/jobs.h).
WIDTHS = {4: 5, 13: 7, 15: 8}
# Columns of taps and stride (kGroupedTaps), and one of neither.
TAPS = [(1, 1), (2, 1), (3, 1), (3, 2), (5, 1), (5, 2), (7, 1), (7, 2), (3, 3), (4, 1)]


def problem(channels, width, groups, q, taps, stride, n=1):
    """A case of conv_cases with q outputs a row, of which the first and last reach the padding."""
    pad = taps // 2
    columns = (q - 1) * stride + taps - 2 * pad
    size = (n, channels * width, 7, columns, channels * width, 3, taps)
    return (*size, (1, stride), (1, pad), (1, 1), groups)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("taps, stride", TAPS)
@pytest.mark.parametrize("q", WIDTHS)
def test_every_depthwise_tile(q, taps, stride, dtype):
    for layout in ("nchw", "channels_last"):
        compare_all(problem(33, 1, 33, q, taps, stride), dtype, layout)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("width", [2, 4, 8])
@pytest.mark.parametrize("taps, stride", TAPS[:4] + TAPS[-2:])
@pytest.mark.parametrize("q", WIDTHS)
def test_every_tile_of_narrow_groups(q, taps, stride, width):
    for layout in ("nchw", "channels_last"):
        compare_all(problem(11, width, 11, q, taps, stride), torch.float32, layout)


CASES = {
    "one vector": (2, 16, 6, 7, 16, 3, 3, (1, 1), (1, 1), (1, 1), 4),
    "fewer channels than lanes": (1, 6, 5, 8, 6, 3, 3, (1, 1), (1, 1), (1, 1), 3),
    "a last vector that overlaps": (2, 44, 5, 6, 44, 3, 3, (1, 1), (1, 1), (1, 1), 11),
    "several parts": (1, 328, 4, 5, 328, 5, 5, (1, 1), (2, 2), (1, 1), 41),
    "dilated": (1, 40, 11, 12, 40, 3, 3, (1, 1), (2, 3), (2, 3), 10),
    "phases of both axes": (2, 36, 9, 12, 36, 3, 3, (2, 2), (1, 1), (1, 1), 9),
    "phases without taps": (1, 32, 9, 12, 32, 1, 2, (3, 3), (0, 0), (1, 1), 8),
    "more phases than are made at once": (1, 32, 11, 13, 32, 5, 5, (5, 4), (2, 2), (1, 1), 8),
    "a phase without outputs": (1, 32, 1, 9, 32, 3, 3, (2, 2), (1, 1), (1, 1), 16),
    "groups of a whole vector, strided": (1, 48, 9, 10, 48, 3, 3, (2, 2), (1, 1), (1, 1), 3),
    "wide planes": (1, 16, 3, 75, 16, 3, 3, (1, 1), (1, 1), (1, 1), 4),
    "wide planes of depthwise": (1, 20, 3, 75, 20, 3, 3, (1, 1), (1, 1), (1, 1), 20),
    "columns past the padding": (1, 32, 3, 2, 32, 3, 3, (1, 1), (2, 2), (1, 1), 16),
    "bands of rows": (1, 34, 70, 66, 34, 3, 5, (1, 1), (1, 2), (1, 1), 34),
}


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
def test_shapes(case, layout):
    compare_all(CASES[case], torch.float32, layout)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("layout", ("nchw", "channels_last"))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", ["a last vector that overlaps", "phases of both axes"])
def test_half_types(case, dtype, layout):
    compare_all(CASES[case], dtype, layout)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("residual_layout", ("nchw", "channels_last"))
@pytest.mark.parametrize("layout", ("nchw", "channels_last"))
@pytest.mark.parametrize("activation", [None, "relu", "sigmoid"])
def test_epilogues(activation, layout, residual_layout):
    x, w, b, window = make(CASES["a last vector that overlaps"], torch.float32, layout)
    residual = LAYOUTS[residual_layout](torch.randn_like(F.conv2d(x, w, b, *window)))
    truth = F.conv2d(x.double(), w.double(), b.double(), *window) + residual.double()
    truth = {None: truth, "relu": truth.relu(), "sigmoid": truth.sigmoid()}[activation]
    y = fastconv.conv2d(x, w, b, *window, residual=residual, activation=activation)
    torch.testing.assert_close(y, truth.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", ("nchw", "channels_last"))
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_value_stays_in_its_group_and_window(bad, layout, isa):
    groups = 44 if isa == "baseline" else 11  # whose narrow groups run in the direct kernel
    case = (2, 44, 5, 6, 44, 3, 3, (1, 1), (1, 1), (1, 1), groups)
    x, w, b, window = make(case, torch.float32, layout)
    dy = torch.randn_like(F.conv2d(x, w, b, *window))
    # torch's float64 multiplies padding; ones show what is read.
    ones = {t: torch.ones_like(t, dtype=torch.float64) for t in (x, w, b, dy)}
    for t, at in ((x, (0, 5, 0, 3)), (dy, (1, 43, 4, 5))):
        before, t[at] = t[at].item(), bad
        marked = {**ones, t: torch.zeros_like(ones[t])}
        marked[t][at] = 1
        reads = gradients(F.conv2d, marked[x], ones[w], 0 * ones[b], window, marked[dy])
        ours = gradients(fastconv.conv2d, x, w, b, window, dy)
        affected = (0, 2) if t is x else (1, 2, 3)
        for i, mine in enumerate(ours):
            assert torch.equal(mine.isfinite(), (reads[i] == 0) | torch.tensor(i not in affected))
        t[at] = before


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("layout", ("nchw", "channels_last"))
@pytest.mark.parametrize("case", ["fewer channels than lanes", "a last vector that overlaps"])
def test_nothing_is_read_past_an_operand(case, layout):
    x, w, b, window = make(CASES[case], torch.float32, layout)
    dy = LAYOUTS[layout](torch.randn_like(F.conv2d(x, w, b, *window)))
    expected = gradients(fastconv.conv2d, x, w, b, window, dy)
    stride, padding, dilation, groups = window
    numbers = (*stride, *padding, *padding, *dilation, groups)
    for before in (False, True):
        gx, gw, gdy = (guarded(t, before) for t in (x, w, dy))
        y = fastconv.conv2d(gx, gw, b, *window)
        dx = torch.ops.fastconv.conv2d_input_grad(gdy, gw, *x.shape[2:], *numbers, 0)
        dw = torch.ops.fastconv.conv2d_weight_grad(gx, gdy, *w.shape[2:], *numbers, 0)
        for mine, true in zip((y, dx, dw), expected, strict=False):
            assert torch.equal(mine, true)


@pytest.mark.parametrize("layout", ("nchw", "channels_last"))
@pytest.mark.parametrize("case", ["several parts", "bands of rows", "phases of both axes"])
def test_results_do_not_depend_on_threads(case, layout):
    check_threads(CASES[case], layout)


def test_what_the_planner_gives_them():
    def algorithm(channels, groups, size=9, taps=3, **keywords):
        sizes = (1, channels, size, 10), (channels, channels // groups, taps, taps)
        return fastconv.explain(*sizes, padding=taps // 2, groups=groups, **keywords).algorithm

    lanes = {"avx2": 8, "avx512": 16}.get(_C.cpu_isa())
    if not lanes:
        pytest.skip("needs vectors of 8 floats")
    assert algorithm(64, 64) == "depthwise"
    for direction in ("forward", "input_grad", "weight_grad"):
        assert [algorithm(64, 64 // n, direction=direction) for n in (2, 4, 8)] == ["grouped"] * 3
    assert algorithm(96, 32) == "direct"  # of three channels
    assert algorithm(4 * lanes, 4, 60) == "winograd"
    assert algorithm(64, 64 // lanes, stride=2) == "grouped"
    assert [algorithm(n * lanes, n, taps=t) for n, t in ((4, 3), (4, 7))] == ["grouped", "direct"]
