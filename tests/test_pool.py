"""Pooling against torch and the float64 references: values, indices, gradients, errors."""

import pytest
import torch
import torch.nn.functional as F
from crossed import crossed
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

import fastconv
from fastconv.ops import pool
from fastconv.testing import reference
from fastconv.testing.compare import assert_good, poison

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
LAYOUTS = ["nchw", "nhwc", "sliced", "nhwc sliced"]
SIZE = (2, 11, 9, 14)  # 11 channels: neither a vector nor a multiple of one

# name, (kernel, stride, padding, dilation, ceil_mode): overlapping, disjoint, gapped, dilated
WINDOWS = [
    ((3, 2), (2, 1), (1, 1), 1, False),
    (2, None, 0, 1, False),
    ((2, 3), (3, 5), 0, 1, True),
    ((2, 3), 1, (1, 0), (3, 2), False),
    (3, (1, 2), 1, 1, True),
    ((9, 14), None, 0, 1, False),
]


def tensor(layout: str, dtype=torch.float64, size=SIZE, seed=0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    n, c, h, w = size
    big = (n, c + 2, h + 1, 2 * w) if "sliced" in layout else size
    x = torch.randn(big, generator=g).to(dtype)
    if "nhwc" in layout:
        x = x.contiguous(memory_format=torch.channels_last)
    return x[:, 1:-1, 1:, ::2] if "sliced" in layout else x


def averages(window):
    kernel, stride, padding, _, ceil_mode = window
    for count in (True, False):
        yield (kernel, stride, padding, ceil_mode, count, None)
    yield (kernel, stride, padding, ceil_mode, True, -3)


def same_layout(a, b):
    assert a.stride() == b.stride()


@pytest.mark.usefixtures("backend")
@crossed("window, dtype, layout", WINDOWS, DTYPES, LAYOUTS)
def test_max_pool(window, dtype, layout):
    x = tensor(layout, dtype).round(decimals=1)  # rounded: with ties
    expected, index = F.max_pool2d(x, *window, return_indices=True)
    truth, true_index = reference.max_pool2d(x, *window, return_indices=True)
    poison(torch.empty_like(expected))
    y = fastconv.max_pool2d(x, *window)
    assert torch.equal(y.double(), truth) and torch.equal(y, expected)
    same_layout(y, expected)
    y, places = fastconv.max_pool2d(x, *window, return_indices=True)
    assert torch.equal(y, expected)
    assert torch.equal(places, index) and torch.equal(places, true_index)
    same_layout(places, index)


@pytest.mark.usefixtures("backend")
@crossed("window, dtype, layout", [w for w in WINDOWS if w[3] == 1], DTYPES, LAYOUTS)
def test_avg_pool(window, dtype, layout):
    x = tensor(layout, dtype)
    for args in averages(window):
        expected = F.avg_pool2d(x, *args)
        poison(torch.empty_like(expected))
        y = fastconv.avg_pool2d(x, *args)
        assert_good(y, expected, reference.avg_pool2d(x, *args), dtype, name=str(args))
        same_layout(y, expected)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1, (1,), (4, 5), (None, 3), (9, 14), (12, 20), (1, 7)], ids=str)
def test_adaptive_avg_pool(size, dtype, layout):
    x = tensor(layout, dtype)
    expected = F.adaptive_avg_pool2d(x, size * 2 if size == (1,) else size)
    y = fastconv.adaptive_avg_pool2d(x, size)
    assert_good(y, expected, reference.adaptive_avg_pool2d(x, size), dtype)


def test_an_index_too_large_is_refused():
    x = torch.zeros(1, 1, 1, 1).expand(1, 1, 2**16, 2**15 + 1)
    with pytest.raises(RuntimeError, match="2\\^31 - 1 places"):
        fastconv.max_pool2d(x, (2**16, 1), return_indices=True)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_global_avg_of_a_large_plane(layout):
    x = tensor(layout, torch.float32, (1, 3, 301, 257)) + 100
    expected, truth = F.adaptive_avg_pool2d(x, 1), reference.global_avg_pool2d(x)
    assert_good(fastconv.global_avg_pool2d(x), expected, truth, torch.float32)


@pytest.mark.usefixtures("backend")
@crossed("dtype, layout, grad_layout", DTYPES, LAYOUTS, ["nchw", "nhwc", "expanded"])
def test_gradients_in_every_dtype(dtype, layout, grad_layout):
    """The window indices of training and the caller's flat ones give the same gradient."""
    window = ((3, 2), (2, 1), (1, 1), 1, True)

    def grads(function, kind):
        x = tensor(layout, dtype).to(kind).requires_grad_()
        y = function(x)
        y = y[0] if isinstance(y, tuple) else y
        dy = tensor(grad_layout, dtype, y.shape, seed=1)
        dy = dy[:, :, :1, :1].expand(y.shape) if grad_layout == "expanded" else dy
        y.backward(dy.to(kind))
        return x.grad

    def averages_of(module):
        yield lambda x: module.max_pool2d(x, *window)
        yield lambda x: module.max_pool2d(x, *window, return_indices=True)
        yield lambda x: module.avg_pool2d(x, 3, 2, 1, True, False)
        yield lambda x: module.avg_pool2d(x, (2, 4), (3, 1), (1, 2), False, True, 5)
        yield lambda x: module.adaptive_avg_pool2d(x, (4, 5))
        yield lambda x: module.adaptive_avg_pool2d(x, 1)

    for ours, theirs in zip(averages_of(fastconv), averages_of(F), strict=True):
        truth = grads(theirs, torch.float64)
        assert_good(grads(ours, dtype), grads(theirs, dtype), truth, dtype)


FUNCTIONS = {
    "max": lambda x: fastconv.max_pool2d(x, (3, 2), (2, 1), 1),
    "max dilated": lambda x: fastconv.max_pool2d(x, 2, 1, 1, (1, 2)),
    "max indices": lambda x: fastconv.max_pool2d(x, 3, 2, 1, return_indices=True)[0],
    "max op": lambda x: torch.ops.fastconv.max_pool2d(x, 3, 2, 2, 1, 1, 1, 1, 1, 0),
    "avg": lambda x: fastconv.avg_pool2d(x, (3, 2), (2, 1), 1, True),
    "avg override": lambda x: fastconv.avg_pool2d(x, 3, 2, 1, False, False, -2),
    "adaptive": lambda x: fastconv.adaptive_avg_pool2d(x, (2, 4)),
    "global": fastconv.global_avg_pool2d,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradcheck(name, layout):
    size = (2, 3, 5, 6)
    distinct = torch.randperm(180, generator=torch.Generator().manual_seed(0)).double()
    x = tensor(layout, size=size).copy_(distinct.view(size)).requires_grad_()
    assert gradcheck(FUNCTIONS[name], x)
    assert gradgradcheck(FUNCTIONS[name], x)


def test_training_saves_one_byte_per_output():
    saved = []

    def pack(t):
        saved.append(t)
        return t

    x = tensor("nchw", torch.float32, (1, 2, 40, 41)).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        fastconv.max_pool2d(x, 3, 2)
        fastconv.max_pool2d(x, (16, 16))
        fastconv.max_pool2d(x, (17, 16), 1)
    assert [t.dtype for t in saved] == [torch.uint8, torch.uint8, torch.int32]


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("kernel", [(16, 16), (17, 16)])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_gradient_of_large_windows(kernel, layout):
    x = tensor(layout, size=(2, 5, 30, 33))
    grads = []
    for f in (fastconv.max_pool2d, F.max_pool2d):
        leaf = x.clone().requires_grad_()
        y = f(leaf, kernel, (3, 2))
        y.backward(tensor(layout, size=y.shape, seed=1))
        grads.append(leaf.grad)
    torch.testing.assert_close(*grads)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_nan_infinity_and_ties(layout):
    choice = torch.tensor([torch.nan, torch.inf, -torch.inf, -torch.inf, 1.0, 1.0])
    picks = torch.randint(6, SIZE, generator=torch.Generator().manual_seed(3))
    x = tensor(layout).copy_(choice[picks])
    x[0, :, :5] = -torch.inf
    for window in WINDOWS:
        y, index = fastconv.max_pool2d(x, *window, return_indices=True)
        expected, places = F.max_pool2d(x, *window, return_indices=True)
        torch.testing.assert_close(y, expected, equal_nan=True, rtol=0, atol=0)
        assert torch.equal(index, places)
    average = fastconv.avg_pool2d(x, 3, 2, 1)
    torch.testing.assert_close(average, F.avg_pool2d(x, 3, 2, 1), equal_nan=True)


axis = st.tuples(
    st.integers(1, 12), st.integers(1, 5), st.integers(1, 4), st.integers(0, 2), st.integers(1, 3)
)


@settings(derandomize=True, deadline=None, max_examples=250)
@given(rows=axis, cols=axis, ceil=st.booleans(), nhwc=st.booleans(), include=st.booleans())
def test_every_window_as_torch(rows, cols, ceil, nhwc, include):
    """Sizes, values and indices; where torch refuses, so do we, and the fake kernels agree."""
    (h, kh, sh, ph, dh), (w, kw, sw, pw, dw) = rows, cols
    kernel, stride, pad, dilation = (kh, kw), (sh, sw), (ph, pw), (dh, dw)
    x = tensor("nhwc" if nhwc else "nchw", size=(1, 3, h, w))
    fake = x.to("meta")
    for ours, theirs in (
        (fastconv.max_pool2d, F.max_pool2d), (fastconv.avg_pool2d, F.avg_pool2d)
    ):  # fmt: skip
        args = (kernel, stride, pad)
        args += (ceil, include) if ours is fastconv.avg_pool2d else (dilation, ceil)
        try:
            expected = theirs(x, *args)
        except RuntimeError:
            for each in (x, fake, x[:0]):
                with pytest.raises(RuntimeError):
                    ours(each, *args)
            continue
        torch.testing.assert_close(ours(x, *args), expected)
        assert ours(fake, *args).shape == expected.shape
        leaf, other = x.clone().requires_grad_(), x.clone().requires_grad_()
        ours(leaf, *args).sum().backward()
        if ours is fastconv.max_pool2d and not expected.isfinite().all():
            continue  # a window wholly in the padding: torch's index points outside the plane
        theirs(other, *args).sum().backward()
        torch.testing.assert_close(leaf.grad, other.grad)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(sizes=st.tuples(*[st.integers(1, 11)] * 4), nhwc=st.booleans())
def test_adaptive_as_torch(sizes, nhwc):
    h, w, p, q = sizes
    x = tensor("nhwc" if nhwc else "nchw", size=(1, 2, h, w)).requires_grad_()
    y, expected = fastconv.adaptive_avg_pool2d(x, (p, q)), F.adaptive_avg_pool2d(x, (p, q))
    torch.testing.assert_close(y, expected)
    dy = torch.arange(1.0, 2 * p * q + 1, dtype=torch.float64).view(expected.shape)
    ours, theirs = (torch.autograd.grad(t, x, dy)[0] for t in (y, expected))
    torch.testing.assert_close(ours, theirs)


MAX, AVG = (3, 2, 2, 1, 1, 1, 1, 1), (3, 2, 2, 1, 1, 1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(layout):
    x = tensor(layout).requires_grad_()
    y, window = (t.detach() for t in pool._max_pool2d_window(x, *MAX, 1))
    flat = fastconv.max_pool2d(x.detach(), (3, 2), (2, 1), 1, 1, True, True)[1]
    dy = y.clone().requires_grad_()
    size = x.shape[2:]
    for name, args in (
        ("max_pool2d", (x, *MAX, 1)),
        ("max_pool2d_window", (x, *MAX, 1)),
        ("max_pool2d_with_indices", (x, *MAX, 0)),
        ("max_pool2d_grad", (dy, window, *size, *MAX)),
        ("max_pool2d_grad", (dy, flat, *size, *MAX)),
        ("max_pool2d_gather", (x, window, *size, *MAX)),
        ("avg_pool2d", (x, *AVG, 1, 1, 0)),
        ("avg_pool2d_grad", (dy, *size, *AVG, 1, 1, 0)),
        ("adaptive_avg_pool2d", (x, 4, 5)),
        ("adaptive_avg_pool2d_grad", (dy, 9, 14)),
    ):
        torch.library.opcheck(getattr(torch.ops.fastconv, name).default, args)
        plain = tuple(a.detach() if isinstance(a, torch.Tensor) else a for a in args)
        torch.library.opcheck(getattr(torch.ops.fastconv, name + "_raw").default, plain)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_batches_of_none_and_three_dimensions(name):
    f, x = FUNCTIONS[name], tensor("nchw")
    full = f(x)
    assert f(x[:0].requires_grad_()).shape == (0, *full.shape[1:])
    if name != "max op":
        assert torch.equal(f(x[0]), full[0])
    empty = x[:0].clone().requires_grad_()
    f(empty).sum().backward()
    assert empty.grad.shape == empty.shape


@pytest.mark.parametrize("name", FUNCTIONS)
def test_compile(name):
    torch._dynamo.reset()
    x = tensor("nhwc").requires_grad_()
    compiled = torch.compile(FUNCTIONS[name], fullgraph=True, backend="aot_eager", dynamic=True)
    for leaf in (x, tensor("nchw", size=(3, 4, 7, 10)).requires_grad_()):
        y, expected = compiled(leaf), FUNCTIONS[name](leaf)
        assert torch.equal(y, expected)
        ours, theirs = (torch.autograd.grad(t.square().sum(), leaf)[0] for t in (y, expected))
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", [n for n in FUNCTIONS if n != "max op"])
def test_vmap(name):
    f = FUNCTIONS[name]
    xs = tensor("nchw", size=(3 * 2, 4, 6, 7)).unflatten(0, (3, 2)).movedim(0, 1)
    each = torch.stack([f(xs[:, i]) for i in range(3)])
    assert torch.equal(torch.vmap(f, 1)(xs), each)
    grads = torch.vmap(torch.func.grad(lambda x: f(x).square().sum()), 1)(xs)
    for i in range(3):
        leaf = xs[:, i].clone().requires_grad_()
        torch.testing.assert_close(grads[i], torch.autograd.grad(f(leaf).square().sum(), leaf)[0])


def test_indices_outside_the_plane_are_ignored():
    dy = torch.ones(1, 1, 2, 2, dtype=torch.float64)
    index = torch.tensor([[[[-1, 3], [16, 2**40]]]])
    args = (index, 4, 4, 2, 2, 2, 2, 0, 0, 1, 1)
    dx = torch.ops.fastconv.max_pool2d_grad(dy, *args)
    assert dx.sum() == 1 and dx[0, 0, 0, 3] == 1
    x = torch.arange(16, dtype=torch.float64).view(1, 1, 4, 4)
    assert torch.ops.fastconv.max_pool2d_gather(x, *args).flatten().tolist() == [0, 3, 0, 0]


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_threads_do_not_change_a_bit(layout):
    x = tensor(layout, torch.float32, (3, 16, 61, 50)).requires_grad_()
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            y = fastconv.max_pool2d(x, 3, 2, 1) + fastconv.avg_pool2d(x, 3, 2, 1)
            results.append((y, *torch.autograd.grad(y.square().sum(), x)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.usefixtures("backend")
def test_arguments_as_torch_reads_them():
    x = tensor("nchw")
    expected = F.max_pool2d(x, 2)
    for stride in (None, (), [], 2, (2,), [2, 2]):
        assert torch.equal(fastconv.max_pool2d(x, (2,), stride), expected)
    assert torch.equal(fastconv.avg_pool2d(x, [3, 2], stride=()), F.avg_pool2d(x, [3, 2]))
    assert fastconv.adaptive_avg_pool2d(x, (0, 3)).shape == (2, 11, 0, 3)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(
    ("error", "words", "call"),
    [
        (RuntimeError, r"stride.*\(0, 1\)", lambda x: fastconv.max_pool2d(x, 2, (0, 1))),
        (RuntimeError, r"stride.*\(-1, -1\)", lambda x: fastconv.avg_pool2d(x, 2, -1)),
        (RuntimeError, r"kernel_size.*\(0, 2\)", lambda x: fastconv.max_pool2d(x, (0, 2), 1)),
        (RuntimeError, r"dilation.*\(0, 0\)", lambda x: fastconv.max_pool2d(x, 2, 1, 0, 0)),
        (RuntimeError, r"padding.*\(-1, -1\)", lambda x: fastconv.max_pool2d(x, 2, 1, -1)),
        (RuntimeError, r"half.*\(2, 2\).*\(3, 3\)", lambda x: fastconv.avg_pool2d(x, 3, 1, 2)),
        (RuntimeError, r"\[2, 11, 9, 14\].*too small", lambda x: fastconv.max_pool2d(x, 10)),
        (RuntimeError, "divisor must be not zero",
         lambda x: fastconv.avg_pool2d(x, 2, divisor_override=0)),
        (RuntimeError, r"\(-1, 2\)", lambda x: fastconv.adaptive_avg_pool2d(x, (-1, 2))),
        (RuntimeError, "empty dimension", lambda x: fastconv.max_pool2d(x[:, :0], 2)),
        (RuntimeError, "empty dimension", lambda x: fastconv.global_avg_pool2d(x[..., :0])),
        (RuntimeError, r"4-D.*\[2, 11\]", lambda x: fastconv.max_pool2d(x[..., 0, 0], 2)),
        (RuntimeError, "float32", lambda x: fastconv.max_pool2d(x.int(), 2)),
        (RuntimeError, "float32", lambda x: fastconv.avg_pool2d(x.to(torch.complex64), 2)),
        (ValueError, "kernel_size", lambda x: fastconv.max_pool2d(x, (2, 2, 2))),
        (TypeError, "kernel_size", lambda x: fastconv.avg_pool2d(x, 2.5)),
        (ValueError, "output_size", lambda x: fastconv.adaptive_avg_pool2d(x, (1, 2, 3))),
        (RuntimeError, r"\[2, 11, 9, 14\].*\(4 x 7\)",
         lambda x: torch.ops.fastconv.avg_pool2d_grad(x, 9, 14, 2, 2, 2, 2, 0, 0, 0, 1, 0)),
        (RuntimeError, "index of size", lambda x: torch.ops.fastconv.max_pool2d_grad(
            x, x[:1].long(), 18, 28, 2, 2, 2, 2, 0, 0, 1, 1)),
        (RuntimeError, "index to be", lambda x: torch.ops.fastconv.max_pool2d_grad(
            x, x, 18, 28, 2, 2, 2, 2, 0, 0, 1, 1)),
        (RuntimeError, "index and grad are on different",
         lambda x: torch.ops.fastconv.max_pool2d_grad(
            x.to("meta"), x.byte(), 18, 28, 2, 2, 2, 2, 0, 0, 1, 1)),
    ],
)  # fmt: skip
def test_errors(error, words, call):
    """Also for an empty batch and for tensors without data where the op is a public one."""
    x = tensor("nchw")
    with pytest.raises(error, match=words):
        call(x)
    if "ops" not in call.__code__.co_names:
        for other in (x[:0], x.to("meta")):
            with pytest.raises(error):
                call(other)
