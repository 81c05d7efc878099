"""Pooling and residual add past torch's dispatcher (csrc/eager_pool.cpp)."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.nn.functional as F
from test_eager import Ops, Sub

import fastconv
from fastconv import _C

OPS = torch.ops.fastconv
LAYOUTS = {
    "nchw": lambda x: x,
    "nhwc": lambda x: x.to(memory_format=torch.channels_last),
    "sliced": lambda x: x[:, :, ::2],
    "expanded": lambda x: x[:1].expand(3, -1, -1, -1),
}
CALLS = {
    "max": (
        lambda x: _C.eager_max_pool2d(x, (3, 2), 2, (1, 0), 1, True),
        lambda x: OPS.max_pool2d_raw(x, 3, 2, 2, 2, 1, 0, 1, 1, 1),
    ),
    "max, of its kernel's stride": (
        lambda x: _C.eager_max_pool2d(x, 2, None, 0, (2, 1), False),
        lambda x: OPS.max_pool2d_raw(x, 2, 2, 2, 2, 0, 0, 2, 1, 0),
    ),
    "average": (
        lambda x: _C.eager_avg_pool2d(x, (2, 3), (2, 1), (0, 1), True, False, None),
        lambda x: OPS.avg_pool2d_raw(x, 2, 3, 2, 1, 0, 1, 1, 0, 0),
    ),
    "average, of a divisor": (
        lambda x: _C.eager_avg_pool2d(x, 2, None, 1, False, True, 3),
        lambda x: OPS.avg_pool2d_raw(x, 2, 2, 2, 2, 1, 1, 0, 1, 3),
    ),
    "adaptive": (
        lambda x: _C.eager_adaptive_avg_pool2d(x, (2, 3)),
        lambda x: OPS.adaptive_avg_pool2d_raw(x, 2, 3),
    ),
    "global": (
        lambda x: _C.eager_adaptive_avg_pool2d(x, 1),
        lambda x: OPS.adaptive_avg_pool2d_raw(x, 1, 1),
    ),
    "add": (
        lambda x: _C.eager_residual_add(x, x.clone(), None),
        lambda x: OPS.residual_add_raw(x, x.clone(), 0),
    ),
    "add + ReLU": (
        lambda x: _C.eager_residual_add(x, x, "relu"),
        lambda x: OPS.residual_add_raw(x, x, 1),
    ),
}
of_calls = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


def same(a, b):
    return torch.equal(a, b) and a.stride() == b.stride() and a.dtype == b.dtype


@of_calls
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_plain_tensors_are_taken_and_equal_the_op(call, layout, dtype):
    x = layout(torch.randn(2, 6, 9, 7, dtype=dtype))
    assert same(call[0](x), call[1](x))


@of_calls
def test_large_tensors_leave_the_interpreter_to_others(call):
    x = torch.randn(2, 8, 120, 112)
    assert same(call[0](x), call[1](x))


@of_calls
def test_anything_unusual_is_left_to_the_op(call):
    x = torch.randn(2, 6, 9, 7)
    z = torch.randn(2, 6, 9, 7, dtype=torch.cfloat).conj().imag
    for each in (x[0], x.int(), x.cfloat(), x.to("meta"), x[:0], z, x.as_subclass(Sub)):
        assert call[0](each) is None
    with fastconv.backend("cpu"):
        assert call[0](x) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert call[0](x) is None
    with Ops():
        assert call[0](x) is None


@pytest.mark.parametrize(
    "call",
    [
        lambda x: _C.eager_max_pool2d(x, 2, 2, 0, 1, 1),
        lambda x: _C.eager_max_pool2d(x, 2, (), 0, 1, False),
        lambda x: _C.eager_max_pool2d(x, 2, 0, 0, 1, False),
        lambda x: _C.eager_max_pool2d(x, 2, 2, 2, 1, False),
        lambda x: _C.eager_max_pool2d(x, 12, 2, 0, 1, False),
        lambda x: _C.eager_max_pool2d(x, True, 2, 0, 1, False),
        lambda x: _C.eager_max_pool2d(x, 2.0, 2, 0, 1, False),
        lambda x: _C.eager_max_pool2d(x, 2),
        lambda x: _C.eager_avg_pool2d(x, 2, 2, 0, False, True, 0),
        lambda x: _C.eager_avg_pool2d(x, 2, 2, 0, False, 1, None),
        lambda x: _C.eager_avg_pool2d(x, 2**70, 2, 0, False, True, None),
        lambda x: _C.eager_adaptive_avg_pool2d(x, None),
        lambda x: _C.eager_adaptive_avg_pool2d(x, (2, None)),
        lambda x: _C.eager_adaptive_avg_pool2d(x, -1),
        lambda x: _C.eager_residual_add(x, x[:1], None),
        lambda x: _C.eager_residual_add(x, x.double(), None),
        lambda x: _C.eager_residual_add(x, None, None),
        lambda x: _C.eager_residual_add(x, x, "tanh"),
    ],
)
def test_arguments_that_do_not_fit_are_left_to_the_op(call):
    assert call(torch.randn(2, 6, 9, 7)) is None


def test_the_functions_take_them():
    x = torch.randn(2, 6, 9, 7)
    with Ops() as mode:  # which keeps every call from being taken
        expected = (
            fastconv.max_pool2d(x, 3, 2, 1),
            fastconv.avg_pool2d(x, 2),
            fastconv.adaptive_avg_pool2d(x, 1),
            fastconv.residual_add(x, x, "relu"),
        )
    assert len(mode.names) == 4
    assert same(fastconv.max_pool2d(x, 3, 2, 1), expected[0])
    assert same(fastconv.avg_pool2d(x, 2), expected[1])
    assert same(fastconv.adaptive_avg_pool2d(x, 1), expected[2])
    assert same(fastconv.residual_add(x, x, "relu"), expected[3])
    with torch.inference_mode():
        assert fastconv.max_pool2d(x, 3, 2, 1).is_inference()


@pytest.mark.parametrize("kernel", [(3, 2), (20, 20)], ids=["byte", "more places than a byte has"])
def test_gradients_of_max_pooling(kernel):
    x = torch.randperm(2 * 3 * 24 * 22).double().view(2, 3, 24, 22).requires_grad_()

    def pool(x):
        return fastconv.max_pool2d(x, kernel, 3, 1)

    assert _C.eager_max_pool2d(x, kernel, 3, 1, 1, False) == (*kernel, 3, 3, 1, 1, 1, 1, 0)
    y = pool(x)
    assert y.grad_fn.name() == "_MaxPool2dBackward"
    dy = torch.randn_like(y)
    (dx,) = torch.autograd.grad(y, x, dy)
    (expected,) = torch.autograd.grad(F.max_pool2d(x, kernel, 3, 1), x, dy)
    torch.testing.assert_close(dx, expected)
    small = x[:1, :1].detach().requires_grad_()
    assert torch.autograd.gradgradcheck(pool, (small,))
    with torch.no_grad():
        assert not pool(x).requires_grad


def test_calls_that_need_other_gradients_take_the_op():
    x = torch.randn(2, 6, 9, 7, requires_grad=True)
    for call in list(CALLS.values())[2:]:
        assert call[0](x) is None
        with torch.no_grad():
            assert call[0](x) is not None


def test_a_step_is_seen_by_transforms():
    x = torch.randn(2, 6, 9, 7)
    grad = torch.func.grad(lambda x: fastconv.max_pool2d(x, 2).square().sum())(x)
    leaf = x.clone().requires_grad_()
    fastconv.max_pool2d(leaf, 2).square().sum().backward()
    torch.testing.assert_close(grad, leaf.grad)


def test_it_keeps_no_reference():
    x = torch.randn(2, 6, 9, 7)
    grad = x.clone().requires_grad_()
    before = sys.getrefcount(x), sys.getrefcount(grad)
    for call, _ in CALLS.values():
        for _ in range(20):
            call(x)
            call(grad)
            fastconv.max_pool2d(grad, 2)
    assert (sys.getrefcount(x), sys.getrefcount(grad)) == before
    y, index = _C.eager_max_pool2d_window(x, (2, 2, 2, 2, 0, 0, 1, 1, 0))
    mean, torchs = _C.eager_avg_pool2d(x, 2, 2, 0, False, True, None), torch.empty(1)
    assert len({sys.getrefcount(t) for t in (y, index, mean, torchs)}) == 1
