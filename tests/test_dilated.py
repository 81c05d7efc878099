"""Dilated convolutions on the CPU: Winograd by phases, and taps that reach past the image."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from conv_cases import LAYOUTS, gradients, make
from hypothesis import given, settings
from hypothesis import strategies as st
from test_conv import check_threads, compare_all

import fastconv
from fastconv import _C
from fastconv.testing.compare import assert_good

FLOAT = torch.float32
# Phases that are equal, and that are not, along one axis and both; several images and groups.
WINOGRAD = {
    "equal phases": (2, 16, 20, 18, 20, 3, 3, (1, 1), (2, 3), (2, 3), 1),
    "uneven phases": (2, 17, 17, 22, 37, 3, 3, (1, 1), (3, 4), (3, 4), 1),
    "one axis": (1, 24, 13, 31, 34, 3, 3, (1, 1), (1, 5), (1, 5), 2),
    "without padding": (1, 13, 19, 23, 16, 3, 3, (1, 1), (0, 0), (4, 3), 1),
    "twice the padding": (1, 13, 9, 11, 16, 3, 3, (1, 1), (4, 6), (2, 3), 1),
    "5x5": (1, 14, 24, 27, 18, 5, 5, (1, 1), (4, 6), (2, 3), 1),
    "phases of two and three": (1, 16, 29, 33, 12, 3, 3, (1, 1), (12, 12), (12, 12), 1),
}
FAR = {
    "past the image": (2, 9, 13, 15, 37, 3, 3, (1, 1), (9, 8), (9, 8), 1),
    "one axis": (1, 20, 6, 40, 9, 3, 3, (1, 1), (6, 1), (6, 1), 1),
    "several blocks": (1, 5, 26, 27, 11, 3, 5, (1, 1), (20, 26), (20, 13), 1),
    "strided": (1, 6, 23, 21, 19, 3, 3, (2, 3), (14, 10), (14, 10), 1),
    "nothing inside": (1, 4, 3, 3, 5, 2, 2, (1, 1), (9, 9), (18, 18), 1),
}


def algorithm(case, direction="forward"):
    n, c, h, w, k, r, s, stride, padding, dilation, groups = case
    window = (stride, padding, dilation, groups)
    sizes = (n, c, h, w), (k, c // groups, r, s)
    return fastconv.explain(*sizes, *window, direction=direction).algorithm


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", [FLOAT, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", WINOGRAD)
def test_winograd_by_phases(case, layout, dtype):
    assert algorithm(WINOGRAD[case]) == algorithm(WINOGRAD[case], "input_grad") == "winograd"
    compare_all(WINOGRAD[case], dtype, layout)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", [FLOAT, torch.float64, torch.float16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", FAR)
def test_taps_that_reach_past_the_image(case, layout, dtype):
    assert algorithm(FAR[case]) == "direct"
    compare_all(FAR[case], dtype, layout)


@settings(deadline=None, derandomize=True, max_examples=80)
@given(
    n=st.integers(1, 3), c=st.integers(12, 30), k=st.integers(12, 40), groups=st.integers(1, 2),
    h=st.integers(1, 20), w=st.integers(1, 20), taps=st.sampled_from([3, 5]),
    dh=st.integers(1, 6), dw=st.integers(1, 6), ph=st.integers(0, 2), pw=st.integers(0, 2),
    layout=st.sampled_from(sorted(LAYOUTS)),
)  # fmt: skip
def test_random_problems(n, c, k, groups, h, w, taps, dh, dw, ph, pw, layout):
    h, w = (max(s, d * (taps - 1) + 1) for s, d in ((h, dh), (w, dw)))
    window = ((1, 1), (ph * dh, pw * dw), (dh, dw), groups)
    compare_all((n, c * groups, h, w, k * groups, taps, taps, *window), FLOAT, layout)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("layout", ("nchw", "channels_last"))
@pytest.mark.parametrize("case", ["equal phases", "uneven phases", "5x5"])
def test_bad_values_reach_what_reads_them(case, layout):
    x, w, b, window = make(WINOGRAD[case], FLOAT, layout)
    for i in range(0, x.shape[2], 3):
        bad = x.clone(memory_format=torch.preserve_format)
        bad[0, 3, i, (5 * i) % x.shape[3]] = float("nan") if i % 2 else float("inf")
        truth = F.conv2d(bad.double(), w.double(), b.double(), *window)
        ours = fastconv.conv2d(bad, w, b, *window)
        assert_good(ours, F.conv2d(bad, w, b, *window), truth, FLOAT, 8.0, f"row {i}")


@pytest.mark.parametrize("layout", ("nchw", "channels_last"))
def test_a_bad_gradient_stays_in_its_weights(layout):
    x, w, b, window = make(WINOGRAD["uneven phases"], FLOAT, layout)
    dy = torch.randn_like(F.conv2d(x, w, b, *window))
    dy[1, 7, 4, 5] = float("inf")
    theirs = gradients(F.conv2d, x.double(), w.double(), b.double(), window, dy.double())
    ours = gradients(fastconv.conv2d, x, w, b, window, LAYOUTS[layout](dy))
    for mine, true in zip(ours, theirs, strict=True):
        assert torch.equal(mine.isfinite(), true.isfinite())


@pytest.mark.parametrize("activation", [None, "relu", "sigmoid"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_epilogue_and_kept_weights(layout, activation):
    x, w, b, window = make(WINOGRAD["uneven phases"], FLOAT, layout)
    residual = LAYOUTS[layout](torch.randn_like(F.conv2d(x, w, b, *window)))
    act = {None: lambda t: t, "relu": torch.relu, "sigmoid": torch.sigmoid}[activation]
    truth = act(F.conv2d(x.double(), w.double(), b.double(), *window) + residual.double())
    theirs = act(F.conv2d(x, w, b, *window) + residual)
    settings = dict(residual=residual, activation=activation)
    assert_good(fastconv.conv2d(x, w, b, *window, **settings), theirs, truth, FLOAT, 8.0)
    stride, padding, dilation, groups = window
    layer = fastconv.nn.Conv2d(
        17, 37, 3, stride, padding, dilation, groups, activation=activation
    ).eval()
    with torch.no_grad():
        layer.weight.copy_(w)
        layer.bias.copy_(b)
        for _ in range(2):
            assert_good(layer(x, residual), theirs, truth, FLOAT, 8.0)
    assert fastconv.nn.cache_size(layer) > 0


def test_results_do_not_depend_on_threads():
    check_threads(WINOGRAD["uneven phases"])


@pytest.mark.parametrize(
    "stride, padding, dilation, reason",
    [((1, 1), (1, 2), (2, 2), "multiple of the dilation"), ((2, 2), (2, 2), (2, 2), "strided")],
)
def test_why_winograd_refuses(stride, padding, dilation, reason):
    sizes = (1, 32, 40, 40), (32, 32, 3, 3)
    rows = fastconv.explain(*sizes, stride, padding, dilation).candidates
    assert reason in next(c.refusal for c in rows if c.algorithm == "winograd")


def test_large_tiles_and_small_ones():
    x, w, b, window = make(WINOGRAD["uneven phases"], FLOAT)
    truth, theirs = (
        F.conv2d(x.double(), w.double(), b.double(), *window),
        F.conv2d(x, w, b, *window),
    )
    try:
        for tile in ((2, 2), (4, 2), (4, 4)):
            _C.set_winograd_tile(*tile)
            assert_good(fastconv.conv2d(x, w, b, *window), theirs, truth, FLOAT, 8.0, str(tile))
    finally:
        _C.set_winograd_tile(0, 0)


STORES = """
import torch, fastconv
fastconv._C.set_poison(True)
torch.set_num_threads(2)
w = torch.randn(176, 16, 5, 5)
for _ in range(30):
    dy = torch.randn(1, 176, 13, 72)
    dx = torch.ops.fastconv.conv2d_input_grad(dy, w, 17, 80, 1, 1, 0, 0, 0, 0, 1, 2, 11, 0)
    assert dx.isfinite().all()
"""


def test_threads_store_the_images_between_each_other_apart():
    """Whole vectors of every second pixel of NCHW: a thread must not store another's pixels.

    In a process whose threads do not sleep: on an idle machine they meet in most calls there, and
    here in few. Whatever the machine does, bench/thread_sanitizer.py has the problem.
    """
    active = {**os.environ, "OMP_WAIT_POLICY": "active"}
    subprocess.run([sys.executable, "-c", STORES], env=active, check=True)
