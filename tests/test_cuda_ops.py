"""The CUDA backend whole, from tensors to kernels, for CPU tensors in the emulator.

The ops' own suites run on it too (the fixture `backend`); here is what they do not ask: which
kernel runs, tf32, launches that fail, the networks.
"""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from conv_cases import (
    CASES,
    DTYPES,
    KERNELS,
    LAYOUTS,
    REFUSED,
    make,
    more_channels_than_a_grid_has_rows,
    values,
)
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


def test_a_launch_that_fails_names_the_kernel_and_the_problem():
    x, w = more_channels_than_a_grid_has_rows()
    with (
        emulated_cuda(),
        pytest.raises(RuntimeError, match=REFUSED),
    ):
        fastconv.conv2d(x, w)


def allocated(function, trace):
    """Bytes of the tensors that a call makes; `trace` is a file for torch's profiler."""
    with torch.profiler.profile(profile_memory=True) as profile:
        function()
    profile.export_chrome_trace(str(trace))
    events = json.loads(trace.read_text())["traceEvents"]
    return sum(max(e["args"]["Bytes"], 0) for e in events if e["name"] == "[memory]")


def test_no_memory_but_the_output_and_split_k(tmp_path):
    """Partial sums are float32, as many as there are splits, and the same on every call."""
    whole = torch.randn(1, 16, 12, 9).half(), torch.randn(24, 16, 3, 3).half()
    deep = torch.randn(1, 256, 4, 3).half(), torch.randn(32, 256, 3, 3).half()
    for (x, w), splits in ((whole, False), (deep, True)):
        x, w = (t.contiguous(memory_format=torch.channels_last) for t in (x, w))
        outputs = []

        def call(x=x, w=w, outputs=outputs):
            outputs.append(fastconv.conv2d(x, w, padding=1))

        with emulated_cuda(gpu=(90, 132, 228 << 10)) as log:
            used = allocated(call, tmp_path / "trace.json")
            call()
        y, again = outputs
        assert torch.equal(y, again)
        if splits:
            parts, rest = divmod(used - y.nbytes, 4 * y.numel())
            assert 1 < parts <= 32 and rest == 0 and "add_splits" in log
        else:
            assert used == y.nbytes and "add_splits" not in log


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
