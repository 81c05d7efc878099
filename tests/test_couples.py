"""bfloat16 two channels at a time (csrc/cpu/couples.inl): as right as one at a time."""

import pytest
import torch
from conv_cases import LAYOUTS
from guarded import guarded

import fastconv
from fastconv import _C
from fastconv.testing.compare import assert_good

# (C, K, H, W, R, S, stride, padding, dilation, groups): odd channels, few, of one group of several;
# tiles of 1 to 6 pixels and 1 to 4 vectors; sums of several chunks; taps outside.
PROBLEMS = [
    (9, 33, 5, 7, 3, 3, 1, 1, 1, 1),
    (10, 70, 6, 5, 3, 2, (1, 2), (1, 0), 1, 1),
    (3, 40, 13, 17, 7, 5, 2, 3, 1, 1),
    (5, 17, 9, 6, 3, 3, 1, (2, 3), (2, 3), 1),
    (39, 50, 4, 9, 2, 3, 1, 1, 1, 2),
    (301, 64, 3, 11, 3, 3, 1, 1, 1, 1),
    (66, 100, 7, 13, 1, 1, (2, 1), 0, 1, 1),
    (1400, 48, 5, 13, 1, 1, 1, 0, 1, 1),
    (2100, 37, 1, 5, 1, 1, 1, 0, 1, 1),
    (4, 20, 20, 30, 11, 11, 4, 2, 1, 1),
    (24, 33, 1, 7, 1, 1, 1, 0, 1, 1),  # 14 pixels: weights are read where they lie
]


# Weight gradients of a 1x1, of couples of pixels: (N, C, K, H, W, stride, groups), odd and even
# pixels, in one block and several, rows of dy that no tile fills.
GRADIENTS = [
    (1, 33, 7, 5, 7, 1, 1),
    (2, 70, 13, 6, 10, 1, 1),
    (3, 40, 1, 1, 1, 1, 1),
    (1, 130, 6, 15, 31, 1, 1),
    (2, 100, 4, 9, 13, 2, 1),
    (1, 34, 20, 7, 6, 1, 2),
    (1, 64, 9, 1, 3, 1, 1),
]


@pytest.fixture
def without_dots():
    _C.set_bf16_dots(False)
    yield
    _C.set_bf16_dots(True)


def operands(problem, layout):
    c, k, h, w, r, s, *window = problem
    groups = window[3]
    x = LAYOUTS[layout](torch.randn(2, c * groups, h, w).bfloat16())
    return x, torch.randn(k * groups, c, r, s).bfloat16(), torch.randn(k * groups).bfloat16()


def conv(conv2d, x, w, b, problem, **more):
    return conv2d(x, w, b, *problem[6:], **more)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_forward_and_input_gradient_are_right(problem, layout, isa):
    x, w, b = operands(problem, layout)
    results = []
    for ours, dtype in ((True, x.dtype), (False, x.dtype), (False, torch.double)):
        a = x.detach().to(dtype).requires_grad_()
        y = conv(fastconv.conv2d if ours else torch.conv2d, a, w.to(dtype), b.to(dtype), problem)
        dy = torch.ones_like(y).cumsum(-1) % 3 - 1
        results.append((y, *torch.autograd.grad(y, a, dy)))
    for ours, theirs, truth in zip(*results, strict=True):
        assert_good(ours, theirs, truth, torch.bfloat16)


@pytest.mark.parametrize("layouts", [("nchw", "nchw"), ("channels_last",) * 2, ("sliced", "nchw")])
@pytest.mark.parametrize("problem", GRADIENTS, ids=str)
def test_weight_gradient_of_a_1x1_is_right(problem, layouts, isa):
    n, c, k, h, w, stride, groups = problem
    x = LAYOUTS[layouts[0]](torch.randn(n, c * groups, h, w).bfloat16())
    size = (k * groups, c, 1, 1)
    dy = torch.randn(n, k * groups, -(-h // stride), -(-w // stride)).bfloat16()
    dy = LAYOUTS[layouts[1]](dy)
    weight = torch.zeros(size, dtype=x.dtype, requires_grad=True)
    y = fastconv.conv2d(x, weight, None, stride, groups=groups)
    (ours,) = torch.autograd.grad(y, weight, dy)
    theirs = torch.nn.grad.conv2d_weight(x, size, dy, stride, groups=groups)
    truth = torch.nn.grad.conv2d_weight(x.double(), size, dy.double(), stride, groups=groups)
    assert_good(ours, theirs, truth, torch.bfloat16)


@pytest.mark.parametrize("count", range(1, 7))
@pytest.mark.parametrize("channels", [16, 32, 48, 64])
def test_every_register_tile(channels, count, isa):
    """1 to 6 operands, pixels or rows of the gradient, and 1 to 4 vectors of 16 channels."""
    x, w = torch.randn(1, 20, 2, count + 1).bfloat16(), torch.randn(channels, 20, 2, 2).bfloat16()
    truth = torch.conv2d(x.double(), w.double())
    assert_good(fastconv.conv2d(x, w), torch.conv2d(x, w), truth, torch.bfloat16)
    x, dy = torch.randn(1, channels, 3, 5).bfloat16(), torch.randn(1, count, 3, 5).bfloat16()
    ours = torch.ops.fastconv.conv2d_weight_grad(x, dy, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 0)
    size = (count, channels, 1, 1)
    theirs = torch.nn.grad.conv2d_weight(x, size, dy)
    truth = torch.nn.grad.conv2d_weight(x.double(), size, dy.double())
    assert_good(ours, theirs, truth, torch.bfloat16)


def test_an_infinite_pixel_reaches_its_own_channels_of_the_weight_gradient(isa):
    x, dy = torch.randn(1, 40, 3, 5).bfloat16(), torch.randn(1, 9, 3, 5).bfloat16()
    x[0, 7, 2, 4], dy[0, 3, 0, 1] = float("inf"), float("nan")
    ours = torch.ops.fastconv.conv2d_weight_grad(x, dy, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 0)
    bad = torch.zeros(9, 40, dtype=torch.bool)
    bad[:, 7] = bad[3] = True
    assert torch.equal(ours.view(9, 40).isfinite(), ~bad)


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_weights_packed_before_and_those_of_channels_last_give_the_same_bits(problem, isa):
    x, w, b = operands(problem, "channels_last")
    y = conv(fastconv.conv2d, x, w, b, problem)
    last = w.contiguous(memory_format=torch.channels_last)
    assert torch.equal(conv(fastconv.conv2d, x, last, b, problem), y)
    layer = fastconv.nn.Conv2d(x.shape[1], len(w), w.shape[2:], *problem[6:], dtype=w.dtype).eval()
    with torch.no_grad():
        layer.weight.copy_(w), layer.bias.copy_(b)
        for _ in range(2):
            kept = layer(x)
            # Of few pixels the call without them reads weights where they lie, in another order.
            assert_good(kept, y, y.double(), torch.bfloat16)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_an_infinity_reaches_only_its_own_channel(value, layout, isa):
    """The neighbour that an odd last channel lacks is zero in both operands."""
    problem = (11, 20, 6, 9, 3, 3, 1, 1, 1, 2)
    x, w, _ = operands(problem, layout)
    for broken in (x, w):
        good = conv(fastconv.conv2d, x, w, None, problem)
        before = broken[:, 0].clone()
        if broken is x:
            x[:, 11] = value  # the first of the second group, the last's neighbour in memory
            y = conv(fastconv.conv2d, x, w, None, problem)
            assert torch.equal(y[:, :20], good[:, :20]) and not y[:, 20:].isfinite().any()
            x[:, 11] = before
        else:
            w[1, 0] = value
            y = conv(fastconv.conv2d, x, w, None, problem)
            others = [k for k in range(40) if k != 1]
            assert torch.equal(y[:, others], good[:, others]) and not y[:, 1].isfinite().any()
            w[1, 0] = before[1]


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_nothing_past_the_operands_is_touched(problem, layout, isa):
    x, w, b = operands(problem, layout)
    expected = conv(fastconv.conv2d, x, w, b, problem)
    assert torch.equal(conv(fastconv.conv2d, *map(guarded, (x, w, b)), problem), expected)


def test_an_address_that_no_couple_has():
    """x and w from an odd element on: their couples are copied, not read where they lie."""
    x, w = torch.randn(2 * 5 * 6 * 16 + 1).bfloat16(), torch.randn(24 * 16 + 1).bfloat16()
    odd = x[1:].view(2, 5, 6, 16).permute(0, 3, 1, 2), w[1:].view(24, 16, 1, 1)
    even = [t.clone() for t in odd]
    assert torch.equal(fastconv.conv2d(*odd), fastconv.conv2d(*even))
    few = x[1:97].view(1, 6, 16).mT.unsqueeze(2)
    truth = torch.conv2d(few.double(), odd[1].double())
    ours, theirs = (f(few, odd[1]) for f in (fastconv.conv2d, torch.conv2d))
    assert_good(ours, theirs, truth, torch.bfloat16)


def test_without_dot_products(without_dots):
    assert not _C.bf16_dots()
    for problem in PROBLEMS:
        x, w, b = operands(problem, "nchw")
        ours, theirs = (conv(f, x, w, b, problem) for f in (fastconv.conv2d, torch.conv2d))
        truth = conv(torch.conv2d, x.double(), w.double(), b.double(), problem)
        assert_good(ours, theirs, truth, torch.bfloat16)


def test_weights_packed_for_the_other_are_not_read():
    if not _C.bf16_dots():
        assert "dots" not in fastconv.cpu_info()["instruction set in use"]
        return
    assert "dots" in fastconv.cpu_info()["instruction set in use"]
    x, w = torch.randn(1, 20, 6, 7).bfloat16(), torch.randn(24, 20, 1, 1).bfloat16()
    window = (1, 1, 0, 0, 0, 0, 1, 1, 1)
    y = fastconv.conv2d(x, w)
    packed = torch.ops.fastconv.conv2d_pack(x, w, *window)
    try:
        _C.set_bf16_dots(False)
        wide = torch.ops.fastconv.conv2d_pack(x, w, *window)
        assert wide.numel() > packed.numel()
        for weights in (packed, wide):
            again = torch.ops.fastconv.conv2d_packed(x, w, weights, None, None, 6, 7, 0)
            assert_good(again, y, torch.conv2d(x.double(), w.double()), torch.bfloat16)
    finally:
        _C.set_bf16_dots(True)
    for weights in (packed, wide):
        again = torch.ops.fastconv.conv2d_packed(x, w, weights, None, None, 6, 7, 0)
        assert torch.equal(again, y)


def test_the_planner_knows_of_dot_products(without_dots):
    """Direct of stride 2, of few outputs, and of few channels of a 5x5; else Winograd as before."""
    problems = {
        ((1, 64, 28, 28), (64, 64, 3, 3), 2, 1): True,
        ((1, 64, 5, 6), (64, 64, 3, 3), 1, 1): True,
        ((1, 64, 7, 7), (64, 64, 3, 3), 1, 1): False,
        ((1, 16, 28, 28), (16, 16, 5, 5), 1, 2): True,
        ((1, 64, 14, 14), (64, 64, 3, 3), 1, 1): False,
        ((1, 32, 28, 28), (32, 32, 5, 5), 1, 2): False,
        ((1, 3, 64, 64), (47, 3, 7, 7), 2, 3): True,
        ((1, 3, 64, 64), (48, 3, 7, 7), 2, 3): False,
    }
    for dots in (False, True):
        _C.set_bf16_dots(dots)
        for (x, w, stride, padding), better in problems.items():
            for dtype in (torch.bfloat16, torch.float16):
                plan = fastconv.explain(x, w, stride=stride, padding=padding, dtype=dtype)
                direct = better and _C.bf16_dots() and dtype == torch.bfloat16
                assert plan.algorithm == ("direct" if direct else "winograd"), str(plan)
