"""First layers, strided and of few channels, which Winograd takes with their stride folded."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from conv_cases import LAYOUTS, make
from guarded import guarded
from hypothesis import given, settings
from hypothesis import strategies as st
from test_conv import compare_all
from test_weight_grad import check_weight_and_bias

import fastconv
from fastconv.testing.compare import assert_good

FLOAT = torch.float32
# 3 and 4 taps of every stride: (R, S, stride)
KERNELS = [(11, 11, 4), (9, 12, 4), (13, 16, 4), (7, 7, 2), (5, 6, 2), (8, 7, 2), (7, 9, 3)]


def algorithms(x, w, stride, padding, dtype=FLOAT):
    sizes, options = (tuple(x), tuple(w)), {"stride": stride, "padding": padding, "dtype": dtype}
    directions = ("forward", "input_grad", "weight_grad")
    return [fastconv.explain(*sizes, **options, direction=d).algorithm for d in directions]


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [FLOAT, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_kernels(kernel, dtype, layout):
    R, S, stride = kernel
    C, size = 1 + R % 4, (12 * stride + R, 15 * stride + S + 1)
    case = (2, C, *size, 53, R, S, (stride,) * 2, (R // 2, S // 3), (1, 1), 1)
    found = algorithms((2, C, *size), (53, C, R, S), stride, (R // 2, S // 3), dtype)
    assert found == ["winograd", "direct", "winograd"]
    compare_all(case, dtype, layout)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_kept_weights(layout):
    """And those that were kept for an input of the other layout."""
    g = torch.Generator().manual_seed(0)
    layer = torch.nn.Conv2d(3, 40, 7, 2, 3)
    x = LAYOUTS[layout](torch.randn(2, 3, 61, 75, generator=g))
    mine = fastconv.convert(copy.deepcopy(layer)).eval()
    with torch.no_grad():
        theirs, truth = layer(x), layer.double()(x.double())
        mine(LAYOUTS["nchw" if layout == "channels_last" else "channels_last"](x))
        for _ in range(3):
            assert_good(mine(x), theirs, truth, FLOAT, 8.0)
    assert fastconv.nn.cache_size(mine) > 0


def test_packed_weights_of_a_kernel_that_folds_to_the_same_are_refused():
    x, w = torch.randn(1, 3, 90, 90), torch.randn(32, 3, 11, 11)
    packed = torch.ops.fastconv.conv2d_pack(x, w, 4, 4, 0, 0, 0, 0, 1, 1, 1)
    wider = torch.randn(32, 3, 12, 12)
    with pytest.raises(RuntimeError, match="another problem"):
        torch.ops.fastconv.conv2d_packed(x, wider, packed, None, None, 20, 20, 0)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_where_it_belongs(bad, layout):
    """A tap that 11x11 lacks and its folded kernel has must not meet an infinity."""
    x, w, b, window = make((1, 3, 67, 71, 40, 11, 11, (4, 4), (2, 2), (1, 1), 1), FLOAT, layout)
    for i in range(0, 67, 7):
        for j in range(i % 3, 71, 9):
            y = x.clone(memory_format=torch.preserve_format)
            y[0, 1, i, j] = bad
            truth = F.conv2d(y.double(), w.double(), b.double(), *window)
            theirs = F.conv2d(y, w, b, *window)
            assert_good(fastconv.conv2d(y, w, b, *window), theirs, truth, FLOAT, 8.0, f"{i}, {j}")
    dy = torch.randn(truth.shape, generator=torch.Generator().manual_seed(1))
    check_weight_and_bias(y, w, b, window, dy, dy, 8.0)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", [FLOAT, torch.float16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_parts_of_a_batch(layout, dtype):
    """More images than are folded at once."""
    x, w, b, window = make((16, 3, 300, 304, 24, 7, 7, (2, 2), (3, 3), (1, 1), 1), dtype, layout)
    truth = F.conv2d(x.double(), w.double(), b.double(), *window)
    theirs = F.conv2d(x, w, b, *window)
    residual = torch.randn(truth.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    ours = fastconv.conv2d(x, w, b, *window, residual=residual)
    assert_good(ours, theirs + residual, truth + residual, dtype, 8.0)
    dy = LAYOUTS[layout](residual)
    check_weight_and_bias(x, w, b, window, dy, dy, 8.0)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("before", [False, True])
def test_nothing_is_read_past_an_operand(before, layout, isa):
    x, w, b, window = make((2, 3, 61, 75, 40, 7, 7, (2, 2), (3, 3), (1, 1), 1), FLOAT, layout)
    dy = LAYOUTS[layout](torch.randn(2, 40, 31, 38, generator=torch.Generator().manual_seed(1)))
    numbers = (2, 2, 3, 3, 3, 3, 1, 1, 1)
    ops = torch.ops.fastconv

    def results(x, w, b, dy):
        y = fastconv.conv2d(x, w, b, *window)
        return y, *ops.conv2d_weight_bias_grad_raw(x, dy, 7, 7, *numbers, 0, None, 0)

    between = results(*(guarded(t, before) for t in (x, w, b, dy)))
    assert all(map(torch.equal, between, results(x, w, b, dy)))


def test_results_do_not_depend_on_threads():
    x, w, b, window = make((3, 3, 95, 99, 48, 7, 7, (2, 2), (3, 3), (1, 1), 1), FLOAT)
    before, runs = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            leaf = w.clone().requires_grad_()
            y = fastconv.conv2d(x, leaf, b, *window)
            runs.append((y.detach(), *torch.autograd.grad(y.square().sum(), leaf)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    n=st.integers(1, 3), c=st.integers(1, 4), k=st.integers(20, 70), stride=st.integers(2, 4),
    taps=st.integers(3, 4), r=st.integers(0, 3), s=st.integers(0, 3), h=st.integers(0, 30),
    w=st.integers(0, 40), pad_h=st.integers(0, 4), pad_w=st.integers(0, 4),
    layout=st.sampled_from(sorted(LAYOUTS)),
    dtype=st.sampled_from([FLOAT, FLOAT, torch.float16, torch.bfloat16]),
)  # fmt: skip
def test_random_problems(n, c, k, stride, taps, r, s, h, w, pad_h, pad_w, layout, dtype):
    R, S = (stride * taps - min(i, stride - 1) for i in (r, s))
    size = (12 * stride + R + h, 12 * stride + S + w)
    pads = (min(pad_h, R - 1), min(pad_w, S - 1))
    compare_all((n, c, *size, k, R, S, (stride, stride), pads, (1, 1), 1), dtype, layout)
