"""The Triton kernels on a real GPU, beside torch's there and float64; skipped where there is none.

What `bench/gpu.sh triton` runs, with TRITON_INTERPRET=0. It needs torch, triton and pytest.
"""

from __future__ import annotations

import pytest
import test_pool
import torch
import torch.nn.functional as F
from conv_cases import DTYPES, LAYOUTS, gradients, make, values
from test_triton_ops import EVERY
from test_triton_torch import assert_equals_block, operands
from test_triton_torch import block as small_block

import fastconv
from fastconv.testing.compare import assert_good

if not torch.cuda.is_available():
    pytest.skip("no NVIDIA GPU that this torch can use", allow_module_level=True)

from fastconv.triton.launch import INTERPRETING  # noqa: E402

if INTERPRETING:
    pytest.skip("TRITON_INTERPRET is not 0", allow_module_level=True)


@pytest.fixture(autouse=True)
def triton(without_tf32):
    with fastconv.backend("triton"):
        yield


def rounded_to_tf32(t):
    bits = t.view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


def compare(x, w, b, window, dtype, layout, factor):
    """Results and gradients; torch's own error on the CPU sets the tolerance."""
    y = F.conv2d(x.double(), w.double(), b.double(), *window)
    dy = LAYOUTS[layout](values(y.shape, torch.Generator().manual_seed(1), dtype))
    truth = gradients(F.conv2d, x.double(), w.double(), b.double(), window, dy.double())
    theirs = gradients(F.conv2d, x, w, b, window, dy)
    ours = gradients(fastconv.conv2d, *(t.cuda() for t in (x, w, b)), window, dy.cuda())
    for mine, reference, true in zip(ours, theirs, truth, strict=True):
        assert_good(mine.cpu(), reference, true, dtype, factor=factor)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["nchw", "channels_last", "sliced"])
@pytest.mark.parametrize("case", EVERY)
def test_convolution(case, layout, dtype):
    x, w, b, window = make(EVERY[case], dtype, layout)
    # Tensor cores round their sums toward zero, where the CPU rounds to nearest.
    compare(x, w, b, window, dtype, layout, factor=4)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("case", EVERY)
def test_tf32_of_operands_that_are_tf32(case, layout):
    torch.backends.cudnn.allow_tf32 = True
    x, w, b, window = make(EVERY[case], torch.float32, layout)
    x, w = rounded_to_tf32(x), rounded_to_tf32(w)
    y = F.conv2d(x.double(), w.double(), b.double(), *window)
    ours = fastconv.conv2d(x.cuda(), w.cuda(), b.cuda(), *window)
    assert_good(ours.cpu(), F.conv2d(x, w, b, *window), y, torch.float32, factor=100)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", test_pool.LAYOUTS)
@pytest.mark.parametrize("window", test_pool.WINDOWS, ids=str)
def test_pooling(window, layout, dtype):
    x = test_pool.tensor(layout, dtype).round(decimals=1)
    expected, index = F.max_pool2d(x, *window, return_indices=True)
    y, places = fastconv.max_pool2d(x.cuda(), *window, return_indices=True)
    assert torch.equal(y.cpu(), expected) and torch.equal(places.cpu(), index)
    assert torch.equal(fastconv.max_pool2d(x.cuda(), *window).cpu(), expected)
    kernel, stride, padding, dilation, ceil_mode = window
    functions = [lambda m, x: m.max_pool2d(x, *window), lambda m, x: m.adaptive_avg_pool2d(x, 3)]
    if dilation == 1:
        functions.append(lambda m, x: m.avg_pool2d(x, kernel, stride, padding, ceil_mode))
    for f in functions:
        results = []
        for module, t in ((fastconv, x.cuda()), (F, x), (F, x.double())):
            leaf = t.requires_grad_()
            y = f(module, leaf)
            dy = values(y.shape, torch.Generator().manual_seed(1), dtype).to(y)
            results.append([r.cpu() for r in (y.detach(), *torch.autograd.grad(y, leaf, dy))])
        for ours, theirs, truth in zip(*results, strict=True):
            assert_good(ours, theirs, truth, dtype)


def test_inductor_compiles_the_kernels_with_the_rest():
    args = [t.detach().cuda().requires_grad_() for t in operands()]
    assert_equals_block(torch.compile(small_block, fullgraph=True), args)


def test_results_repeat():
    x, w, b, window = make(EVERY["split"], torch.float16, "channels_last")
    dy = torch.randn_like(F.conv2d(x, w, b, *window)).cuda()
    x, w, b = x.cuda(), w.cuda(), b.cuda()
    runs = [gradients(fastconv.conv2d, x, w, b, window, dy) for _ in range(20)]
    for run in runs[1:]:
        assert all(torch.equal(a, c) for a, c in zip(run, runs[0], strict=True))
