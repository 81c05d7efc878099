"""The CUDA backend whole, from tensors to kernels, for CPU tensors in the emulator.

The ops' own suites run on it too (the fixture `backend`); here is what they do not ask: which
kernel runs, tf32, launches that fail, the networks.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conv_cases import CASES, DTYPES, KERNELS, LAYOUTS, make, values
from emulator.ops import emulated_cuda

import fastconv
from fastconv.models import alexnet, lenet, nin, vgg16
from fastconv.models.googlenet import Inception
from fastconv.models.resnet import BasicBlock, Bottleneck
from fastconv.testing.compare import assert_good


def forward(case, dtype, layout, activation=None, fused=False):
    x, w, b, window = make(case, dtype, layout)
    truth, theirs = (
        F.conv2d(x.double(), w.double(), b.double(), *window),
        F.conv2d(x, w, b, *window),
    )
    r = None
    if fused:
        r = values(truth.shape, torch.Generator().manual_seed(1), dtype)
        truth, theirs = truth + r.double(), theirs + r
    act = {None: lambda t: t, "relu": torch.relu, "sigmoid": torch.sigmoid}[activation]
    with emulated_cuda() as log:
        ours = fastconv.conv2d(x, w, b, *window, residual=r, activation=activation)
    assert ours.dtype == dtype and ours.stride() == theirs.stride()
    assert_good(ours, act(theirs), act(truth), dtype)
    return log


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
def test_conv2d(case, layout, dtype):
    forward(CASES[case], dtype, layout)


@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_fused_in_the_kernel_that_is_meant(kernel, layout, activation):
    case, dtype = KERNELS[kernel]
    log = forward(case, dtype, layout, activation, fused=True)
    assert any(kernel in name for name in log), log


def _downsampled(block, inputs, planes):
    """A residual block that halves the image."""
    shortcut = torch.nn.Sequential(
        fastconv.nn.Conv2d(inputs, planes * block.expansion, 1, stride=2, bias=False),
        torch.nn.BatchNorm2d(planes * block.expansion),
    )
    return block(inputs, planes, stride=2, downsample=shortcut)


# LeNet whole, one block of each other network; the size of its input.
PARTS = {
    "lenet": (lambda: lenet(), (2, 1, 28, 28)),
    "alexnet": (lambda: alexnet().features[:3], (1, 3, 47, 39)),
    "vgg": (lambda: vgg16().features[:5], (1, 3, 14, 10)),
    "nin": (lambda: nin()[2], (1, 96, 7, 6)),
    "googlenet": (lambda: Inception(192, 64, 96, 128, 16, 32, 32), (1, 192, 7, 6)),
    "resnet basic": (lambda: BasicBlock(64, 64), (1, 64, 9, 7)),
    "resnet bottleneck": (lambda: _downsampled(Bottleneck, 64, 32), (1, 64, 9, 7)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("part", PARTS)
def test_networks(part, dtype):
    make_part, size = PARTS[part]
    module, x = make_part().eval(), torch.randn(size)
    with torch.no_grad():
        truth = module.double()(x.to(dtype).double())
        module, x = module.to(dtype), x.to(dtype)
        theirs = module(x)
        with emulated_cuda() as log:
            ours = module(x)
    assert log
    # Tensor cores round their sums toward zero: over the layers of a block the errors of float32
    # (3xTF32) add up, where those of round-to-nearest partly cancel.
    assert_good(ours, theirs, truth, dtype, factor=4 if dtype == torch.float32 else 2)
