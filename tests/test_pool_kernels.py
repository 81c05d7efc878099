"""The pooling kernels of every ISA: many vectors, every edge of a strip, NaN anywhere."""

import pytest
import torch
import torch.nn.functional as F
from guarded import guarded
from test_pool import DTYPES, averages, tensor

import fastconv
from fastconv.ops import pool
from fastconv.testing import reference
from fastconv.testing.compare import assert_good, poison


@pytest.mark.parametrize("layout", ["nchw", "nhwc", "nchw sliced"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "window", [(3, 2, 1), (2, 2, 0), ((5, 4), 1, 2), ((2, 3), (4, 3), 1)], ids=str
)
def test_pools_of_many_vectors(window, dtype, layout, isa):
    """Several vectors of channels or columns with a rest, several bands of rows; one place of each
    of two planes is a NaN."""
    x = tensor(layout, dtype, (1, 83, 61, 75)).round(decimals=1)
    x[0, 5, 31, 44] = x[0, 80, 0, 74] = torch.nan
    expected, index = F.max_pool2d(x, *window, return_indices=True)
    poison(torch.empty_like(expected))
    y, places = fastconv.max_pool2d(x, *window, return_indices=True)
    torch.testing.assert_close(y, expected, equal_nan=True, rtol=0, atol=0)
    torch.testing.assert_close(places, index, rtol=0, atol=0)
    poison(torch.empty_like(expected))
    y = fastconv.max_pool2d(x, *window)
    torch.testing.assert_close(y, expected, equal_nan=True, rtol=0, atol=0)
    x = x.nan_to_num(1)
    poison(torch.empty_like(expected))
    y, expected = fastconv.avg_pool2d(x, *window), F.avg_pool2d(x, *window)
    assert_good(y, expected, reference.avg_pool2d(x, *window), dtype)


def flat_places(window8: torch.Tensor, k: int, pad: int, width: int) -> torch.Tensor:
    """Places in the plane, from places in windows of k x k whose stride is 2."""
    down, right = window8.long() // k, window8.long() % k
    h = torch.arange(window8.shape[2])[:, None] * 2 - pad + down
    return h * width + torch.arange(window8.shape[3]) * 2 - pad + right


# Widths around one and two strips of the narrowest and of the widest vectors.
STRIPS = [1, 2, 3, 4, 5, 8, 15, 16, 17, 18, 31, 32, 33, 34, 35, 64, 65, 66, 67, 99]


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("k", "pad"), [(2, 0), (2, 1), (3, 0), (3, 1)])
def test_windows_of_stride_two(k, pad, dtype, layout, ceil_mode, isa):
    """Every edge of a strip: ties, a region of -inf, a NaN at every column in turn, and operands
    that lie between forbidden pages."""
    for i, width in enumerate(STRIPS):
        x = tensor(layout, dtype, (1, 3, 1 + i % 6, width), seed=i).round(decimals=1)
        x[0, 1, :, : width // 2 + 1] = -torch.inf
        window = (k, 2, pad, 1, ceil_mode)
        try:
            truth, index = F.max_pool2d(x, *window, return_indices=True)
        except RuntimeError:
            continue  # no window fits
        finite = x.nan_to_num(neginf=-1)
        wanted = [
            (args, F.avg_pool2d(finite, *args), reference.avg_pool2d(finite, *args))
            for args in averages(window)
        ]
        for before in (False, True):
            x = guarded(x, before)
            poison(torch.empty_like(truth))
            assert torch.equal(fastconv.max_pool2d(x, *window), truth)
            poison(torch.empty_like(truth))
            y, places = pool._max_pool2d_window(x, k, k, 2, 2, pad, pad, 1, 1, int(ceil_mode))
            assert places.dtype == torch.uint8 and torch.equal(y, truth)
            assert torch.equal(flat_places(places, k, pad, width), index)
            assert torch.equal(fastconv.max_pool2d(x, *window, return_indices=True)[1], index)
            finite = guarded(finite, before)
            for args, expected, exact in wanted:
                poison(torch.empty_like(truth))
                y = fastconv.avg_pool2d(finite, *args)
                assert_good(y, expected, exact, dtype, name=f"{width} {args}")


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("pad", [0, 1])
def test_a_nan_anywhere_wins(pad, k, layout, isa):
    """Also in the column of a strip's last window that no other strip reads, and in the last row
    of a window that the plane's edge cuts."""
    for width in (2 * k, 33, 65):
        for column in range(width):
            height = 4 + column % 2
            x = tensor(layout, torch.float32, (1, 2, height, width), seed=column)
            x[0, 1, column % height, column] = x[0, 1, height - 1, column] = torch.nan
            y, places = fastconv.max_pool2d(x, k, 2, pad, return_indices=True)
            expected, index = F.max_pool2d(x, k, 2, pad, return_indices=True)
            torch.testing.assert_close(y, expected, equal_nan=True, rtol=0, atol=0)
            torch.testing.assert_close(places, index, rtol=0, atol=0)
            y = fastconv.max_pool2d(x, k, 2, pad)
            torch.testing.assert_close(y, expected, equal_nan=True, rtol=0, atol=0)
