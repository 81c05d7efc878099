"""Strides, and channels' strides, that 32 bits cannot hold, in Triton's interpreter.

Operands lie in a mapping of memory that is reserved but for what is touched.
"""

from __future__ import annotations

import mmap

import pytest
import torch
import torch.nn.functional as F
from conftest import interpreted_triton

import fastconv

pytest.importorskip("triton")

# Elements from one image to the next: in units of 8 it is less than 2^31, in elements more.
FAR = (1 << 31) + 64


@pytest.fixture(autouse=True)
def triton():
    with interpreted_triton():
        yield


@pytest.fixture(scope="module")
def memory():
    """float16, 12 GiB of addresses."""
    no_reserve = 0x4000  # MAP_NORESERVE of Linux, where Triton runs
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve
    return torch.frombuffer(mmap.mmap(-1, 3 * 2 * FAR, flags), dtype=torch.float16)


def spread(memory, t, by=None):
    """The values of t in channels_last rows, its images FAR elements apart; or of the strides."""
    n, c, h, w = t.shape
    far = memory[:0].as_strided(t.shape, by or (FAR, 1, w * c, c), 0)
    return far.copy_(t)


def near(t):
    return t.clone(memory_format=torch.contiguous_format)


def check(function, *tensors, far=(0,), memory):
    """function of operands of which those at the places `far` are spread out, and of near ones."""
    expected = function(*tensors)
    for i in far:
        moved = [spread(memory, t) if i == j else t for j, t in enumerate(tensors)]
        for mine, true in zip(function(*moved), expected, strict=True):
            assert torch.equal(mine, true), i


def values(*size):
    return torch.randint(-3, 4, size, dtype=torch.float16)


# 3x3, 1x1, depthwise (8 groups): forward and both gradients, of the raw ops.
@pytest.mark.parametrize("kernel, groups", [(3, 1), (1, 1), (3, 8)])
def test_convolution(kernel, groups, memory):
    x, w = values(2, 8, 5, 4), values(8, 8 // groups, kernel, kernel)
    pad = kernel // 2
    window, ops = (1, 1, *[pad] * 4, 1, 1, groups), torch.ops.fastconv_triton

    def run(x, dy, z):
        return (
            ops.conv2d_raw(x, w, None, z, *window, 0, 0),
            ops.conv2d_input_grad_raw(dy, w, 5, 4, *window, 0),
            ops.conv2d_weight_grad_raw(x, dy, kernel, kernel, *window, 0),
            ops.conv2d_bias_grad_raw(dy),
            *ops.activation_bias_grad_raw(dy, z, 1),
        )

    check(run, x, values(2, 8, 5, 4), values(2, 8, 5, 4), far=(0, 1, 2), memory=memory)


def test_pooling_and_add(memory):
    window, ops = (3, 3, 2, 2, 1, 1), torch.ops.fastconv_triton

    def run(x, dy):
        y, index = ops.max_pool2d_window_raw(x, *window, 1, 1, 0)
        return (
            y,
            ops.max_pool2d_grad_raw(dy, index, 5, 4, *window, 1, 1),
            ops.max_pool2d_gather_raw(x, index, 5, 4, *window, 1, 1),
            ops.avg_pool2d_raw(x, *window, 0, 1, 0),
            ops.avg_pool2d_grad_raw(dy, 5, 4, *window, 0, 1, 0),
            ops.adaptive_avg_pool2d_raw(x, 1, 1),
            ops.residual_add_raw(x, near(x), 0),
        )

    check(run, values(2, 8, 5, 4), values(2, 8, 3, 2), far=(0, 1), memory=memory)


def test_channels_far_apart(memory):
    """Planes of which two and more channels are 2^31 elements apart, read and as a residual."""
    x, w, by = values(1, 3, 4, 6), values(8, 3, 1, 1), (0, 1 << 30, 6, 1)
    expected = F.conv2d(x.float(), w.float()).half()
    assert torch.equal(fastconv.conv2d(spread(memory, x, by), w), expected)
    shortcut = spread(memory, x, by)
    plain = fastconv.conv2d(x, w[:3], residual=x)
    assert torch.equal(fastconv.conv2d(x, w[:3], residual=shortcut), plain)
