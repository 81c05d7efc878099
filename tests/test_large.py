"""More elements than 32 bits can number: views over one value, so that nothing is stored."""

import pytest
import torch

import fastconv
from fastconv.testing.compare import assert_good

SIDE, STEP = 66000, 40000  # SIDE^2 > 2^32; STEP * SIDE > 2^31


@pytest.fixture(params=["nchw", "channels innermost"])
def wide(request):
    """(1, 1, SIDE, SIDE) or (1, 2, SIDE, SIDE) whose elements are all ones."""
    one = torch.ones(1, dtype=torch.float64)
    return one.expand(1, 1 if request.param == "nchw" else 2, SIDE, SIDE)


@pytest.mark.usefixtures("backend")
def test_convolution(wide):
    w = torch.ones(3, wide.shape[1], 1, 3, dtype=torch.float64)
    y = fastconv.conv2d(wide, w, stride=STEP)
    assert y.shape == (1, 3, 2, 2) and (y == 3 * wide.shape[1]).all()


def test_weight_gradient(wide):
    w = torch.ones(3, wide.shape[1], 1, 3, dtype=torch.float64, requires_grad=True)
    y = fastconv.conv2d(wide, w, stride=STEP)
    dy = torch.arange(12.0, dtype=torch.float64).reshape(y.shape)
    (dw,) = torch.autograd.grad(y, w, dy)
    assert (dw == dy.sum((0, 2, 3))[:, None, None, None]).all()


@pytest.mark.usefixtures("backend")
def test_pooling(wide):
    y, index = fastconv.max_pool2d(wide, 2, STEP, return_indices=True)
    assert (y == 1).all()
    assert index[0, 0].tolist() == [[0, STEP], [STEP * SIDE, STEP * SIDE + STEP]]
    assert (fastconv.avg_pool2d(wide, 2, STEP) == 1).all()


@pytest.mark.slow  # 4 GB
def test_an_input_gradient_of_more_than_32_bits_can_number():
    """A row of 2^31 values and some, of one byte's worth of gradient each side."""
    columns = (1 << 31) + 64
    dy = torch.ones(1, 1, 1, 2, dtype=torch.float16)
    dx = torch.ops.fastconv.avg_pool2d_grad(*(dy, 1, columns, 1, 1, 1, columns - 1, 0, 0, 0, 1, 0))
    assert dx[0, 0, 0, 0] == 1 and dx[0, 0, 0, -1] == 1 and dx[0, 0, 0, 1:4].sum() == 0


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_result_of_huge_pages_is_written_whole(layout):
    """5 MiB, of which whole huge pages are a part; in channels_last more blocks than one."""
    x = torch.randn(2, 5, 61, 67).contiguous(memory_format=layout)
    w = torch.randn(160, 5, 1, 1)
    truth = torch.nn.functional.conv2d(x.double(), w.double())
    y = fastconv.conv2d(x, w)
    assert y.numel() * y.element_size() > 4 << 20 and y.is_contiguous(memory_format=layout)
    assert_good(y, torch.nn.functional.conv2d(x, w), truth, torch.float32)
    assert torch.equal(fastconv.max_pool2d(y, 1, 1), y)
    assert torch.equal(fastconv.residual_add(y, y), 2 * y)
