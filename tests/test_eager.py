"""Calls past torch's dispatcher (csrc/eager_conv.cpp): which are taken, and nothing else is."""

from __future__ import annotations

import sys
import threading

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import fastconv
from fastconv import _C

USUAL = (1, 0, 1, 1, None, None)  # stride, padding, dilation, groups, residual, activation


def operands(dtype=torch.float32):
    return (
        torch.randn(2, 6, 5, 7, dtype=dtype),
        torch.randn(4, 6, 3, 2, dtype=dtype),
        torch.randn(4, dtype=dtype),
    )


def taken(x, w, b=None, *settings):
    return _C.eager_conv2d(x, w, b, *(settings or USUAL))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_plain_tensors_are_taken_and_equal_the_op(dtype):
    x, w, b = operands(dtype)
    r = torch.randn(2, 4, 3, 5, dtype=dtype)
    settings = ((2, 1), (1, 0), (1, 2), 1, r, "relu")
    y = taken(x, w, b, *settings)
    raw = torch.ops.fastconv.conv2d_raw(x, w, b, r, 2, 1, 1, 0, 1, 0, 1, 2, 1, 1, 0)
    assert type(y) is torch.Tensor and torch.equal(y, raw)
    parameter = torch.nn.Parameter(w, requires_grad=False)
    assert torch.equal(taken(x, parameter, b, *settings), raw)


def test_layouts_strides_and_expanded_operands():
    x, w, b = operands()
    for each in (
        x.to(memory_format=torch.channels_last),
        x.transpose(2, 3),
        x[:, :, ::2],
        x[:1].expand(3, -1, -1, -1),
    ):
        y = taken(each, w[:, :, :2], b[:1].expand(4))
        raw = torch.ops.fastconv.conv2d_raw(
            each, w[:, :, :2], b[:1].expand(4), None, 1, 1, 0, 0, 0, 0, 1, 1, 1, 0, 0
        )
        assert torch.equal(y, raw) and y.stride() == raw.stride()


def test_the_output_is_torchs_own():
    x, w, b = operands()
    y = taken(x, w, b)
    y.resize_(3, 50)
    assert y.numel() == 150 and not y.requires_grad
    with torch.inference_mode():
        assert taken(x, w, b).is_inference()


def test_where_a_gradient_is_asked_for_it_answers_the_settings():
    x, w, b = operands()
    for i in range(3):
        tensors = [t.requires_grad_(j == i) for j, t in enumerate((x, w, b))]
        settings = taken(*tensors, 2, (1, 0), (1, 2), 1, None, "sigmoid")
        assert settings == (2, 2, 1, 0, 1, 0, 1, 2, 1, 2, 0)
        assert fastconv.conv2d(*tensors).requires_grad
        with torch.no_grad():
            assert type(taken(*tensors)) is torch.Tensor


@pytest.mark.parametrize("activation", [None, "relu", "sigmoid"])
def test_gradients_of_both_orders(activation):
    x, w, b = (t.requires_grad_() for t in operands(torch.float64))
    r = torch.randn(2, 4, 3, 6, dtype=torch.float64, requires_grad=True)

    def f(x, w, b, r):
        return fastconv.conv2d(x, w, b, residual=r, activation=activation)

    assert f(x, w, b, r).grad_fn.name() == "_Conv2dBackward"
    assert torch.autograd.gradcheck(f, (x, w, b, r))
    assert torch.autograd.gradgradcheck(f, (x, w, b, r))


class Sub(torch.Tensor):
    pass


def unusual():
    x, w, b = operands()
    yield "3 dimensions", x[0], w, b, *USUAL
    yield "a subclass", x.as_subclass(Sub), w, b, *USUAL
    yield "integers", x.int(), w.int(), None, *USUAL
    yield "complex", x.cfloat(), w.cfloat(), None, *USUAL
    yield "float8", x.to(torch.float8_e4m3fn), w.to(torch.float8_e4m3fn), None, *USUAL
    yield "the device meta", x.to("meta"), w.to("meta"), None, *USUAL
    yield "sparse", x.to_sparse(), w, b, *USUAL
    yield "no memory", torch._efficientzerotensor(2, 6, 5, 7), w, b, *USUAL
    yield "two dtypes", x, w.double(), b, *USUAL
    yield "sizes that do not fit", x, w[:, :3], b, *USUAL
    yield "a bias that does not fit", x, w, b[:3], *USUAL
    yield "an empty batch", x[:0], w, b, *USUAL
    yield "no tensor", x.numpy(), w, b, *USUAL
    yield "padding by a word", x, w, b, 1, "same", 1, 1, None, None
    yield "a bool", x, w, b, True, 0, 1, 1, None, None
    yield "a number of another kind", x, w, b, 1.0, 0, 1, 1, None, None
    yield "three numbers", x, w, b, (1, 1, 1), 0, 1, 1, None, None
    yield "a stride of 0", x, w, b, 0, 0, 1, 1, None, None
    yield "a huge stride", x, w, b, 2**70, 0, 1, 1, None, None
    yield "an unknown activation", x, w, b, 1, 0, 1, 1, None, "tanh"
    yield "an activation of another kind", x, w, b, 1, 0, 1, 1, None, 1


@pytest.mark.parametrize("arguments", unusual(), ids=lambda a: a[0])
def test_anything_unusual_is_left_to_the_op(arguments):
    assert taken(*arguments[1:]) is None


def test_a_negative_view_is_read_negated():
    z = torch.randn(2, 6, 5, 7, dtype=torch.cfloat)
    _, w, b = operands()
    x = z.conj().imag
    assert x.is_neg()
    torch.testing.assert_close(fastconv.conv2d(x, w, b), F.conv2d(-z.imag, w, b))
    negative = torch._neg_view(w)
    torch.testing.assert_close(fastconv.conv2d(z.real, negative, b), F.conv2d(z.real, -w, b))
    layer = fastconv.nn.Conv2d(6, 4, (3, 2)).eval()
    with torch.no_grad():
        torch.testing.assert_close(
            layer(x), F.conv2d(-z.imag, layer.weight, layer.bias), rtol=1e-5, atol=1e-5
        )


class Ops(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


class Functions(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_modes_and_the_profiler_see_the_op():
    x, w, b = operands()
    for mode in (Ops(), Functions()):
        with mode:
            fastconv.conv2d(x, w, b)
        assert any("fastconv.conv2d" in name for name in mode.names), mode.names
    with torch.profiler.profile() as profile:
        fastconv.conv2d(x, w, b)
    assert any("fastconv::conv2d" in event.key for event in profile.key_averages())
    layer = fastconv.nn.Conv2d(6, 4, 3).eval()
    with torch.no_grad(), torch.profiler.profile() as profile:
        layer(x)
    assert any("fastconv::conv2d" in event.key for event in profile.key_averages())


def test_transforms_and_traces_see_the_op():
    x, w, b = operands()
    traced = torch.jit.trace(lambda x: fastconv.conv2d(x, w, b), x)
    assert "fastconv::conv2d" in str(traced.graph)
    graph = make_fx(lambda x: fastconv.conv2d(x, w, b))(x)
    assert "fastconv.conv2d" in graph.code
    mapped = torch.func.vmap(lambda x: fastconv.conv2d(x, w, b))(x[:, None])
    torch.testing.assert_close(mapped[:, 0], fastconv.conv2d(x, w, b))
    grad = torch.func.grad(lambda w: fastconv.conv2d(x, w, b).square().sum())(w)
    leaf = w.clone().requires_grad_()
    fastconv.conv2d(x, leaf, b).square().sum().backward()
    torch.testing.assert_close(grad, leaf.grad)
    with FakeTensorMode() as mode:
        assert fastconv.conv2d(mode.from_tensor(x), mode.from_tensor(w)).shape == (2, 4, 3, 6)
    with forward_ad.dual_level(), pytest.raises((RuntimeError, NotImplementedError)):
        fastconv.conv2d(forward_ad.make_dual(x, x), w, b)


def test_a_tensor_that_outlives_its_transform():
    x, w, b = operands()
    kept = []
    torch.func.grad(lambda x: (kept.append(x), x.sum())[1])(x)
    torch.testing.assert_close(fastconv.conv2d(kept[0], w, b), fastconv.conv2d(x, w, b))


def test_autocast_and_a_chosen_backend():
    x, w, b = operands()
    with torch.autocast("cpu", torch.bfloat16):
        assert fastconv.conv2d(x, w, b).dtype == torch.bfloat16
    with fastconv.backend("cpu"):
        assert taken(x, w, b) is None
        fastconv.conv2d(x, w, b)
    assert taken(x, w, b) is not None


def test_it_keeps_no_reference():
    x, w, b = operands()
    w.requires_grad_()
    before = [sys.getrefcount(t) for t in (x, w, b)]
    for _ in range(100):
        fastconv.conv2d(x, w, b)
        fastconv.conv2d(x, w, b[:3].new_zeros(4), 1, (1, 1), activation="relu")
        taken(x, w[:, :3], b)
    assert [sys.getrefcount(t) for t in (x, w, b)] == before
    size = (1, 1)
    count = sys.getrefcount(size)
    for _ in range(100):
        taken(x, w.detach(), b, size, size, size, 1, None, None)
    assert sys.getrefcount(size) == count


def test_threads_at_once():
    x, w = torch.randn(2, 16, 40, 44), torch.randn(16, 16, 3, 3)  # long enough to release the GIL
    wanted, wrong = fastconv.conv2d(x, w), []

    def work():
        for _ in range(20):
            if not torch.equal(fastconv.conv2d(x, w), wanted):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_an_empty_sum_is_the_bias():
    x, w, b = operands()
    assert fastconv.conv2d(x[:, :, :, :0], w, b, padding=(0, 1)).isfinite().all()
