"""Convolution and its gradients against float64, over dtypes, layouts, ISAs and settings."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conv_cases import CASES, DTYPES, LAYOUTS, gradients, make, values
from crossed import crossed
from guarded import guarded
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import fastconv
from fastconv import _C
from fastconv.explain import DIRECTIONS
from fastconv.ops import conv as conv_ops
from fastconv.testing.compare import FACTOR, assert_good, factor_of


def compare_all(case, dtype, layout):
    x, w, b, window = make(case, dtype, layout)
    truth = F.conv2d(x.double(), w.double(), b.double(), *window)
    g = torch.Generator().manual_seed(1)
    dy = values(truth.shape, g, dtype)
    exact = gradients(F.conv2d, x.double(), w.double(), b.double(), window, dy.double())
    theirs = gradients(F.conv2d, x, w, b, window, dy)
    ours = gradients(fastconv.conv2d, x, w, b, window, LAYOUTS[layout](dy))
    factors = [factor_of(d, x, w, *window) for d in DIRECTIONS] + [FACTOR]
    for mine, reference, true, factor in zip(ours, theirs, exact, factors, strict=True):
        assert mine.dtype == dtype
        if dtype == torch.float64:
            assert torch.equal(mine, true)
        else:
            assert_good(mine, reference, true, dtype, factor)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
def test_float32_in_every_layout(case, layout):
    compare_all(CASES[case], torch.float32, layout)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ("nchw", "channels_last"))
@pytest.mark.parametrize("case", CASES)
def test_every_isa_and_dtype(case, layout, dtype, isa):
    compare_all(CASES[case], dtype, layout)


def compare_exactly(case, dtype, layout):
    """Small whole numbers: no rounding in either type."""
    x, w, b, window = (t.to(dtype) if torch.is_tensor(t) else t for t in make(case, torch.float64))
    dy = torch.ones_like(F.conv2d(x, w, b, *window))
    ours = gradients(fastconv.conv2d, LAYOUTS[layout](x), w, b, window, LAYOUTS[layout](dy))
    for mine, true in zip(ours, gradients(F.conv2d, x, w, b, window, dy), strict=True):
        assert torch.equal(mine, true)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("operands", range(1, 7))
def test_every_register_tile(operands, dtype, isa):
    """As many pixels, and as many (c, r, s) of the weight gradient, as a tile has operands; one
    to four vectors of 16, 32 or 64 bytes. Two taps: few pixels of one have tiles of their own."""
    for channels in (2, 4, 8, 16, 24, 40, 64):
        case = (1, operands, 1, operands + 1, channels, 1, 2, (1, 1), (0, 0), (1, 1), 1)
        compare_exactly(case, dtype, "channels_last")
        case = (1, 1, 1, 2 * operands - 1, channels, 1, operands, (1, 1), (0, 0), (1, 1), 1)
        compare_exactly(case, dtype, "channels_last")


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("layout", ("nchw", "channels_last"))
@pytest.mark.parametrize("operands", range(1, 7))
def test_every_row_tile_of_a_1x1s_weight_gradient(operands, layout, dtype, isa):
    """As many output channels as a tile has operands; one to four vectors of input channels, the
    last one full or not, of 16, 32 or 64 bytes; packed or read where they lie."""
    for channels in (2, 4, 8, 16, 24, 32, 48, 61, 64, 70):
        case = (1, channels, 3, 5, operands, 1, 1, (1, 1), (0, 0), (1, 1), 1)
        compare_exactly(case, dtype, layout)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("vectors", range(1, 5))
@pytest.mark.parametrize("operands", range(1, 7))
def test_every_row_tile(operands, vectors, dtype, isa):
    """As many output channels as a tile has operands; pixels of vectors of 16, 32 or 64 bytes. Two
    taps, as few pixels of one have tiles of their own."""
    for size in (16, 32, 64):
        pixels = vectors * size // dtype.itemsize
        case = (1, 3, 1, pixels + 1, operands, 1, 2, (1, 1), (0, 0), (1, 1), 1)
        compare_exactly(case, dtype, "nchw")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
def test_weights_of_every_layout(case, layout, isa):
    x, w, b, window = make(CASES[case], torch.float64)
    shape = F.conv2d(x, w, b, *window).shape
    dy = values(shape, torch.Generator().manual_seed(1), torch.float64)
    truth = gradients(F.conv2d, x, w, b, window, dy)
    ours = gradients(fastconv.conv2d, x, LAYOUTS[layout](w), b, window, dy)
    for mine, true in zip(ours, truth, strict=True):
        assert torch.equal(mine, true)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ("nchw", "channels_last"))
@pytest.mark.parametrize("case", CASES)
def test_nothing_is_read_past_an_operand(case, layout, dtype):
    x, w, b, window = make(CASES[case], dtype, layout)
    truth = F.conv2d(x.double(), w.double(), b.double(), *window)
    w, dy = LAYOUTS[layout](w), LAYOUTS[layout](truth.to(dtype))
    plain = gradients(fastconv.conv2d, x, w, b, window, dy)
    window_numbers = (*window[0], *(window[1] * 2), *window[2], window[3])
    x, w, b, dy = (guarded(t) for t in (x, w, b, dy))
    y = fastconv.conv2d(x, w, b, *window, residual=dy)
    assert torch.equal(y, fastconv.conv2d(x, w, b, *window, residual=dy.clone()))
    ops = torch.ops.fastconv
    dx = ops.conv2d_input_grad_raw(dy, w, *x.shape[2:], *window_numbers, 0)
    dw, db = ops.conv2d_weight_bias_grad_raw(x, dy, *w.shape[2:], *window_numbers, 0, None, 0)
    assert all(map(torch.equal, (dx, dw, db), plain[1:]))
    assert torch.equal(ops.conv2d_bias_grad_raw(dy), ops.conv2d_bias_grad_raw(dy.clone()))


def test_an_input_whose_address_is_no_multiple_of_its_elements():
    buffer = torch.empty(20 * 63 * 8 + 4, dtype=torch.uint8)
    x = torch.frombuffer(buffer.numpy(), dtype=torch.float64, offset=4).view(1, 20, 7, 9)
    x.copy_((8 * torch.randn(x.shape)).round())
    w = (8 * torch.randn(8, 20, 1, 1, dtype=torch.float64)).round()
    assert torch.equal(fastconv.conv2d(x, w), F.conv2d(x.clone(), w))


SIZES = st.integers(1, 3)


@settings(deadline=None, derandomize=True, max_examples=150)
@given(
    n=SIZES, groups=st.integers(1, 3), cg=st.integers(1, 10), kg=st.integers(1, 20),
    h=st.integers(1, 14), w=st.integers(1, 19), r=st.integers(1, 4), s=st.integers(1, 4),
    sh=SIZES, sw=SIZES, ph=st.integers(0, 3), pw=st.integers(0, 3), dh=SIZES, dw=SIZES,
    layout=st.sampled_from(sorted(LAYOUTS)),
)  # fmt: skip
def test_random_problems(n, groups, cg, kg, h, w, r, s, sh, sw, ph, pw, dh, dw, layout):
    h, w = max(h, dh * (r - 1) + 1 - 2 * ph), max(w, dw * (s - 1) + 1 - 2 * pw)
    case = (n, groups * cg, h, w, groups * kg, r, s, (sh, sw), (ph, pw), (dh, dw), groups)
    compare_all(case, torch.float64, layout)
    x, weight = torch.empty(case[:4], device="meta"), torch.empty(groups * kg, cg, r, s)
    sizes = _C.conv_output_size(
        list(x.shape), list(weight.shape), [sh, sw, ph, pw, ph, pw, dh, dw, groups]
    )
    fake = fastconv.conv2d(x, weight.to("meta"), None, (sh, sw), (ph, pw), (dh, dw), groups)
    assert tuple(fake.shape[2:]) == tuple(sizes)


@pytest.mark.usefixtures("backend")
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("kernel", [(3, 3), (2, 5), (4, 1)])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_padding_words(padding, kernel):
    x, w = torch.randn(2, 4, 9, 12, dtype=torch.float64), torch.randn(6, 4, *kernel).double()
    expected = F.conv2d(x, w, padding=padding, dilation=(1, 2))
    actual = fastconv.conv2d(x, w, padding=padding, dilation=(1, 2))
    torch.testing.assert_close(actual, expected)


ACTIVATIONS = {None: lambda t: t, "relu": torch.relu, "sigmoid": torch.sigmoid}
EPILOGUES = ["direct 3x3", "1x1", "depthwise", "depthwise multiplier"]


@pytest.mark.usefixtures("backend")
@crossed("case, layout, activation", EPILOGUES, LAYOUTS, ACTIVATIONS)
def test_fused_epilogue_and_its_gradients(case, layout, activation):
    x, w, b, window = make(CASES[case], torch.float64)
    residual = torch.randn_like(F.conv2d(x, w, b, *window))
    inputs = [t.requires_grad_() for t in (x, w, b, LAYOUTS[layout](residual))]
    expected = ACTIVATIONS[activation](F.conv2d(x, w, b, *window) + inputs[3])
    actual = fastconv.conv2d(x, w, b, *window, residual=inputs[3], activation=activation)
    torch.testing.assert_close(actual, expected)
    dy = torch.randn_like(expected)
    for mine, theirs in zip(
        torch.autograd.grad(actual, inputs, dy),
        torch.autograd.grad(expected, inputs, dy),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


class Ran(TorchDispatchMode):
    """The names of fastconv's gradients that ran, without "_raw"."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.partition("::")[2].removesuffix("_raw")
        if "grad" in name and func.namespace.startswith("fastconv"):
            self.names.append(name.removeprefix("conv2d_").removesuffix("_grad"))
        return func(*args, **(kwargs or {}))


# (activation, operands that need a gradient) -> the ops of the backward.
BACKWARD = [
    (None, "x w b r", ["weight_bias", "input"]),
    (None, "w b", ["weight_bias"]),
    (None, "x b", ["bias", "input"]),
    (None, "x w", ["weight", "input"]),
    ("relu", "x w b r", ["activation_bias", "weight", "input"]),
    ("sigmoid", "x w b", ["activation_bias", "weight", "input"]),
    ("relu", "w b", ["weight_bias"]),
    ("relu", "w", ["weight_bias"]),
    ("sigmoid", "w b r", ["activation_bias", "weight"]),
    ("relu", "x w", ["activation", "weight", "input"]),
    ("relu", "x", ["activation", "input"]),
    ("relu", "b r", ["activation_bias"]),
    ("sigmoid", "r", ["activation"]),
]


@pytest.mark.parametrize("layout", ("nchw", "channels_last"))
@pytest.mark.parametrize("activation, wanted, expected", BACKWARD, ids=str)
def test_the_passes_of_a_backward(activation, wanted, expected, layout, backend):
    """dy is masked and summed in one pass; what one op alone would read is not made for it."""
    stem = (1, 3, 15, 13, 20, 7, 5, (2, 3), (3, 2), (1, 1), 1)
    x, w, b, window = make(stem, torch.float32, layout)
    operands = dict(x=x, w=w, b=b, r=torch.randn_like(F.conv2d(x, w, b, *window)))
    needing = [operands[name].requires_grad_() for name in wanted.split()]
    y = fastconv.conv2d(x, w, b, *window, residual=operands["r"], activation=activation)
    dy = LAYOUTS[layout](torch.randn_like(y))
    with Ran() as ran:
        ours = torch.autograd.grad(y, needing, dy)
    assert ran.names == expected
    theirs = ACTIVATIONS[activation](F.conv2d(x, w, b, *window) + operands["r"])
    for mine, true in zip(ours, torch.autograd.grad(theirs, needing, dy), strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ["cpu", "cuda"], indirect=True)
@pytest.mark.parametrize("activation", [None, "relu", "sigmoid"])
@pytest.mark.parametrize("wanted", ["w b", "x w b"])
def test_second_gradients_of_the_passes(wanted, activation, backend):
    x, w, b, window = make((1, 2, 4, 5, 3, 2, 3, (1, 2), (1, 0), (1, 1), 1), torch.float64)
    operands = dict(x=x / 8, w=w / 8, b=b / 8)
    names = wanted.split()

    def function(*needing):
        given = operands | dict(zip(names, needing, strict=True))
        return fastconv.conv2d(*given.values(), *window, activation=activation)

    needing = [operands[name].detach().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(function, needing)
    assert torch.autograd.gradgradcheck(function, needing)


@pytest.mark.usefixtures("backend")
def test_expanded_gradient_and_memory_format():
    x = torch.randn(2, 6, 7, 9).contiguous(memory_format=torch.channels_last).requires_grad_()
    y = fastconv.conv2d(x, torch.randn(10, 6, 3, 3))
    assert y.is_contiguous(memory_format=torch.channels_last)
    (dx,) = torch.autograd.grad(y.sum(), x)
    x2 = x.detach().requires_grad_()
    assert dx.shape == x2.shape and dx.isfinite().all()


@pytest.mark.usefixtures("backend")
def test_conv1x1_convolve2d_and_unbatched_input():
    x, w = torch.randn(5, 7, 9, dtype=torch.float64), torch.randn(8, 5, dtype=torch.float64)
    expected = F.conv2d(x, w[:, :, None, None], stride=2)
    torch.testing.assert_close(fastconv.conv1x1(x, w, stride=2), expected)
    torch.testing.assert_close(fastconv.conv1x1(x, w[:, :, None, None], stride=2), expected)
    k = torch.randn(3, 5, 2, 3, dtype=torch.float64)
    torch.testing.assert_close(fastconv.convolve2d(x, k), F.conv2d(x, k.flip(2, 3)))


@pytest.mark.usefixtures("backend")
def test_empty_batch_has_gradients():
    x, w = torch.empty(0, 3, 5, 7, requires_grad=True), torch.randn(4, 3, 3, 3, requires_grad=True)
    y = fastconv.conv2d(x, w)
    assert y.shape == (0, 4, 3, 5)
    y.sum().backward()
    assert x.grad.shape == x.shape and (w.grad == 0).all()


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("layout", ("nchw", "channels_last"))
@pytest.mark.parametrize("case", ["direct 3x3", "1x1", "depthwise", "depthwise strided"])
def test_a_bad_value_reaches_the_outputs_that_read_it(case, layout, bad):
    x, w, b, window = make(CASES[case], torch.float64, layout)
    clean = fastconv.conv2d(x, w, b, *window)
    x[0, 1, 3, 4] = bad
    expected = F.conv2d(x, w, b, *window)
    actual = fastconv.conv2d(x, w, b, *window)
    assert torch.equal(actual.isfinite(), expected.isfinite())
    assert torch.equal(actual[actual.isfinite()], clean[actual.isfinite()])


@pytest.mark.usefixtures("backend")
def test_relu_keeps_nan():
    x = torch.full((1, 1, 2, 3), float("nan"))
    assert fastconv.conv2d(x, torch.ones(1, 1, 1, 1), activation="relu").isnan().all()


def test_strides_beyond_32_bits():
    # Views over one value: 2^31 elements and more to index, nothing to store.
    x = torch.ones(1).expand(1, 1, 66000, 66000)
    y = fastconv.conv2d(x, torch.ones(1, 1, 1, 3), stride=(30000, 30000))
    assert y.shape == (1, 1, 3, 3) and (y == 3).all()


def check_threads(case, layout="nchw"):
    """Output and gradients repeat to the bit, whatever the number of threads."""
    x, w, b, window = make(case, torch.float32, layout)
    dy = torch.randn_like(F.conv2d(x, w, b, *window))
    before = torch.get_num_threads()
    try:
        runs = []
        for threads in (1, 2, 5, 2):
            torch.set_num_threads(threads)
            runs.append(gradients(fastconv.conv2d, x, w, b, window, dy))
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        assert all(torch.equal(a, c) for a, c in zip(run, runs[0], strict=True))


@pytest.mark.parametrize("case", ["direct many channels", "winograd 4x4", "winograd 4x4 chunks"])
def test_results_repeat_and_do_not_depend_on_threads(case):
    check_threads(CASES[case])


@pytest.mark.parametrize("case", ["direct 3x3", "grouped", "1x1 strided", "depthwise strided"])
def test_gradcheck_twice(case):
    n, c, h, w, k, r, s, stride, padding, dilation, groups = CASES[case]
    small = (1, min(c, 2 * groups), 5, 6, min(k, 2 * groups), r, s, stride, padding, (1, 1), groups)
    if groups == c:
        small = (1, 3, 5, 6, 3, *small[5:10], 3)
    x, wt, b, window = make(small, torch.float64)
    inputs = [t.requires_grad_() for t in (x, wt, b)]

    def function(x, w, b):
        return fastconv.conv2d(x, w, b, *window, activation="sigmoid")

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_several_threads_at_once():
    from concurrent.futures import ThreadPoolExecutor

    problems = [make(case, torch.float32, seed=i) for i, case in enumerate(CASES.values())]
    alone = [fastconv.conv2d(x, w, b, *window) for x, w, b, window in problems]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda p: fastconv.conv2d(*p[:3], *p[3]), problems * 5))
    for i, y in enumerate(together):
        assert torch.equal(y, alone[i % len(alone)])


X, W = torch.randn(1, 4, 5, 6), torch.randn(6, 4, 3, 3)
WRONG = {
    "channels": (lambda: fastconv.conv2d(X, torch.randn(6, 3, 3, 3)), "3 input channels per group"),
    "groups": (lambda: fastconv.conv2d(X, torch.randn(5, 2, 3, 3), groups=2), "not divisible"),
    "kernel": (lambda: fastconv.conv2d(X, torch.randn(6, 4, 7, 3)), "larger than the padded input"),
    "stride": (lambda: fastconv.conv2d(X, W, stride=0), "stride must be positive, got"),
    "dilation": (lambda: fastconv.conv2d(X, W, dilation=(1, 0)), "dilation must be positive"),
    "padding": (lambda: fastconv.conv2d(X, W, padding=-1), "padding must not be negative"),
    "groups=0": (lambda: fastconv.conv2d(X, W, groups=0), "groups must be positive"),
    "mixed": (lambda: fastconv.conv2d(X, W.double()), "same dtype"),
    "integer": (lambda: fastconv.conv2d(X.int(), W.int()), "expected a float32"),
    "complex": (lambda: fastconv.conv2d(X.cfloat(), W.cfloat()), "expected a float32"),
    "bias": (lambda: fastconv.conv2d(X, W, torch.randn(5)), r"bias must have size \[6\]"),
    "residual": (
        lambda: fastconv.conv2d(X, W, residual=torch.randn(1, 6, 3, 5)),
        r"residual of size \[1, 6, 3, 5\] must have size \[1, 6, 3, 4\]",
    ),
    "dimensions": (lambda: fastconv.conv2d(X[0, 0], W), "3-D"),
    "same, strided": (lambda: fastconv.conv2d(X, W, stride=2, padding="same"), "not supported"),
    "word": (lambda: fastconv.conv2d(X, W, padding="full"), "same"),
    "activation": (lambda: fastconv.conv2d(X, W, activation="gelu"), "gelu"),
    "three strides": (lambda: fastconv.conv2d(X, W, stride=(1, 1, 1)), "stride"),
    "float stride": (lambda: fastconv.conv2d(X, W, stride=1.5), "stride"),
    "devices": (lambda: fastconv.conv2d(X, W.to("meta")), "device|meta|data"),
    "empty batch": (lambda: fastconv.conv2d(X[:0], torch.randn(6, 3, 3, 3)), "per group"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_use(name):
    call, message = WRONG[name]
    with pytest.raises((RuntimeError, ValueError, TypeError), match=message):
        call()


def test_the_grad_ops_check_their_gradient():
    with pytest.raises(RuntimeError, match="must have size"):
        conv_ops._conv2d_input_grad(
            torch.randn(1, 6, 9, 9), W, 5, 6, *[1] * 2, *[0] * 4, 1, 1, 1, 0
        )
