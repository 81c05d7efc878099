"""Weight gradients of many inputs and few outputs, which exchange the input and dy (stride 1), and
of few inputs, which read dy where it lies."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conv_cases import DTYPES, LAYOUTS, make, values
from test_conv import check_threads, compare_all, gradients

import fastconv
from fastconv.testing.compare import FACTOR, assert_good, relative_rms

CASES = {
    "one": (2, 34, 9, 11, 1, 3, 5, (1, 1), (1, 2), (1, 1), 1),
    "in groups": (1, 40, 8, 13, 4, 3, 2, (1, 1), (0, 1), (1, 1), 2),
    "dilated": (1, 17, 14, 15, 2, 3, 2, (1, 1), (0, 3), (2, 3), 1),
    "three of 7x7": (1, 50, 10, 12, 3, 7, 7, (1, 1), (3, 3), (1, 1), 1),
    "past the image": (1, 36, 4, 5, 2, 3, 3, (1, 1), (5, 4), (2, 2), 1),
}


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_few_outputs(case, dtype, layout):
    compare_all(CASES[case], dtype, layout)


def test_results_do_not_depend_on_threads():
    check_threads(CASES["three of 7x7"])


# What follows the channels and the rows of a channels_last dy is poison.
@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("after", ["nothing", "a column", "channels"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [16, 32, 48, 64, 130, 192])
def test_dy_where_it_lies(channels, dtype, after):
    case = (2, 3, 11, 17, channels, 3, 3, (1, 1), (1, 1), (1, 1), 1)
    x, w, b, window = make(case, dtype, "channels_last")
    dy = values((2, channels, 11, 17), torch.Generator().manual_seed(1), dtype)
    columns, wide = 17 + (after == "a column"), channels + 16 * (after == "channels")
    whole = torch.full((2, 11, columns, wide), float("nan"), dtype=dtype).permute(0, 3, 1, 2)
    lies = whole[:, :channels, :, :17].copy_(dy)
    check_weight_and_bias(x, w, b, window, lies, dy)


def check_weight_and_bias(x, w, b, window, lies, dy, factor=FACTOR):
    exact = gradients(F.conv2d, x.double(), w.double(), b.double(), window, dy.double())
    torchs = gradients(F.conv2d, x, w, b, window, dy)
    ours = gradients(fastconv.conv2d, x, w, b, window, lies)
    for i, times in ((2, factor), (3, FACTOR)):
        assert_good(ours[i], torchs[i], exact[i], x.dtype, times)


# More blocks of pixels than a partial sum has.
@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [(3, 5), (20, 37)], ids=str)
def test_long_sums_of_one_tap(channels, dtype, layout):
    C, K = channels
    x, w, b, window = make((3, C, 131, 133, K, 1, 1, (1, 1), (0, 0), (1, 1), 1), dtype, layout)
    dy = values((3, K, 131, 133), torch.Generator().manual_seed(1), dtype)
    check_weight_and_bias(x, w, b, window, dy, dy)


def test_two_million_products_to_a_sum():
    x, w, b, window = make((2, 3, 1031, 1033, 5, 1, 1, (1, 1), (0, 0), (1, 1), 1), torch.float32)
    dy = values((2, 5, 1031, 1033), torch.Generator().manual_seed(1), torch.float32)
    exact = gradients(F.conv2d, x.double(), w.double(), b.double(), window, dy.double())[2]
    dw = gradients(fastconv.conv2d, x, w, b, window, dy)[2]
    assert relative_rms(dw, exact) < 5e-7
