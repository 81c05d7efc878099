"""The CUDA backend whole, from tensors to kernels, for CPU tensors in the emulator.

The ops' own suites run on it too (the fixture `backend`); here is what they do not ask: which
kernel runs, tf32, launches that fail, the networks.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conv_cases import (
    CASES,
    DTYPES,
    KERNELS,
    LAYOUTS,
    REFUSED,
    gradients,
    make,
    more_channels_than_32_bits_count,
    values,
)
from emulator import ROOT
from emulator.ops import NAME, emulated_cuda
from test_train import LENET, few

import fastconv
from fastconv.cli import main
from fastconv.cli.emulated import PARTS, both_ways, compare_part
from fastconv.cli.training import Training
from fastconv.ops.registry import OPS
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


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
def test_gradients(case, layout, dtype):
    x, w, b, window = make(CASES[case], dtype, layout)
    size = F.conv2d(x, w, b, *window).shape
    dy = values(size, torch.Generator().manual_seed(1), dtype)
    exact = gradients(F.conv2d, x.double(), w.double(), b.double(), window, dy.double())
    theirs = gradients(F.conv2d, x, w, b, window, dy)
    with emulated_cuda():
        ours = gradients(fastconv.conv2d, x, w, b, window, LAYOUTS[layout](dy))
    for mine, true, reference in zip(ours, exact, theirs, strict=True):
        assert_good(mine, reference, true, dtype)


@pytest.mark.parametrize("case", ["direct 3x3", "grouped", "1x1 strided", "depthwise strided"])
def test_gradcheck_twice(case):
    n, c, h, w, k, r, s, stride, padding, dilation, groups = CASES[case]
    groups = 3 if groups == c else groups
    small = (1, 3 * groups, 5, 6, 2 * groups, r, s, stride, padding, (1, 1), groups)
    x, wt, b, window = make(small, torch.float64)
    inputs = [t.requires_grad_() for t in (x, wt, b)]
    with emulated_cuda():

        def function(x, w, b):
            return fastconv.conv2d(x, w, b, *window, activation="sigmoid")

        assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_fused_in_the_kernel_that_is_meant(kernel, layout, activation):
    case, dtype = KERNELS[kernel]
    log = forward(case, dtype, layout, activation, fused=True)
    assert any(kernel in name for name in log), log


def test_a_launch_that_fails_names_the_kernel_and_the_problem():
    x, w = more_channels_than_32_bits_count()
    with (
        emulated_cuda(),
        pytest.raises(RuntimeError, match=REFUSED),
    ):
        fastconv.conv2d(x, w)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_opcheck(layout):
    """Fake kernels give the sizes and strides that the CUDA ops give."""
    x, dy, r = (LAYOUTS[layout](torch.randn(size)) for size in ((2, 4, 7, 9), *[(2, 6, 4, 4)] * 2))
    w, b = LAYOUTS[layout](torch.randn(6, 4, 3, 2)), torch.randn(6)
    conv, pool = (2, 2, 1, 0, 1, 0, 1, 1, 1), (3, 2, 2, 2, 1, 0)
    _, index = F.max_pool2d(x, (3, 2), 2, (1, 0), return_indices=True)
    y = x[..., :4, :4]
    calls = {
        "conv2d": (x, w, b, r, *conv, 1, 0),
        "conv2d_input_grad": (dy, w, 7, 9, *conv, 0),
        "conv2d_weight_grad": (x, dy, 3, 2, *conv, 0),
        "conv2d_bias_grad": (dy,),
        "conv2d_weight_bias_grad": (x, dy, 3, 2, *conv, 0, r, 1),
        "max_pool2d": (x, *pool, 1, 1, 0),
        "max_pool2d_window": (x, *pool, 1, 1, 0),
        "max_pool2d_with_indices": (x, *pool, 1, 1, 0),
        "max_pool2d_grad": (y, LAYOUTS[layout](index), 7, 9, *pool, 1, 1),
        "max_pool2d_gather": (x, LAYOUTS[layout](index), 7, 9, *pool, 1, 1),
        "avg_pool2d": (x, *pool, 0, 1, 0),
        "avg_pool2d_grad": (y, 7, 9, *pool, 0, 1, 0),
        "adaptive_avg_pool2d": (x, 3, 2),
        "adaptive_avg_pool2d_grad": (dy, 7, 9),
        "residual_add": (dy, r, 1),
        "activation_grad": (dy, r, 1),
        "activation_bias_grad": (dy, r, 1),
    }
    with emulated_cuda():
        for name, op in OPS.items():
            face = op.on(NAME)
            for each in (face.public, face.raw):
                tests = ("test_schema", "test_autograd_registration", "test_faketensor")
                torch.library.opcheck(each, calls[name], test_utils=tests)


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


# What the CUDA sources ask of the CUDA runtime. None of it waits for the GPU, allocates, copies or
# uses a stream of its own, so that every op can be captured in a CUDA graph.
RUNTIME = {
    "cudaDeviceGetAttribute",
    "cudaFuncSetAttribute",
    "cudaGetDevice",
    "cudaGetErrorString",
    "cudaGetLastError",  # after a launch that failed
    "cudaLaunchKernel",
    "cudaSetDevice",
}


def test_nothing_that_a_graph_capture_refuses():
    sources = [path.read_text() for path in ROOT.joinpath("csrc").rglob("*.*")]
    called = {name for text in sources for name in re.findall(r"\bcuda?[A-Z]\w+(?=\()", text)}
    assert called == RUNTIME
    assert not any("<<<" in text for text in sources)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("part", PARTS)
def test_networks(part, dtype, memory_format):
    """LeNet whole and a block of each other network: outputs and every gradient."""
    row = compare_part(part, dtype, 0, emulated_cuda, memory_format)
    assert row.ok, row.failures


@pytest.mark.parametrize("amp", [None, "bfloat16", "float16"])
def test_training(amp):
    """Three steps of LeNet move each parameter as the CPU's kernels do in float32, to rounding."""

    def moved(amp):
        settings = replace(LENET, epochs=1, optimizer="sgd", momentum=0.9, amp=amp)
        training = Training(settings, few(48), torch.device("cpu"))
        start = [p.detach().clone() for p in training.model.parameters()]
        for _ in training.run():
            pass
        return [p.detach() - s for p, s in zip(training.model.parameters(), start, strict=True)]

    with emulated_cuda() as log:
        ours = moved(amp)
    assert {"conv_direct_weight_grad", "conv_stem_weight_grad"} <= {
        part for name in log for part in re.findall(r"^conv_\w+_grad(?=_)", name)
    }, log
    for mine, expected in zip(ours, moved(None), strict=True):
        assert (mine - expected).norm() < (1e-4 if amp is None else 0.03) * expected.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_block_repeats_to_the_bit_whatever_the_order_of_threads(dtype):
    """Forward and backward; a race, or a sum in the order of arrival, would show."""
    builder, size = PARTS["resnet Bottleneck"]
    part, x = builder(fastconv.nn).to(dtype), torch.randn(size).to(dtype)
    first = None
    for order, seed in (("ascending", 1), ("descending", 1), ("random", 1), ("random", 2)):
        with emulated_cuda(order=order, seed=seed):
            results = both_ways(part, x, torch.ones(1, 128, 5, 4, dtype=dtype))
        first = first or results
        assert all(torch.equal(results[name], first[name]) for name in first)


def test_validate_offers_the_emulator(capsys, monkeypatch, tmp_path):
    command = ["validate", "--backend", "cuda-emulated", "--network", "lenet"]
    assert main(command) == 0
    assert "all 1 comparisons passed" in capsys.readouterr().out
    assert main([*command[:3], "--network", "classic_cnn"]) == 2
    assert "no part of classic_cnn" in capsys.readouterr().err
    monkeypatch.setattr(fastconv, "__file__", str(tmp_path / "fastconv" / "__init__.py"))
    assert main(command) == 2
    assert "needs the emulator of the tests" in capsys.readouterr().err


def test_a_wrong_kernel_fails_the_part(monkeypatch):
    right = fastconv.nn.Conv2d.forward
    monkeypatch.setattr(fastconv.nn.Conv2d, "forward", lambda *a, **k: right(*a, **k) * (1 + 1e-3))
    assert not compare_part("nin block", torch.float32, seed=0, emulated=emulated_cuda).ok


@pytest.mark.parametrize("gradient", ["input", "weight", "bias"])
def test_a_wrong_gradient_fails_the_part(monkeypatch, gradient):
    """Made alone, or with the gradient that the bias has in common with others."""
    # Place of the gradient among the results of each op that makes it.
    makers = {
        "input": {"_conv2d_input_grad": None},
        "weight": {"_conv2d_weight_grad": None, "_conv2d_weight_bias_grad": 0},
        "bias": {"activation_bias_grad": 1, "_conv2d_weight_bias_grad": 1},
    }

    def wrong(right, place):
        def run(*args):
            results = right(*args)
            if place is None:
                return results * (1 + 1e-3)
            return tuple(r * (1 + 1e-3 * (i == place)) for i, r in enumerate(results))

        return run

    for name, place in makers[gradient].items():
        right = getattr(fastconv.ops.conv, name)
        monkeypatch.setattr(fastconv.ops.conv, name, wrong(right, place))
    row = compare_part("lenet", torch.float32, seed=0, emulated=emulated_cuda)
    assert row.failures and all(".grad: relative rms error" in each for each in row.failures)
