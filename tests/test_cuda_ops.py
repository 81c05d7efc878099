"""The CUDA backend whole, from tensors to kernels, for CPU tensors in the emulator.

The ops' own suites run on it too (the fixture `backend`); here is what they do not ask: which
kernel runs, tf32, launches that fail, the networks.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from emulator.ops import emulated_cuda
from test_conv import CASES, DTYPES, LAYOUTS, make, values

import fastconv
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


# What runs: a part of the kernel's name, and a problem (as CASES) and dtype that it takes.
KERNELS = {
    "conv1x1_f16": ((2, 24, 7, 9, 40, 1, 1, (2, 1), (0, 0), (1, 1), 1), torch.float16),
    "conv_implicit_gemm_bf16": ((1, 16, 9, 7, 24, 3, 3, (1, 2), (1, 1), (1, 1), 1), torch.bfloat16),
    "conv_implicit_gemm_f32": ((1, 12, 9, 7, 24, 3, 2, (1, 1), (1, 0), (2, 1), 1), torch.float32),
    "conv_direct": ((1, 5, 9, 7, 6, 3, 3, (1, 1), (1, 1), (1, 1), 1), torch.float64),
}


@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_fused_in_the_kernel_that_is_meant(kernel, layout, activation):
    case, dtype = KERNELS[kernel]
    log = forward(case, dtype, layout, activation, fused=True)
    assert any(kernel in name for name in log), log
