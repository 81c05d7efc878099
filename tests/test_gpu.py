"""The CUDA ops on a real GPU, beside torch's there and float64; skipped where there is none.

What `bench/gpu.sh test` runs, with test_gpu_grad.py. They need torch, pytest and a build for the
GPU, nothing else. The tests named "small" are the grid of `bench/gpu.sh sanitize`: every kernel
once or twice.
"""

from __future__ import annotations

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
    more_channels_than_32_bits_count,
    values,
)
from gpu import ACTIVATE, FORMATS, WINDOWS, image, poison_cache

import fastconv
from fastconv import models
from fastconv.testing import torch_layers
from fastconv.testing.compare import assert_good
from fastconv.testing.layers import LAYERS

pytestmark = pytest.mark.usefixtures("without_tf32")
TWO_GPUS = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


def check(case, dtype, layout, activation=None, fused=False, factor=2):
    """A forward convolution of the table, where torch's own error on the CPU sets the tolerance."""
    x, w, b, window = make(case, dtype, layout)
    truth = F.conv2d(x.double(), w.double(), b.double(), *window)
    theirs, r = F.conv2d(x, w, b, *window), None
    strides = theirs.stride()
    if fused:
        r = values(truth.shape, torch.Generator().manual_seed(1), dtype)
        truth, theirs = truth + r.double(), theirs + r
    on_gpu = [LAYOUTS[layout](t.cuda()) if t is x else t.cuda() for t in (x, w, b)]
    poison_cache()
    ours = fastconv.conv2d(
        *on_gpu, *window, residual=None if r is None else r.cuda(), activation=activation
    )
    assert ours.is_cuda and ours.dtype == dtype and ours.stride() == strides
    act = ACTIVATE[activation]
    assert_good(ours, act(theirs), act(truth), dtype, factor)
    return ours


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
def test_conv2d(case, layout, dtype):
    check(CASES[case], dtype, layout)


@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_small_fused(kernel, layout, activation):
    case, dtype = KERNELS[kernel]
    check(case, dtype, layout, activation, fused=True)


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("case", ["1x1", "stem", "winograd 5x5"])
def test_small_splits_and_tiles(case, activation):
    """Deep and few pixels: split-K; many pixels and channels: the large tiles."""
    for c, size, k, dtype in ((512, 7, 512, torch.float16), (64, 40, 256, torch.bfloat16)):
        _, _, _, _, _, r, s, *window = CASES[case]
        problem = (1, c, size, size + 1, k, r, s, (1, 1), (r // 2, s // 2), (1, 1), 1)
        check(problem, dtype, "channels_last", activation)


def launched(function):
    """Names of the CUDA kernels that a call launches."""
    function()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        function()
        torch.cuda.synchronize()
    return [event.key for event in profile.key_averages()]


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_kernel_that_is_meant_runs_and_none_of_torchs(kernel):
    case, dtype = KERNELS[kernel]
    x, w, b, window = make(case, dtype, "channels_last")
    x, w, b = (t.cuda() for t in (x, w, b))
    w = w.contiguous(memory_format=torch.channels_last)
    names = launched(lambda: fastconv.conv2d(x, w, b, *window))
    family = next(
        family
        for family in ("conv_implicit_gemm", "conv_stem", "conv_depthwise", "conv_direct")
        if kernel.replace("conv1x1", "conv_implicit_gemm").startswith(family)
    )
    assert any(family in name for name in names), names
    assert not any("cudnn" in name or "cutlass" in name for name in names), names


@pytest.mark.parametrize("dtype", (torch.float16, torch.float32), ids=str)
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_every_layer_of_the_networks(layer, dtype):
    """Batch 2, whole sizes: every tile that the planner takes on this GPU."""
    x_size, w_size, _ = layer.sizes(2)
    x = torch.randn(x_size, device="cuda").to(dtype, memory_format=torch.channels_last)
    w = (torch.randn(w_size, device="cuda") * torch.Size(w_size[1:]).numel() ** -0.5).to(dtype)
    window = (layer.stride, layer.padding, layer.dilation, layer.groups)
    ours = fastconv.conv2d(x, w, None, *window)
    theirs = F.conv2d(x, w, None, *window)
    truth = F.conv2d(x.double(), w.double(), None, *window)
    # Tensor cores round their sums toward zero; cuDNN's float32 rounds to nearest.
    assert_good(ours, theirs, truth, dtype, factor=4 if dtype == torch.float32 else 2)


@pytest.mark.parametrize("case", ["direct 3x3", "1x1", "stem", "winograd 4x4"])
def test_tf32_follows_torchs_switch(case):
    n, _, h, w_, _, *rest = CASES[case]
    c = 3 if case == "stem" else 64
    x, w, b, window = make((n, c, h, w_, 64, *rest), torch.float32, "channels_last")
    truth = F.conv2d(x.double(), w.double(), b.double(), *window)
    scale = truth.norm()
    x, w, b = (t.cuda() for t in (x, w, b))

    def error(allowed):
        torch.backends.cudnn.allow_tf32 = allowed
        y = fastconv.conv2d(x, w, b, *window)
        return ((y.cpu().double() - truth).norm() / scale).item()

    assert error(False) < 2e-6
    assert 1e-5 < error(True) < 2e-3


def test_the_switch_is_read_by_each_call():
    x = torch.randn(2, 64, 9, 11, device="cuda")
    w = torch.randn(64, 64, 3, 3, device="cuda")
    exact = fastconv.conv2d(x, w)
    torch.backends.cudnn.allow_tf32 = True
    assert not torch.equal(fastconv.conv2d(x, w), exact)
    torch.backends.cudnn.allow_tf32 = False
    assert torch.equal(fastconv.conv2d(x, w), exact)


def test_results_repeat_to_the_bit():
    x = torch.randn(1, 512, 7, 7, device="cuda").half()
    w = torch.randn(512, 512, 3, 3, device="cuda").half()
    first = fastconv.conv2d(x, w, padding=1)
    for _ in range(20):
        poison_cache()
        assert torch.equal(fastconv.conv2d(x, w, padding=1), first)


# --- streams, graphs, memory, devices -------------------------------------------------------------


def test_current_stream():
    """The kernel waits for what its stream holds, and the default stream does not wait for it."""
    stream = torch.cuda.Stream()
    x, w = torch.zeros(4, 64, 40, 36, device="cuda"), torch.randn(64, 64, 3, 3, device="cuda")
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # the allocator keeps memory for it
        expected = fastconv.conv2d(torch.ones_like(x), w)
        fastconv.conv2d(x, w)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # cycles
        x.fill_(1)
        y = fastconv.conv2d(x, w)
        assert not stream.query(), "the call waited for the GPU"
    stream.synchronize()
    assert torch.equal(y, expected)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_cuda_graph(layout):
    """Captured and replayed over new inputs: conv of every kind, pooling, residual add."""
    net = models.resnet18().cuda().eval().half().requires_grad_(False)
    net = net.to(memory_format=FORMATS[layout])
    x = torch.randn(2, 3, 96, 64, device="cuda").half().to(memory_format=FORMATS[layout])
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        net(x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = net(x)
    for seed in (1, 2):
        torch.manual_seed(seed)
        x.copy_(torch.randn(x.shape).half())
        graph.replay()
        assert torch.equal(y, net(x))


@pytest.mark.parametrize("size, splits", [((8, 64, 56, 56), False), ((1, 512, 7, 7), True)])
def test_no_memory_but_the_output_and_split_k(size, splits):
    c = size[1]
    x = torch.randn(size, device="cuda").half().to(memory_format=torch.channels_last)
    w = torch.randn(c, c, 3, 3, device="cuda").half().to(memory_format=torch.channels_last)
    fastconv.conv2d(x, w, padding=1)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    y = fastconv.conv2d(x, w, padding=1)
    extra = torch.cuda.max_memory_allocated() - before - y.nbytes
    if splits:
        assert 0 < extra <= 32 * y.numel() * 4 + 1024  # float32 parts, at most 32
    else:
        assert extra <= 512  # the allocator's rounding
    after = torch.cuda.memory_allocated()
    for _ in range(3):
        y = fastconv.conv2d(x, w, padding=1)
    assert torch.cuda.memory_allocated() <= after


def test_tensors_of_two_devices_are_refused():
    x, w = torch.randn(1, 8, 5, 6, device="cuda"), torch.randn(8, 8, 3, 3)
    with pytest.raises(RuntimeError, match="different devices|device"):
        fastconv.conv2d(x, w)
    with pytest.raises(RuntimeError, match="different devices|device"):
        fastconv.residual_add(x, x.cpu())
    with pytest.raises(RuntimeError, match="different devices|device"):
        window = (10, 12, 2, 2, 2, 2, 0, 0, 1, 1)
        torch.ops.fastconv.max_pool2d_grad(x, x.cpu().byte(), *window)
    with fastconv.backend("cpu"), pytest.raises(RuntimeError):
        fastconv.conv2d(x, w.cuda())
    with fastconv.backend("cuda"), pytest.raises(RuntimeError):
        fastconv.conv2d(x.cpu(), w)


@TWO_GPUS
def test_the_tensors_device_is_used_and_the_current_one_kept():
    x, w = torch.randn(2, 64, 9, 11), torch.randn(64, 64, 3, 3)
    torch.cuda.set_device(0)
    first = fastconv.conv2d(x.to("cuda:0"), w.to("cuda:0"))
    second = fastconv.conv2d(x.to("cuda:1"), w.to("cuda:1"))
    assert second.device.index == 1 and torch.cuda.current_device() == 0
    torch.testing.assert_close(second.cpu(), first.cpu())
    with pytest.raises(RuntimeError, match="device"):
        fastconv.conv2d(x.to("cuda:0"), w.to("cuda:1"))


def test_a_launch_that_fails_names_the_kernel_and_the_problem():
    x, w = (t[:, :1].cuda().expand_as(t) for t in more_channels_than_32_bits_count())
    with pytest.raises(RuntimeError, match=REFUSED):
        fastconv.conv2d(x, w)
    torch.cuda.synchronize()  # and no error is left for the next call
    assert fastconv.conv2d(x[:, :8], w[:, :8]).item() == 8


# --- torch's machinery ----------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", "_raw"])
def test_opcheck(suffix):
    x, w = torch.randn(2, 3, 7, 9, device="cuda"), torch.randn(4, 3, 3, 2, device="cuda")
    window = (2, 1, 1, 0, 1, 0, 1, 2, 1)
    y = fastconv.conv2d(x, w, None, (2, 1), (1, 0), (1, 2))
    bias, residual = torch.randn(4, device="cuda"), torch.randn_like(y)
    op = getattr(torch.ops.fastconv, "conv2d" + suffix).default
    torch.library.opcheck(op, (x, w, bias, residual, *window, 1, 0))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile(backend):
    w, b = torch.randn(16, 8, 3, 3, device="cuda"), torch.randn(16, device="cuda")

    def function(x):
        return fastconv.conv2d(x, w, b, padding="same", activation="relu") + 1

    x = torch.randn(2, 8, 8, 11, device="cuda")
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(x), function(x))


def test_autocast():
    x, w = torch.randn(2, 8, 9, 7, device="cuda"), torch.randn(16, 8, 3, 3, device="cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        y = fastconv.conv2d(x, w)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, fastconv.conv2d(x.bfloat16(), w.bfloat16()))


# --- pooling, residual add, networks --------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["nchw", "channels_last", "sliced"])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_small_max_pool(window, layout, dtype):
    x = image(layout, dtype).round(decimals=1)  # with ties
    expected, index = F.max_pool2d(x.cpu(), *window, return_indices=True)
    poison_cache()
    assert torch.equal(fastconv.max_pool2d(x, *window).cpu(), expected)
    y, places = fastconv.max_pool2d(x, *window, return_indices=True)
    assert torch.equal(y.cpu(), expected) and torch.equal(places.cpu(), index)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["nchw", "channels_last", "sliced"])
def test_small_avg_pool(layout, dtype):
    x = image(layout, dtype)
    pools = {
        "avg": lambda m, t: m.avg_pool2d(t, (3, 2), (2, 1), (1, 1)),
        "uncounted": lambda m, t: m.avg_pool2d(t, 3, 2, 1, True, False),
        "adaptive": lambda m, t: m.adaptive_avg_pool2d(t, (4, 5)),
        "global": lambda m, t: m.adaptive_avg_pool2d(t, 1),
    }
    for name, pool in pools.items():
        poison_cache()
        ours = pool(fastconv, x)
        assert_good(ours, pool(F, x.cpu()), pool(F, x.cpu().double()), dtype, name=name)


@pytest.mark.parametrize("activation", [None, "relu", "sigmoid"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layouts", ["nchw nchw", "channels_last nchw", "sliced channels_last"])
def test_small_residual_add(layouts, dtype, activation):
    x, y = (image(layout, dtype) for layout in layouts.split())
    y = y.flip(0)
    ours = fastconv.residual_add(x, y, activation)
    act = ACTIVATE[activation]
    truth = act(x.cpu().double() + y.cpu().double())
    assert_good(ours, act(x.cpu() + y.cpu()), truth, dtype)


@pytest.mark.parametrize("precision", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("name", models.SIX)
def test_networks(name, precision):
    """Eval forward, channels_last, at the network's own size, beside torch's layers."""
    dtype = getattr(torch, precision)
    torch.manual_seed(0)
    ours = models.NETWORKS[name]().eval().requires_grad_(False)
    twin = models.NETWORKS[name](layers=torch_layers).eval().requires_grad_(False)
    twin.load_state_dict(ours.state_dict())
    x = torch.randn(2, *models.input_size(name), device="cuda").to(dtype)
    x = x.to(memory_format=torch.channels_last)
    ours, twin = (net.to("cuda", dtype, memory_format=torch.channels_last) for net in (ours, twin))
    y, theirs = ours(x), twin(x)
    truth = twin.double()(x.double())
    assert_good(y, theirs, truth, dtype, factor=10)
