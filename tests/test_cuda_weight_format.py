"""The memory format of a weight gradient on a GPU: the input's, as a network's weights have it."""

import pytest
import torch
from emulator import library
from emulator.grads import window
from emulator.ops import emulated_cuda
from torch._subclasses.fake_tensor import FakeTensorMode

import fastconv

# Sizes of x and w, groups, dtype, and how the kernel's name begins.
CASES = {
    "filled": ((2, 13, 9, 8), (21, 13, 3, 2), 1, torch.float16, "conv_implicit_gemm"),
    "whole chunks": ((2, 16, 9, 8), (24, 16, 2, 3), 1, torch.float32, "conv_implicit_gemm"),
    "stem": ((2, 3, 9, 8), (24, 3, 3, 3), 1, torch.bfloat16, "conv_stem"),
    "depthwise": ((2, 24, 9, 8), (24, 1, 3, 3), 24, torch.float16, "conv_depthwise"),
    "direct": ((2, 6, 9, 8), (10, 3, 3, 3), 2, torch.float64, "conv_direct"),
    "1x1": ((2, 16, 9, 8), (24, 16, 1, 1), 1, torch.float16, "conv1x1"),
}
FORMATS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}


@pytest.fixture
def taken_for_gpu():
    """Within it CPU tensors pass for a GPU's."""
    with emulated_cuda():  # which loads the ops
        library().emulated_taken_for_gpu(1)
    yield
    library().emulated_taken_for_gpu(0)


def gradients(case):
    (n, c, h, w), size, groups, dtype, kernel = CASES[case]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, c, h, w, generator=generator).to(dtype)
    dy = torch.randn(n, size[0], h - size[2] + 1, w - size[3] + 1, generator=generator).to(dtype)
    settings = (*size[2:], *window(groups=groups), 0)

    def run(memory_format, **biased):
        op = "conv2d_weight_bias_grad_raw" if biased else "conv2d_weight_grad_raw"
        with emulated_cuda(least_filled=1) as log:
            on = x.contiguous(memory_format=memory_format)
            made = getattr(torch.ops.fastconv_emulated, op)(on, dy, *settings, *biased.values())
        assert any(name.startswith(kernel) for name in log), log
        return made

    return run


@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("case", CASES)
def test_it_is_the_inputs(case, memory_format, taken_for_gpu):
    run = gradients(case)
    ours = run(memory_format), run(memory_format, output=None, activation=0)[0]
    library().emulated_taken_for_gpu(0)
    expected = run(memory_format)
    assert expected.is_contiguous()
    for dw in ours:
        assert dw.is_contiguous(memory_format=memory_format) and torch.equal(dw, expected)


@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)
def test_the_fake_kernel_says_so(memory_format):
    with FakeTensorMode():
        x, dy = (
            torch.empty_strided((2, c, 9, 7), strides, device="cuda")
            for c in (16, 24)
            for strides in [torch.empty(2, c, 9, 7).to(memory_format=memory_format).stride()]
        )
        ops, settings = torch.ops.fastconv, (3, 5, *window(padding=(1, 2)), 0)
        dw = ops.conv2d_weight_grad(x, dy, *settings)
        both = ops.conv2d_weight_bias_grad(x, dy, *settings, None, 0)
        assert all(t.is_contiguous(memory_format=memory_format) for t in (dw, both[0]))


@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)
def test_autograd_keeps_it_as_it_is(memory_format, taken_for_gpu):
    x, w = (
        t.to(memory_format=memory_format)
        for t in (torch.randn(2, 8, 9, 7), torch.randn(16, 8, 3, 3))
    )
    w.requires_grad_().register_hook(lambda dw: made.append(dw.data_ptr()))
    made = []
    with emulated_cuda():
        fastconv.conv2d(x, w).sum().backward()
    assert made == [w.grad.data_ptr()]
