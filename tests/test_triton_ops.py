"""The Triton backend in its interpreter: gradients, rounding, the networks.

The ops' own suites run on it too (the fixture `backend`); what they ask of gradients is asked here
of smaller grids, as the interpreter is slow.
"""

from __future__ import annotations

import pytest
import test_add
import test_conv
import test_large
import test_pool
import torch
import torch.nn.functional as F
from conftest import interpreted_triton
from conv_cases import CASES, LAYOUTS, gradients, make, values
from test_conv import compare_all

import fastconv
from fastconv.cli.emulated import PARTS
from fastconv.testing.compare import assert_good

pytest.importorskip("triton")


@pytest.fixture(autouse=True)
def triton():
    with interpreted_triton():
        yield


# Beside CASES, whose channels are mostly odd: rows of 16 bytes, a depth of whole steps and not,
# groups that are GEMMs, sums that are split, phases with and without taps, more taps than a word
# has bits, stems with and without a bottom row to spare.
MORE = {
    "even depth": (1, 32, 9, 11, 40, 3, 3, (1, 1), (1, 1), (1, 1), 1),
    "16 bytes": (2, 24, 7, 9, 16, 3, 2, (2, 1), (1, 1), (1, 1), 1),
    "grouped gemm": (1, 32, 7, 6, 48, 3, 3, (2, 1), (1, 1), (1, 2), 2),
    "split": (1, 160, 5, 4, 24, 3, 3, (1, 1), (1, 1), (1, 1), 1),
    "1x1 split": (1, 544, 3, 5, 24, 1, 1, (1, 1), (0, 0), (1, 1), 1),
    "phases": (1, 8, 13, 11, 8, 5, 2, (3, 4), (2, 1), (2, 3), 1),
    "stride shares a factor": (1, 8, 14, 13, 8, 3, 3, (4, 6), (2, 3), (2, 4), 1),
    "huge stride": (1, 8, 70, 45, 8, 2, 3, (40, 30), (1, 0), (1, 1), 1),
    "huge stride, 1x1": (2, 3, 41, 35, 5, 1, 1, (40, 30), (0, 0), (1, 1), 1),
    "many taps": (1, 6, 12, 13, 5, 9, 8, (1, 2), (4, 3), (1, 1), 1),
    "stem, one channel": (2, 1, 12, 10, 6, 5, 5, (1, 1), (2, 2), (1, 1), 1),
    "narrow groups": (1, 12, 7, 6, 12, 3, 3, (2, 1), (1, 1), (1, 1), 4),
}
EVERY = {**CASES, **MORE}
# What another case asks as well, and the interpreter is slow at.
REPEATED = ("winograd", "wide", "direct planar", "direct many", "depthwise strided", "grouped")
SHORT = [name for name in EVERY if not name.startswith(REPEATED) or name in MORE]


@pytest.mark.parametrize("case", SHORT)
def test_gradients(case):
    """The layouts take turns over the cases."""
    names = list(LAYOUTS)
    compare_all(EVERY[case], torch.float32, names[list(EVERY).index(case) % len(names)])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("case", ["16 bytes", "depthwise multiplier", "stem", "1x1", "phases"])
def test_gradients_in_other_dtypes(case, dtype):
    compare_all(EVERY[case], dtype, "channels_last")


PLANES = (2, 19, 4, 6, 33, 1, 1, (1, 1), (0, 0), (1, 1), 1)


@pytest.mark.parametrize("dtype", test_conv.DTYPES, ids=str)
def test_1x1_of_planes_copies_nothing(dtype, monkeypatch):
    from fastconv.triton import conv

    def refuse(*_, **__):
        raise AssertionError("not the kernel of planes")

    monkeypatch.setattr(conv, "_gemm", refuse)
    compare_all(PLANES, dtype, "nchw")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", test_conv.DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", EVERY)
def test_gradients_in_every_dtype_and_layout(case, layout, dtype):
    compare_all(EVERY[case], dtype, layout)


EVERY["planes"] = PLANES
FUSED = ["planes", "16 bytes", "1x1 split", "split", "stem", "depthwise strided"]


@pytest.mark.parametrize("layout, activation", [("nchw", "relu"), ("channels_last", "sigmoid")])
@pytest.mark.parametrize("case", FUSED)
def test_fused_epilogue_and_its_gradients(case, layout, activation):
    x, w, b, window = make(EVERY[case], torch.float32, layout)
    r = values(F.conv2d(x, w, b, *window).shape, torch.Generator().manual_seed(1), torch.float32)
    r = LAYOUTS[layout](r)
    act = getattr(torch, activation)

    def theirs(x, w, b, *window):
        return act(F.conv2d(x, w, b, *window) + r.to(x.dtype))

    def ours(x, w, b, *window):
        return fastconv.conv2d(x, w, b, *window, residual=r, activation=activation)

    dy = torch.randn_like(r)
    truth = gradients(theirs, x.double(), w.double(), b.double(), window, dy.double())
    for mine, reference, true in zip(
        gradients(ours, x, w, b, window, dy), gradients(theirs, x, w, b, window, dy), truth,
        strict=True,
    ):  # fmt: skip
        assert_good(mine, reference, true, torch.float32)


@pytest.mark.parametrize("case", ["16 bytes", "narrow groups"])
def test_gradients_of_gradients(case):
    x, w, b, window = make(EVERY[case], torch.float64)

    def second(function):
        leaves = [t.clone().requires_grad_() for t in (x, w, b)]
        first = torch.autograd.grad(
            function(*leaves, *window).square().sum(), leaves, create_graph=True
        )
        return torch.autograd.grad(sum(t.square().sum() for t in first), leaves)

    for mine, true in zip(second(fastconv.conv2d), second(F.conv2d), strict=True):
        torch.testing.assert_close(mine, true)


def test_an_expanded_gradient_and_an_empty_batch():
    test_conv.test_expanded_gradient_and_memory_format()
    test_conv.test_empty_batch_has_gradients()
    test_conv.test_the_grad_ops_check_their_gradient()


@pytest.mark.parametrize("dtype", test_pool.DTYPES, ids=str)
def test_pool_gradients(dtype):
    layouts = {"nhwc": "nhwc"} if dtype.itemsize == 2 else {"nchw": "nhwc", "sliced": "expanded"}
    for layout, grad_layout in layouts.items():
        test_pool.test_gradients_in_every_dtype(dtype, layout, grad_layout)


def test_pool_gradients_of_large_windows_and_of_foreign_indices():
    x = test_pool.tensor("nhwc", size=(1, 2, 20, 19)).requires_grad_()
    ours, theirs = (f(x, (17, 16), (3, 2)) for f in (fastconv.max_pool2d, F.max_pool2d))
    dy = torch.randn_like(theirs)
    ours, theirs = (torch.autograd.grad(y, x, dy)[0] for y in (ours, theirs))
    torch.testing.assert_close(ours, theirs)
    dy = torch.ones(1, 1, 2, 2, dtype=torch.float64)
    index = torch.tensor([[[[-1, 3], [16, 2**40]]]])
    args = (index, 4, 4, 2, 2, 2, 2, 0, 0, 1, 1)
    dx = torch.ops.fastconv_triton.max_pool2d_grad(dy, *args)
    assert dx.sum() == 1 and dx[0, 0, 0, 3] == 1
    x = torch.arange(16, dtype=torch.float64).view(1, 1, 4, 4)
    y = torch.ops.fastconv_triton.max_pool2d_gather(x, *args)
    assert y.flatten().tolist() == [0, 3, 0, 0]


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize(
    "window",
    [(3, 2, 1), ((3, 2), (2, 1), (1, 0), (1, 2)), ((2, 4), (1, 2), 1, (2, 1), True), (2, 2)],
)
def test_max_pool_gradients_by_patches(window, layout, monkeypatch):
    """Strides of 2: an odd size leaves patches without a lower row or a right column."""
    from fastconv.triton import max_pool, pool

    launched, launch = [], pool.launch
    monkeypatch.setattr(pool, "launch", lambda k, *a, **c: (launched.append(k), launch(k, *a, **c)))
    x = test_pool.tensor(layout, size=(2, 3, 9, 11)).requires_grad_()
    y = F.max_pool2d(x, *window)
    assert y.isfinite().all()
    dy = torch.randn_like(y)
    ours = torch.autograd.grad(fastconv.max_pool2d(x, *window), x, dy)[0]
    assert launched[-1] is max_pool.max_pool_grad_patches
    torch.testing.assert_close(ours, torch.autograd.grad(y, x, dy)[0])


@pytest.mark.parametrize("name", test_pool.FUNCTIONS)
def test_pool_gradients_of_gradients(name):
    """Linear in the incoming gradient, so that what the second gradient must be is known."""
    f = test_pool.FUNCTIONS[name]
    x = test_pool.tensor("nchw", size=(1, 2, 5, 6)).requires_grad_()
    y = f(x)
    dy = torch.randn_like(y, requires_grad=True)
    (dx,) = torch.autograd.grad(y, x, dy, create_graph=True)
    (back,) = torch.autograd.grad((dx * x.detach()).sum(), dy)
    if name != "max op":  # its rounding up needs no windows in the padding
        torch.testing.assert_close(back, y.detach())


@pytest.mark.parametrize("dtype", test_add.DTYPES, ids=str)
@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
def test_add_gradients(dtype, activation):
    test_add.test_gradient_in_every_dtype(dtype, activation)


def test_more_elements_than_32_bits_can_number():
    one = torch.ones(1, dtype=torch.float64)
    for channels in (1, 2):
        test_large.test_weight_gradient(one.expand(1, channels, test_large.SIDE, test_large.SIDE))
    test_conv.test_strides_beyond_32_bits()


def test_bfloat16_is_rounded_as_torch_rounds_it():
    """Every bfloat16 beside sums that end on ties, NaN and infinities among them."""
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
    x = every.view(1, 1, 256, 256)
    for y in (torch.zeros_like(x), x, torch.roll(x, 77, 3), torch.full_like(x, 1.0078125)):
        ours, theirs = fastconv.residual_add(x, y), x + y
        assert torch.equal(ours.isnan(), theirs.isnan())
        kept = ~theirs.isnan()
        assert torch.equal(ours[kept].view(torch.int16), theirs[kept].view(torch.int16))


def test_tf32_rounds_its_operands():
    """The interpreter multiplies in float32: rounded operands must give the same to the bit."""

    def rounded(t):
        bits = t.view(torch.int32)
        return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)

    x, w, _, _ = make(MORE["16 bytes"], torch.float32, "channels_last")
    window = (2, 1, 1, 1, 1, 1, 1, 1, 1)
    run = torch.ops.fastconv_triton.conv2d_raw
    plain, tf32 = (run(x, w, None, None, *window, 0, code) for code in (0, 1))
    assert not torch.equal(plain, tf32)
    assert torch.equal(tf32, run(rounded(x), rounded(w), None, None, *window, 0, 0))


def test_results_repeat():
    x, w, b, window = make(MORE["16 bytes"], torch.float32)
    dy = torch.randn_like(F.conv2d(x, w, b, *window))
    first, second = (gradients(fastconv.conv2d, x, w, b, window, dy) for _ in range(2))
    assert all(torch.equal(a, c) for a, c in zip(first, second, strict=True))


def test_more_groups_than_a_grid_has_room_for_are_refused():
    groups = 1 << 16
    x, w = torch.randn(1, 16 * groups, 1, 1).half(), torch.randn(16 * groups, 16, 1, 1).half()
    with pytest.raises(RuntimeError, match="conv_implicit_gemm: a grid of .* allows 65535"):
        fastconv.conv2d(x, w, groups=groups)


# --- networks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", PARTS)
def test_networks(part):
    """LeNet whole and one block of each other network: results and gradients."""
    make_part, size = PARTS[part]
    module, x = make_part(fastconv.nn).eval(), torch.randn(size)

    def run(dtype):
        net = module.to(dtype)
        leaf = x.to(dtype).requires_grad_()
        y = net(leaf)
        wanted = (leaf, *net.parameters())
        grads = torch.autograd.grad(y.square().mean(), wanted, allow_unused=True)
        return [y.detach(), *(g for g in grads if g is not None)]

    with fastconv.backend("cpu"):
        truth, theirs = run(torch.float64), run(torch.float32)
    ours = run(torch.float32)
    for mine, reference, true in zip(ours, theirs, truth, strict=True):
        # 10 times torch's error: ties of ReLU and max pooling fall differently.
        assert_good(mine, reference, true, torch.float32, factor=10)
