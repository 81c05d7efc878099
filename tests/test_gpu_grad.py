"""The gradients of the CUDA ops on a real GPU; as tests/test_gpu.py."""

from __future__ import annotations

import contextlib
import random

import pytest
import torch
import torch.nn.functional as F
from conv_cases import CASES, DTYPES, KERNELS, LAYOUTS, gradients, make, values
from gpu import ACTIVATE, WINDOWS, image, poison_cache
from mixed_problems import check, drawn

import fastconv
from fastconv.testing.compare import assert_good
from fastconv.testing.layers import LAYERS

pytestmark = pytest.mark.usefixtures("without_tf32")


def check_gradients(case, dtype, layout):
    """Output and gradients, where torch's own error on the CPU sets the tolerance."""
    x, w, b, window = make(case, dtype, layout)
    size = F.conv2d(x, w, b, *window).shape
    dy = values(size, torch.Generator().manual_seed(1), dtype)
    exact = gradients(F.conv2d, x.double(), w.double(), b.double(), window, dy.double())
    theirs = gradients(F.conv2d, x, w, b, window, dy)
    x, dy = (LAYOUTS[layout](t.cuda()) for t in (x, dy))
    poison_cache()
    ours = gradients(fastconv.conv2d, x, w.cuda(), b.cuda(), window, dy)
    for mine, reference, true in zip(ours, theirs, exact, strict=True):
        assert_good(mine, reference, true, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
def test_gradients(case, layout, dtype):
    check_gradients(CASES[case], dtype, layout)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_small_gradients(kernel, layout):
    check_gradients(*KERNELS[kernel], layout)


@pytest.mark.parametrize("seed", range(20))
def test_random_problems(seed):
    rng, generator = random.Random(1000 + seed), torch.Generator().manual_seed(seed)
    for _ in range(25):
        check(drawn(rng), generator, contextlib.nullcontext(), "cuda")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_gradients_of_channels_that_are_no_whole_chunks(layout, dtype):
    """So many products that zeros fill them up."""
    check_gradients((4, 101, 31, 33, 150, 3, 3, (1, 1), (1, 1), (1, 1), 1), dtype, layout)


@pytest.mark.parametrize("dtype", (torch.float16, torch.float32), ids=str)
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_gradients_of_every_layer(layer, dtype):
    x_size, w_size, y_size = layer.sizes(2)
    x, dy = (
        torch.randn(size, device="cuda").to(dtype, memory_format=torch.channels_last)
        for size in (x_size, y_size)
    )
    w = (torch.randn(w_size, device="cuda") * torch.Size(w_size[1:]).numel() ** -0.5).to(dtype)
    b = torch.zeros(layer.K, device="cuda", dtype=dtype)
    window = (layer.stride, layer.padding, layer.dilation, layer.groups)
    ours = gradients(fastconv.conv2d, x, w, b, window, dy)
    theirs = gradients(F.conv2d, x, w, b, window, dy)
    exact = gradients(F.conv2d, x.double(), w.double(), b.double(), window, dy.double())
    for mine, reference, true in zip(ours, theirs, exact, strict=True):
        assert_good(mine, reference, true, dtype, factor=4 if dtype == torch.float32 else 2)


def test_gradients_repeat_to_the_bit():
    x = torch.randn(4, 64, 28, 27, device="cuda").half()
    w = torch.randn(64, 64, 3, 3, device="cuda").half()
    b, dy = torch.zeros(64, device="cuda").half(), torch.randn(4, 64, 14, 14, device="cuda").half()
    window = (2, 1)
    first = gradients(fastconv.conv2d, x, w, b, window, dy)
    for _ in range(20):
        poison_cache()
        again = gradients(fastconv.conv2d, x, w, b, window, dy)
        assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


# --- pooling, residual add ------------------------------------------------------------------------


def gradient(function, x, dtype):
    """Of a fixed dy; on the GPU where x is."""
    leaf = x.to(dtype).requires_grad_()
    y = function(leaf)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(x.dtype)
    if x.is_cuda:
        poison_cache()
    return torch.autograd.grad(y, leaf, dy.to(leaf))[0]


def check_gradient(of, x, name):
    """``of(module)`` is the function of fastconv or by torch."""
    ours = gradient(of(fastconv), x, x.dtype)
    assert torch.equal(ours, gradient(of(fastconv), x, x.dtype))
    theirs, truth = (gradient(of(F), x.cpu(), d) for d in (x.dtype, torch.float64))
    assert_good(ours, theirs, truth, x.dtype, name=name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["nchw", "channels_last", "sliced"])
def test_small_pool_gradients(layout, dtype):
    x = image(layout, dtype).round(decimals=1)  # with ties
    for window in WINDOWS:
        check_gradient(lambda m, w=window: lambda t: m.max_pool2d(t, *w), x, f"max {window}")
    pools = {
        "avg": lambda m: lambda t: m.avg_pool2d(t, (3, 2), (2, 1), (1, 1)),
        "uncounted": lambda m: lambda t: m.avg_pool2d(t, 3, 2, 1, True, False),
        "indices": lambda m: lambda t: m.max_pool2d(t, 3, 2, 1, return_indices=True)[0],
        "large": lambda m: lambda t: m.max_pool2d(t, (19, 14)),
        "adaptive": lambda m: lambda t: m.adaptive_avg_pool2d(t, (4, 5)),
        "global": lambda m: lambda t: m.adaptive_avg_pool2d(t, 1),
    }
    for name, of in pools.items():
        check_gradient(of, x, name)


@pytest.mark.parametrize("activation", [None, "relu", "sigmoid"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["nchw", "channels_last", "sliced"])
def test_small_residual_add_gradient(layout, dtype, activation):
    x = image(layout, dtype)
    act = ACTIVATE[activation]

    def of(module):
        if module is fastconv:
            return lambda t: fastconv.residual_add(t, t.flip(0), activation)
        return lambda t: act(t + t.flip(0))

    check_gradient(of, x, activation)
