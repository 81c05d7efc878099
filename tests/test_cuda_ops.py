"""The CUDA backend's ops whole, from tensors to kernels: its torch side for CPU tensors, over the
emulator. The same cases as the CPU backend's."""

from __future__ import annotations

import ctypes

import emulator
import pytest
import torch
import torch.nn.functional as F
from emulator import ops as emulated
from test_conv import CASES, DTYPES, LAYOUTS, make, values
from test_plan import CUDA_ROWS

import fastconv
from fastconv.testing.compare import assert_good

pytestmark = pytest.mark.usefixtures("_cuda")


@pytest.fixture
def _cuda():
    emulated.load()
    with fastconv.backend("cuda-emulated"):
        yield


def forward(case, dtype, layout, activation=None, fused=False):
    x, w, b, window = make(CASES[case], dtype, layout)
    truth = F.conv2d(x.double(), w.double(), b.double(), *window)
    theirs = F.conv2d(x, w, b, *window)
    r = None
    if fused:
        r = values(truth.shape, torch.Generator().manual_seed(1), dtype)
        truth, theirs = truth + r.double(), theirs + r
    act = {None: lambda t: t, "relu": torch.relu, "sigmoid": torch.sigmoid}[activation]
    ours = fastconv.conv2d(x, w, b, *window, residual=r, activation=activation)
    assert ours.dtype == dtype and ours.stride() == theirs.stride()
    assert_good(ours, act(theirs), act(truth), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
def test_conv2d(case, layout, dtype):
    forward(case, dtype, layout)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
@pytest.mark.parametrize("case", ["direct planar chunks", "1x1 strided", "grouped"])
def test_fused(case, activation, dtype):
    forward(case, dtype, "channels_last", activation, fused=True)
