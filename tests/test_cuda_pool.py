"""Pooling's CUDA kernels under the emulator, against torch and the float64 references.

Each runs in every order of its fibers, on poisoned and guarded buffers (``simt.every_order``).
"""

import pytest
import test_pool
import torch
import torch.nn.functional as F
from emulator import simt
from emulator.ops import emulated_cuda
from emulator.simt import DTYPES, dtype_id, tensor
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradgradcheck

import fastconv
from fastconv.testing import reference
from fastconv.testing.compare import assert_good

LAYOUTS = pytest.mark.parametrize("layout", ["nchw", "nhwc", "nhwc sliced"])
POOLED = (2, 16, 9, 14)  # whole 16-byte chunks of channels
ODD = (2, 11, 9, 14)

# (kernel, stride, padding, dilation, ceil_mode): overlapping, disjoint, gapped, dilated; of the
# gradients by four places from even and odd ones on, with windows and without at either end
WINDOWS = [
    ((3, 2), (2, 1), (1, 1), 1, False),
    (2, None, 0, 1, False),
    ((2, 3), (3, 5), 0, 1, True),
    ((2, 3), 1, (1, 0), (3, 2), False),
    ((5, 7), (1, 2), (2, 3), 1, True),
    (3, 2, 1, 1, False),
    (3, 2, (0, 1), 1, True),
    (2, 2, (1, 0), 1, True),
]


def grid(cases):
    """Every dtype with the first case, two in turn with the others."""
    first = [(cases[0], dtype) for dtype in DTYPES]
    return first + [(c, DTYPES[i % 2 + j]) for i, c in enumerate(cases[1:]) for j in (0, 2)]


def grid_id(value):
    return dtype_id(value) if isinstance(value, torch.dtype) else str(value).replace(", ", ",")


def wide(x):
    """The end of a kernel's name where it takes 16 bytes of channels at a time."""
    n = 16 // x.itemsize
    apart = (x.stride(i) for i in (0, 2, 3) if x.shape[i] > 1)
    whole = x.stride(1) == 1 and x.shape[1] % n == 0 and all(s % n == 0 for s in apart)
    return "_x16" if whole else ""


INDEX_NAMES = {torch.uint8: "_u8", torch.int32: "_i32", torch.int64: "_i64"}


def flat_index(index, x, kernel, stride, padding, dilation, _):
    """Indices within the plane of indices within the window."""
    (sh, sw), (ph, pw), (dh, dw) = map(reference.pair, (stride or kernel, padding, dilation))
    p, q = torch.arange(index.shape[2])[:, None], torch.arange(index.shape[3])
    r, s = index.long() // reference.pair(kernel)[1], index.long() % reference.pair(kernel)[1]
    return (p * sh - ph + r * dh) * x.shape[3] + q * sw - pw + s * dw


@LAYOUTS
@pytest.mark.parametrize(("window", "dtype"), grid(WINDOWS), ids=grid_id)
def test_max_pool(window, layout, dtype):
    for size, kind in ((POOLED, torch.uint8), (ODD, torch.int32), (ODD, torch.int64)):
        x = tensor(size, dtype, layout).mul_(4).round_().div_(4)  # with ties
        truth, places = reference.max_pool2d(x, *window, return_indices=True)
        kernel = f"max_pool_{simt.NAMES[dtype]}"
        kernel += wide(x) * (kind == torch.uint8)
        y = simt.every_order(
            simt.max_pool, x, *window, kernel=f"max_pool_{simt.NAMES[dtype]}{wide(x)}"
        )
        assert torch.equal(y.double(), truth)
        y, index = simt.every_order(
            simt.max_pool, x, *window, index_dtype=kind, kernel=kernel + INDEX_NAMES[kind]
        )
        assert torch.equal(y.double(), truth)
        flat = index if kind == torch.int64 else flat_index(index, x, *window)
        assert torch.equal(flat, places)


@LAYOUTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=dtype_id)
def test_max_pool_nan_infinity_and_ties(layout, dtype):
    choice = torch.tensor([torch.nan, torch.inf, -torch.inf, -torch.inf, 1.0, 1.0], dtype=dtype)
    x = tensor(POOLED, dtype, layout).copy_(choice[torch.randint(6, POOLED)])
    x[0, :, :5] = -torch.inf
    for window in WINDOWS:
        y, index = simt.max_pool(x, *window, index_dtype=torch.uint8)
        expected, places = F.max_pool2d(x.double(), *window, return_indices=True)
        torch.testing.assert_close(y.double(), expected, equal_nan=True, rtol=0, atol=0)
        assert torch.equal(flat_index(index, x, *window), places)
        assert torch.equal(simt.max_pool(x, *window, index_dtype=torch.int64)[1], places)


def test_max_pool_of_padding_alone():
    """Dilation can put every place of a window outside: -inf, index 0."""
    x = tensor((1, 8, 5, 2), torch.float32)
    window = (2, 1, 1, 3)
    y, index = simt.every_order(
        simt.max_pool, x, *window, index_dtype=torch.int64, kernel="max_pool_f32_i64"
    )
    truth, places = reference.max_pool2d(x, *window, return_indices=True)
    assert y.isinf().all() and torch.equal(y.double(), truth) and torch.equal(index, places)


def averages(window):
    kernel, stride, padding, _, ceil_mode = window
    for count in (True, False):
        yield (kernel, stride, padding, ceil_mode, count, None)
    yield (kernel, stride, padding, ceil_mode, True, -3)


@LAYOUTS
@pytest.mark.parametrize(("window", "dtype"), grid([w for w in WINDOWS if w[3] == 1]), ids=grid_id)
def test_avg_pool(window, layout, dtype):
    for size, arguments in zip((POOLED, ODD, POOLED), averages(window), strict=True):
        x = tensor(size, dtype, layout)
        kernel = f"avg_pool_{simt.NAMES[dtype]}{wide(x)}"
        y = simt.every_order(simt.avg_pool, x, *arguments, kernel=kernel)
        truth = reference.avg_pool2d(x, *arguments)
        assert_good(y, F.avg_pool2d(x, *arguments), truth, dtype, name=str(arguments))


@LAYOUTS
@pytest.mark.parametrize(
    ("output", "dtype"), grid([(1, 1), (4, 5), (1, 7), (12, 20), (2, 1)]), ids=grid_id
)
def test_adaptive_avg_pool(output, layout, dtype):
    for size in (POOLED, ODD):
        x = tensor(size, dtype, layout)
        kernel = f"avg_pool_{simt.NAMES[dtype]}{wide(x)}"
        y = simt.every_order(simt.adaptive_avg_pool, x, output, kernel=kernel)
        truth = reference.adaptive_avg_pool2d(x, output)
        assert_good(y, F.adaptive_avg_pool2d(x, output), truth, dtype)


def test_pooling_nothing():
    x = tensor(POOLED, torch.float32)
    assert simt.adaptive_avg_pool(x, (0, 3)).shape == (2, 16, 0, 3)
    assert simt.max_pool(x[:0], 2).shape == (0, 16, 4, 7)


@LAYOUTS
def test_global_avg_pool_of_a_large_plane(layout):
    x = tensor((1, 4, 61, 157), torch.float32, layout) + 100
    y = simt.adaptive_avg_pool(x, (1, 1))
    expected = F.adaptive_avg_pool2d(x, 1)
    assert_good(y, expected, reference.global_avg_pool2d(x), torch.float32)


@LAYOUTS
def test_avg_pool_of_what_is_not_finite(layout):
    x = tensor(POOLED, torch.float32, layout)
    x[0, 3, 4, 5], x[1, 0, 0, 0], x[1, 7, 8, 13] = torch.nan, torch.inf, -torch.inf
    for arguments in averages(WINDOWS[0]):
        expected = F.avg_pool2d(x, *arguments)
        torch.testing.assert_close(simt.avg_pool(x, *arguments), expected, equal_nan=True)


# ---- gradients ----


def far(t, axis):
    """Of one place along the axis, which is as far from the next as no 32 bits can count."""
    strides = list(t.stride())
    strides[axis] = 1 << 40
    return t.as_strided(t.shape, strides)


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=dtype_id)
@pytest.mark.parametrize(("size", "axis"), [((1, 16, 9, 14), 0), ((3, 16, 1, 14), 2)], ids=str)
def test_indices_of_64_bits(size, axis, dtype, layout):
    """The same as in 32 bits, maxima to the bit."""
    x, name, at = tensor(size, dtype, layout), simt.NAMES[dtype], axis

    def check(run, given, *arguments, kernel, **settings):
        expected = run(*given, *arguments, **settings)
        away = [far(t, at) if t.shape[at] == 1 else t for t in given]
        found = simt.every_order(run, *away, *arguments, kernel=f"wide_{kernel}", **settings)
        exact = dict(rtol=0, atol=0) if "max" in kernel else {}  # g++ may fuse either's products
        torch.testing.assert_close(found, expected, **exact)

    for window in WINDOWS:
        k, pad, dilation = (reference.pair(window[i])[0] for i in (0, 2, 3))
        if dilation * (k - 1) >= size[2] + 2 * pad:
            continue
        for kind in (torch.uint8, torch.int32, torch.int64):
            ending = wide(x) * (kind == torch.uint8) + INDEX_NAMES[kind]
            check(simt.max_pool, [x], *window, index_dtype=kind, kernel=f"max_pool_{name}{ending}")
            y, index = simt.max_pool(x, *window, index_dtype=kind)
            dy = torch.randn_like(y)
            kernel = f"max_pool_grad_{name}{ending}"
            check(simt.max_pool_grad, [dy, index, x], *window, kernel=kernel)
            kernel = f"max_pool_gather_{name}{INDEX_NAMES[kind]}"
            check(simt.max_pool_gather, [x, index], *window, kernel=kernel)
        if window[3] == 1:
            for arguments in averages(window):
                check(simt.avg_pool, [x], *arguments, kernel=f"avg_pool_{name}{wide(x)}")
                dy = torch.randn_like(simt.avg_pool(x, *arguments))
                kernel = f"avg_pool_grad_{name}{wide(dy)}"
                check(simt.avg_pool, [dy], *arguments, grad_of=x, kernel=kernel)
    kernel = f"avg_pool_{name}{wide(x)}"
    check(simt.adaptive_avg_pool, [x], (size[2] // 2 + 1, 5), kernel=kernel)


def gradient(function, x, dy):
    """Of torch, in dy's dtype."""
    leaf = x.to(dy.dtype).contiguous().requires_grad_()
    return torch.autograd.grad(function(leaf), leaf, dy)[0]


# dy's layout beside x's and the index's: its own one, and two that force one element at a time.
GRADS = {"nchw": "nhwc sliced", "nhwc": "nhwc", "nhwc sliced": "expanded"}


def grad_tensor(size, dtype, layout):
    if layout == "expanded":
        return torch.randn(1).to(dtype).expand(size)
    return tensor(size, dtype, layout)


BY_TWO = {(2, 2): "by_two_2x2_", (3, 2): "by_two_3x3_"}  # of a square kernel and its stride


@LAYOUTS
@pytest.mark.parametrize(("window", "dtype"), grid(WINDOWS), ids=grid_id)
def test_max_pool_gradients(window, layout, dtype):
    """Of the index in every storage; the gather is the transposed map of the gradient."""
    by_two = BY_TWO.get((window[0], window[1] or window[0]), "")
    for size, kind in ((POOLED, torch.uint8), (ODD, torch.int32), (ODD, torch.int64)):
        x = tensor(size, dtype, layout).mul_(4).round_().div_(4)  # with ties
        _, index = simt.max_pool(x, *window, index_dtype=kind)
        ending = simt.NAMES[dtype] + "{}" + INDEX_NAMES[kind]
        dy = grad_tensor(index.shape, dtype, GRADS[layout])
        chunks = wide(dy) * (kind == torch.uint8 and index.stride(1) == 1)
        dx = simt.every_order(
            simt.max_pool_grad,
            *(dy, index, x, *window),
            kernel=by_two * (kind == torch.uint8) + f"max_pool_grad_{ending.format(chunks)}",
        )
        theirs, truth = (
            gradient(lambda t: F.max_pool2d(t, *window), x, dy.to(d)) for d in (dtype, torch.double)
        )
        assert_good(dx, theirs, truth, dtype, name=str(kind))
        y = simt.every_order(
            simt.max_pool_gather,
            *(x, index, *window),
            kernel=f"max_pool_gather_{ending.format('')}",
        )
        assert torch.equal(y.double(), F.max_pool2d(x.double(), *window))


@LAYOUTS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", [2, 3])
def test_max_pool_gradient_by_two(kernel, dtype, layout):
    """The kernels of what networks have, of every dtype."""
    test_max_pool_gradients((kernel, 2, kernel // 2, 1, False), layout, dtype)


@LAYOUTS
@pytest.mark.parametrize(("window", "dtype"), grid([w for w in WINDOWS if w[3] == 1]), ids=grid_id)
def test_avg_pool_gradient(window, layout, dtype):
    for size, arguments in zip((POOLED, ODD, POOLED), averages(window), strict=True):
        x = tensor(size, dtype, layout)
        dy = grad_tensor(F.avg_pool2d(x, *arguments).shape, dtype, layout)
        kernel = f"avg_pool_grad_{simt.NAMES[dtype]}{wide(dy)}"
        dx = simt.every_order(simt.avg_pool, dy, *arguments, grad_of=x, kernel=kernel)
        theirs, truth = (
            gradient(lambda t, a=arguments: F.avg_pool2d(t, *a), x, dy.to(d))
            for d in (dtype, torch.double)
        )
        assert_good(dx, theirs, truth, dtype, name=str(arguments))


@LAYOUTS
@pytest.mark.parametrize(
    ("output", "dtype"), grid([(1, 1), (4, 5), (1, 7), (12, 20), (2, 1)]), ids=grid_id
)
def test_adaptive_avg_pool_gradient(output, layout, dtype):
    for size in (POOLED, ODD):
        x, dy = tensor(size, dtype, layout), grad_tensor((*size[:2], *output), dtype, GRADS[layout])
        last = dy.stride(1) < dy.stride(3)  # and so is dx
        kernel = f"avg_pool_grad_{simt.NAMES[dtype]}{wide(dy) * last}"
        dx = simt.every_order(simt.adaptive_avg_pool, dy, output, grad_of=x, kernel=kernel)
        theirs, truth = (
            gradient(lambda t: F.adaptive_avg_pool2d(t, output), x, dy.to(d))
            for d in (dtype, torch.double)
        )
        assert_good(dx, theirs, truth, dtype)


def test_gradient_of_nothing():
    """Zeros where no window holds a place, and where there are no windows."""
    x = tensor(POOLED, torch.float32)
    assert not simt.adaptive_avg_pool(x[:, :, :0, :3], (0, 3), grad_of=x).any()
    y, index = simt.max_pool(x[:0], 2, index_dtype=torch.uint8)
    assert simt.max_pool_grad(y, index, x[:0], 2).shape == (0, *POOLED[1:])
    dy = torch.ones(2, 16, 3, 5).contiguous(memory_format=torch.channels_last)
    dx = simt.avg_pool(dy, 1, 3, grad_of=x)
    assert dx[:, :, ::3, ::3].eq(1).all() and dx.sum() == dy.sum()


@pytest.mark.parametrize("name", [n for n in test_pool.FUNCTIONS if n != "max op"])
def test_gradients_of_gradients(name):
    size = (1, 2, 5, 6)
    x = torch.randperm(60).double().view(size).to(memory_format=torch.channels_last)
    with emulated_cuda() as log:
        assert gradgradcheck(test_pool.FUNCTIONS[name], x.requires_grad_())
    assert any("gather" in kernel for kernel in log) == name.startswith("max")


axis = st.tuples(
    st.integers(1, 12), st.integers(1, 5), st.integers(1, 4), st.integers(0, 2), st.integers(1, 3)
)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(rows=axis, cols=axis, ceil=st.booleans(), nhwc=st.booleans(), include=st.booleans())
def test_every_window_as_on_the_cpu(rows, cols, ceil, nhwc, include):
    """Gradients of windows that overlap, leave gaps, or lie in the padding."""
    (h, kh, sh, ph, dh), (w, kw, sw, pw, dw) = rows, cols
    kernel, stride, pad, dilation = (kh, kw), (sh, sw), (ph, pw), (dh, dw)
    x = tensor((1, 3, h, w), torch.float64, "nhwc" if nhwc else "nchw").requires_grad_()
    for pool, last in (
        (fastconv.max_pool2d, (dilation, ceil)),
        (fastconv.avg_pool2d, (ceil, include)),
        (fastconv.adaptive_avg_pool2d, None),
    ):
        arguments = (x, (kh, kw)) if last is None else (x, kernel, stride, pad, *last)
        try:
            expected = pool(*arguments)
        except RuntimeError:
            continue
        dy = torch.randn_like(expected)
        grads = [torch.autograd.grad(expected, x, dy)[0]]
        with emulated_cuda():
            grads += torch.autograd.grad(pool(*arguments), x, dy)
        torch.testing.assert_close(*grads)


def test_indices_outside_the_plane_are_ignored():
    dy = torch.ones(1, 1, 2, 2, dtype=torch.float64)
    x = torch.arange(16.0).double().view(1, 1, 4, 4)
    for index, places in (
        (torch.tensor([[[[-1, 3], [16, 2**40]]]]), [3]),
        (torch.tensor([[[[4, 1], [2**31 - 1, -1]]]]).int(), [3]),
        (torch.tensor([[[[255, 4], [2, 3]]]]).byte(), [12, 15]),
    ):
        dx = simt.max_pool_grad(dy, index, x, 2).flatten()
        assert dx.nonzero().flatten().tolist() == places and dx.sum() == len(places)
        assert simt.max_pool_gather(x, index, 2).sum() == sum(places)
