"""The naive references against torch.nn.functional in float64, on random problems."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fastconv.testing import reference

random_problems = settings(derandomize=True, deadline=None, max_examples=100)
small = st.integers(1, 3)
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")  # torch's own
pairs = st.tuples(small, small)
sides = st.integers(1, 11)


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert actual.dtype == torch.float64
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12, equal_nan=True)


def random(*size: int) -> torch.Tensor:
    return torch.randn(*size, dtype=torch.float64)


@st.composite
def convolutions(draw) -> dict:
    groups, kernel, dilation = draw(small), draw(st.tuples(small, sides)), draw(pairs)
    padding = draw(st.sampled_from([0, 1, (2, 1), (0, 3), "same", "valid"]))
    stride = (1, 1) if padding == "same" else draw(pairs)
    n, c, k = draw(st.integers(0, 2)), groups * draw(small), groups * draw(small)
    h, w = draw(sides), draw(sides)
    if not isinstance(padding, str):
        pads = reference.pair(padding)
        assume(h + 2 * pads[0] > dilation[0] * (kernel[0] - 1))
        assume(w + 2 * pads[1] > dilation[1] * (kernel[1] - 1))
    if padding == "valid":
        assume(h > dilation[0] * (kernel[0] - 1) and w > dilation[1] * (kernel[1] - 1))
    torch.manual_seed(draw(st.integers(0, 99)))
    return {
        "input": random(n, c, h, w) if draw(st.booleans()) else random(c, h, w),
        "weight": random(k, c // groups, *kernel),
        "bias": random(k) if draw(st.booleans()) else None,
        "geometry": {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups},
    }


@random_problems
@given(convolutions(), st.sampled_from([None, "relu", "sigmoid"]), st.booleans())
def test_conv2d(problem, activation, with_residual):
    x, w, b, geometry = problem.values()
    expected = F.conv2d(x, w, b, **geometry)
    residual = torch.randn_like(expected) if with_residual else None
    if with_residual:
        expected = expected + residual
    expected = {None: expected, "relu": expected.relu(), "sigmoid": expected.sigmoid()}[activation]
    close(reference.conv2d(x, w, b, **geometry, residual=residual, activation=activation), expected)


@random_problems
@given(convolutions())
def test_conv2d_gradients(problem):
    x, w, _, geometry = problem.values()
    x.requires_grad_(), w.requires_grad_()
    y = F.conv2d(x, w, **geometry)
    dy = torch.randn_like(y)
    dx, dw = torch.autograd.grad(y, (x, w), dy)
    close(reference.conv2d_input_grad(x.shape, w, dy, **geometry), dx)
    close(reference.conv2d_weight_grad(x, w.shape, dy, **geometry), dw)


def test_convolve2d_flips_the_kernel():
    x, w = random(2, 3, 7, 9), random(4, 3, 2, 3)
    close(reference.convolve2d(x, w, padding=(1, 2)), F.conv2d(x, w.flip(2, 3), padding=(1, 2)))


def test_conv1x1_takes_a_matrix():
    x, w, b = random(2, 3, 7, 9), random(4, 3), random(4)
    expected = F.conv2d(x, w[:, :, None, None], b, stride=2).relu()
    close(reference.conv1x1(x, w, b, 2, activation="relu"), expected)
    close(reference.conv1x1(x, w[:, :, None, None], b, 2, activation="relu"), expected)


def test_lower_precision_is_computed_in_float64():
    x, w = random(1, 64, 5, 6).bfloat16(), random(8, 64, 3, 3).bfloat16()
    close(reference.conv2d(x, w), F.conv2d(x.double(), w.double()))


@st.composite
def poolings(draw, dilations=False) -> tuple[torch.Tensor, dict]:
    kernel, h, w = draw(pairs), draw(sides), draw(sides)
    dilation = draw(pairs) if dilations else (1, 1)
    padding = draw(st.integers(0, kernel[0] // 2)), draw(st.integers(0, kernel[1] // 2))
    for size, k, pad, d in zip((h, w), kernel, padding, dilation, strict=True):
        assume(size + 2 * pad > d * (k - 1))
        assume(
            any(0 <= i * d - pad < size for i in range(k))
        )  # a window of padding only has no index
    torch.manual_seed(draw(st.integers(0, 99)))
    leading = draw(st.sampled_from([(3,), (1, 2), (2, 3)]))
    geometry = {
        "kernel_size": kernel,
        "stride": draw(st.none() | pairs),
        "padding": padding,
        "ceil_mode": draw(st.booleans()),
    }
    if dilations:
        geometry["dilation"] = dilation
    return random(*leading, h, w), geometry


@random_problems
@given(poolings(dilations=True), st.sampled_from([(), (float("nan"), float("inf"), -float("inf"))]))
def test_max_pool2d(problem, specials):
    x, geometry = problem
    x = (2 * x).round()  # ties
    for value in specials:
        x[torch.rand_like(x) < 0.2] = value
    expected, places = F.max_pool2d(x, **geometry, return_indices=True)
    actual, index = reference.max_pool2d(x, **geometry, return_indices=True)
    close(actual, expected)
    torch.testing.assert_close(index, places)
    close(reference.max_pool2d(x, **geometry), expected)


def test_max_pool2d_of_minus_infinity_points_inside():
    x = torch.full((1, 1, 3, 4), -torch.inf, dtype=torch.float64)
    y, index = reference.max_pool2d(x, 2, 2, padding=1, return_indices=True)
    assert (y == -torch.inf).all()
    assert index.flatten().tolist() == [0, 1, 3, 4, 5, 7]


@random_problems
@given(poolings(), st.booleans(), st.sampled_from([None, None, 3, -2]))
def test_avg_pool2d(problem, count_include_pad, divisor):
    x, geometry = problem
    counting = {"count_include_pad": count_include_pad, "divisor_override": divisor}
    close(reference.avg_pool2d(x, **geometry, **counting), F.avg_pool2d(x, **geometry, **counting))


@random_problems
@given(sides, sides, st.none() | st.integers(1, 12), st.none() | st.integers(1, 12))
def test_adaptive_avg_pool2d(h, w, p, q):
    x = random(2, 3, h, w)
    close(reference.adaptive_avg_pool2d(x, (p, q)), F.adaptive_avg_pool2d(x, (p, q)))
    close(reference.adaptive_avg_pool2d(x[0], q), F.adaptive_avg_pool2d(x[0], (q, q)))


def test_global_avg_pool2d():
    x = random(2, 3, 4, 7)
    close(reference.global_avg_pool2d(x), x.mean((2, 3), keepdim=True))


@pytest.mark.parametrize("activation", [None, "relu", "sigmoid"])
def test_residual_add(activation):
    x, shortcut = random(2, 3, 4, 7), random(2, 3, 4, 7)
    total = x + shortcut
    expected = {None: total, "relu": total.relu(), "sigmoid": total.sigmoid()}[activation]
    close(reference.residual_add(x, shortcut, activation), expected)
    assert reference.residual_add(x.bfloat16(), shortcut.half()).dtype == torch.float64
