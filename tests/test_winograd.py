"""Winograd on the CPU: what is not finite stays where it belongs, errors by form, threads."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from conv_cases import LAYOUTS
from hypothesis import given, settings
from hypothesis import strategies as st
from test_conv import compare_all

import fastconv
from fastconv.testing.compare import assert_good, factor_of

# (taps, stride, H, W): 4x4 and 2x2 tiles, full and brief ones in both axes
MAPS = ((3, 1, 11, 14), (3, 1, 7, 8), (5, 1, 7, 10), (3, 2, 29, 37), (3, 2, 13, 16))
FLOAT = torch.float32


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("taps, stride, height, width", MAPS)
def test_a_bad_input_reaches_the_outputs_that_read_it(taps, stride, height, width, bad, isa):
    """At every place of a tile: outputs that do not read it are finite and right."""
    generator = torch.Generator().manual_seed(0)
    channels = 13 if stride == 1 else 49
    w = torch.randn(channels + 6, channels, taps, taps, generator=generator)
    clean = torch.randn(1, channels, height, width, generator=generator)
    assert fastconv.explain(clean, w, stride, 1).algorithm == "winograd"
    step = 1 if taps == 3 and stride == 1 else 2 if taps == 5 else 3
    for i, j in itertools.product(range(0, height - 2, max(step - 1, 1)), range(0, width, step)):
        x = clean.clone()
        x[0, 5, i, j] = bad
        truth = F.conv2d(x.double(), w.double(), None, stride, 1)
        theirs = F.conv2d(x, w, None, stride, 1)
        ours = fastconv.conv2d(x, w, None, stride, 1)
        assert_good(ours, theirs, truth, FLOAT, 8.0, f"{i}, {j}")


def strided_input_grad(dy, w, height, width, padding=(1, 1, 1, 1), groups=1):
    op = torch.ops.fastconv.conv2d_input_grad_raw
    return op(dy, w, height, width, 2, 2, *padding, 1, 1, groups, 0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("height, width", [(31, 31), (28, 34), (32, 33), (33, 32)])
def test_a_bad_gradient_reaches_the_inputs_that_it_touches(height, width, layout, bad, isa):
    """At every place of a tile of the strided input gradient, sizes odd and even."""
    g = torch.Generator().manual_seed(0)
    w, size = torch.randn(50, 49, 3, 3, generator=g), (1, 49, height, width)
    clean = torch.randn(1, 50, (height + 1) // 2, (width + 1) // 2, generator=g)
    answer = fastconv.explain(size, w, 2, 1, direction="input_grad")
    assert answer.algorithm == "winograd"
    P, Q = clean.shape[2:]
    places = [
        *zip(range(P), itertools.cycle(range(Q))),
        *zip(itertools.cycle((P - 1, 2)), range(Q)),
    ]
    for i, j in places:
        dy = clean.clone()
        dy[0, 7, i, j] = bad
        truth = torch.nn.grad.conv2d_input(size, w.double(), dy.double(), 2, 1)
        theirs = torch.nn.grad.conv2d_input(size, w, dy, 2, 1)
        ours = strided_input_grad(LAYOUTS[layout](dy), w, height, width)
        assert_good(ours, theirs, truth, FLOAT, 8.0, f"{i}, {j}")


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("height, width", [(31, 31), (32, 33), (33, 32)])
def test_inputs_that_no_output_reads_have_gradient_zero(height, width, layout, isa):
    """Of an odd size without padding at its end; the memory of the gradient held NaN before."""
    size, pads = (2, 49, height, width), (1, 0, 1, 0)  # left and top only
    g = torch.Generator().manual_seed(0)
    w = torch.randn(50, 49, 3, 3, generator=g)
    dy = torch.randn(2, 50, (height - 2) // 2 + 1, (width - 2) // 2 + 1, generator=g)
    x = torch.randn(size, generator=g, requires_grad=True)
    (theirs,) = torch.autograd.grad(F.conv2d(F.pad(x, pads), w, stride=2), x, dy)
    wide = x.detach().double().requires_grad_()
    (truth,) = torch.autograd.grad(
        F.conv2d(F.pad(wide, pads), w.double(), stride=2), wide, dy.double()
    )
    for _ in range(3):
        poison = torch.full(size, float("nan"))
        del poison
        ours = strided_input_grad(LAYOUTS[layout](dy), w, height, width, (1, 1, 0, 0))
        assert_good(ours, theirs, truth, FLOAT, 8.0)
        if height % 2:
            assert (ours[:, :, -1] == 0).all()
        if width % 2:
            assert (ours[..., -1] == 0).all()


SIZES = (15, 19, 20, 28, 31, 32, 33, 40)  # of which most pairs are Winograd's


@settings(deadline=None, derandomize=True, max_examples=80)
@given(
    n=st.integers(1, 4), c=st.integers(48, 70), k=st.integers(48, 70), groups=st.integers(1, 2),
    h=st.sampled_from(SIZES), w=st.sampled_from(SIZES), layout=st.sampled_from(sorted(LAYOUTS)),
    dtype=st.sampled_from([FLOAT, FLOAT, torch.bfloat16, torch.float16]),
)  # fmt: skip
def test_random_strided_problems_of_padding_1(n, c, k, groups, h, w, layout, dtype):
    case = (n, c * groups, h, w, k * groups, 3, 3, (2, 2), (1, 1), (1, 1), groups)
    compare_all(case, dtype, layout)


def test_a_strided_input_gradient_does_not_depend_on_the_threads():
    g = torch.Generator().manual_seed(0)
    w, before, runs = torch.randn(160, 96, 3, 3, generator=g), torch.get_num_threads(), []
    dy = torch.randn(2, 160, 28, 27, generator=g)
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            runs.append(strided_input_grad(dy, w, 56, 53))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*runs)
    truth = torch.nn.grad.conv2d_input((2, 96, 56, 53), w.double(), dy.double(), 2, 1)
    theirs = torch.nn.grad.conv2d_input((2, 96, 56, 53), w, dy, 2, 1)
    assert_good(runs[1], theirs, truth, FLOAT, 8.0)


def test_what_overflows_only_in_the_transforms_is_made_directly():
    x, w = torch.randn(1, 16, 9, 13) * 1e38, torch.randn(16, 16, 3, 3) * 1e-3
    truth, theirs = F.conv2d(x.double(), w.double()), F.conv2d(x, w)
    assert_good(fastconv.conv2d(x, w), theirs, truth, FLOAT)


@pytest.mark.parametrize("dtype", [FLOAT, torch.bfloat16, torch.float16], ids=str)
def test_an_infinite_weight_and_a_bad_gradient(dtype):
    g = torch.Generator().manual_seed(0)
    x, w = (torch.randn(n, generator=g).to(dtype) for n in ((2, 16, 9, 13), (18, 16, 3, 3)))
    w[4, 2, 1, 1] = float("inf")
    x.requires_grad_()
    y = fastconv.conv2d(x, w)
    expected = F.conv2d(x.double(), w.double())
    assert torch.equal(y.isfinite(), expected.isfinite())
    w[4, 2, 1, 1] = 1
    dy = torch.randn(y.shape, generator=g).to(dtype)
    dy[1, 3, 4, 5] = float("nan")
    (dx,) = torch.autograd.grad(fastconv.conv2d(x, w), x, dy)
    (truth,) = torch.autograd.grad(F.conv2d(x.double(), w.double()), x, dy.double())
    assert torch.equal(dx.isfinite(), truth.isfinite())


def test_batches_in_one_block_keep_their_bad_values_apart():
    x, w = torch.randn(6, 16, 5, 6), torch.randn(16, 16, 3, 3)
    clean = fastconv.conv2d(x, w, padding=1)
    x[3] = float("nan")
    y = fastconv.conv2d(x, w, padding=1)
    assert y[3].isnan().all()
    keep = [0, 1, 2, 4, 5]
    assert torch.equal(y[keep], clean[keep])


@settings(deadline=None, derandomize=True, max_examples=80)
@given(
    n=st.integers(1, 5), c=st.integers(12, 40), k=st.integers(12, 50), groups=st.integers(1, 2),
    h=st.integers(4, 31), w=st.integers(4, 40), taps=st.sampled_from([3, 5]),
    ph=st.integers(0, 4), pw=st.integers(0, 4), layout=st.sampled_from(sorted(LAYOUTS)),
    stride=st.integers(1, 2),
)  # fmt: skip
def test_random_problems(n, c, k, groups, h, w, taps, ph, pw, layout, stride):
    h, w = max(h, taps), max(w, taps)
    if stride == 2:
        c, k = c + 36, k + 36
    window = ((stride, stride), (ph, pw), (1, 1), groups)
    case = (n, c * groups, h, w, k * groups, taps, taps, *window)
    compare_all(case, FLOAT, layout)


@pytest.mark.parametrize("activation", [None, "relu", "sigmoid"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_fused_epilogue(layout, activation):
    g = torch.Generator().manual_seed(0)
    sizes = ((2, 14, 10, 13), (35, 14, 3, 3), (35,), (2, 35, 10, 13))
    x, w, b, r = (torch.randn(size, generator=g) for size in sizes)
    act = {None: lambda t: t, "relu": torch.relu, "sigmoid": torch.sigmoid}[activation]
    truth = act(F.conv2d(x.double(), w.double(), b.double(), padding=1) + r.double())
    theirs = act(F.conv2d(x, w, b, padding=1) + r)
    x, r = LAYOUTS[layout](x), LAYOUTS[layout](r)
    ours = fastconv.conv2d(x, w, b, padding=1, residual=r, activation=activation)
    assert_good(ours, theirs, truth, FLOAT, factor_of("forward", x, w, 1, 1))
    assert factor_of("forward", x, w, 1, 1) == 8


@pytest.mark.parametrize("taps, channels", [(3, 64), (3, 512), (5, 96)])
def test_torchs_own_tolerance_holds(taps, channels):
    """The defaults of assert_close, at outputs of about 1."""
    x = torch.randn(1, channels, 14, 15)
    w = torch.randn(32, channels, taps, taps) / (channels * taps * taps) ** 0.5
    truth = F.conv2d(x.double(), w.double(), padding=taps // 2).float()
    torch.testing.assert_close(fastconv.conv2d(x, w, padding=taps // 2), truth)


def test_a_weight_gradient_of_several_segments():
    """More transformed operands than are kept at once; bitwise the same for any threads."""
    g = torch.Generator().manual_seed(0)
    x, dy = (torch.randn(2, 40, 190, 150, generator=g) for _ in range(2))
    truth = torch.nn.grad.conv2d_weight(x.double(), (40, 40, 3, 3), dy.double(), padding=1)
    theirs = torch.nn.grad.conv2d_weight(x, (40, 40, 3, 3), dy, padding=1)
    op = torch.ops.fastconv.conv2d_weight_grad_raw
    before, runs = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            runs.append(op(x, dy, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*runs)
    assert_good(runs[0], theirs, truth, FLOAT, factor_of("weight_grad", x, (40, 40, 3, 3), 1, 1))


@pytest.mark.parametrize("activation", [None, "relu"])
def test_a_result_past_the_caches(activation, isa):
    """More than 16 MiB, in channels_last of whole vectors."""
    g = torch.Generator().manual_seed(5)
    x = torch.randn(1, 16, 261, 263, generator=g).to(memory_format=torch.channels_last)
    w = torch.randn(64, 16, 3, 3, generator=g)
    ours = fastconv.conv2d(x, w, padding=1, activation=activation)
    assert ours.numel() > 4 << 20
    results = [F.conv2d(a, b, padding=1) for a, b in ((x, w), (x.double(), w.double()))]
    theirs, truth = (y.relu() if activation else y for y in results)
    assert_good(ours, theirs, truth, FLOAT, factor_of("forward", x, w, 1, 1))
