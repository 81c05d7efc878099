"""Fully connected layers: a 1x1 of few pixels, `fastconv.linear` and `fastconv.nn.Linear`."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from conv_cases import DTYPES, gradients, make, values
from test_conv import compare_exactly, guarded

import fastconv
import fastconv.nn as fnn
from fastconv.testing import torch_layers
from fastconv.testing.compare import assert_good


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ("nchw", "channels_last", "sliced"))
@pytest.mark.parametrize("pixels", (1, 2, 3, 4, 5, 6, 7, 11, 12))
def test_every_tile_of_few_pixels(pixels, layout, dtype, isa):
    """One tile or two that overlap, forward along the input channels and the input gradient along
    the output channels; channels that fill no vector, several, and one past."""
    for channels, outputs in ((3, 1), (17, 33), (64, 70), (33, 5)):
        case = (pixels, channels, 1, 1, outputs, 1, 1, (1, 1), (0, 0), (1, 1), 1)
        compare_exactly(case, dtype, layout)


@pytest.mark.parametrize("axis", ("rows", "columns", "images"))
def test_pixels_of_any_stride_are_one_row(axis):
    """Axes of size 1, whose strides mean nothing, beside one of any stride: few pixels, and more
    than few; both operands, forward and gradients."""
    for n in (5, 40):
        size = {"rows": (1, 20, n, 1), "columns": (1, 20, 1, n), "images": (n, 20, 1, 1)}[axis]
        case = (*size, 30, 1, 1, (1, 1), (0, 0), (1, 1), 1)
        x, w, b, window = make(case, torch.float64)
        dy = values((size[0], 30, *size[2:]), torch.Generator().manual_seed(1), torch.float64)
        truth = gradients(F.conv2d, x, w, b, window, dy)
        ops, numbers = torch.ops.fastconv, (1, 1, 0, 0, 0, 0, 1, 1, 1)
        for step in (1, 3):
            odd = [strange(t, step) for t in (x, dy)]
            y = fastconv.conv2d(odd[0], w, b, residual=odd[1])
            dx = ops.conv2d_input_grad_raw(odd[1], w, *size[2:], *numbers, 0)
            dw = ops.conv2d_weight_grad_raw(*odd, 1, 1, *numbers, 0)
            for mine, true in zip((y - dy, dx, dw), truth, strict=False):
                assert torch.equal(mine, true)


def strange(t, step):
    """The tensor as a view whose pixels are `step` channels' worth apart, and whose axes of size 1
    have strides that fit nothing."""
    n, c, h, w = t.shape
    pixels = n * h * w
    memory = torch.full((pixels * step * c,), float("nan"), dtype=t.dtype)
    stride = [step * c if size > 1 else 7 for size in t.shape]
    stride[1] = 1
    return memory.as_strided(t.shape, stride).copy_(t)


def operands(leading, features=(37, 21), dtype=torch.float64, **options):
    """Input, weight, bias and residual."""
    c, k = features
    g = torch.Generator().manual_seed(0)
    sizes = ((*leading, c), (k, c), (k,), (*leading, k))
    return [values(size, g, dtype).requires_grad_(**options) for size in sizes]


LEADING = [(), (3,), (2, 3), (2, 1, 4), (0,), (2, 0)]


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("activation", [None, "relu", "sigmoid"])
@pytest.mark.parametrize("leading", LEADING, ids=str)
def test_linear_equals_torchs_and_its_gradients(leading, activation):
    inputs = operands(leading)
    functions = {None: lambda t: t, "relu": torch.relu, "sigmoid": torch.sigmoid}
    y = fastconv.linear(*inputs[:3], residual=inputs[3], activation=activation)
    expected = functions[activation](F.linear(*inputs[:3]) + inputs[3])
    assert y.is_contiguous()
    torch.testing.assert_close(y, expected)
    dy = torch.randn_like(y)
    for mine, theirs in zip(
        torch.autograd.grad(y, inputs, dy), torch.autograd.grad(expected, inputs, dy), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", (1, 2, 5, 8, 13, 24, 25, 70))
@pytest.mark.parametrize("features", ((2300, 70), (330, 1090)), ids=str)
def test_errors_of_long_sums(features, rows, dtype, isa):
    """Input features of several partial sums, and output features of the gradient's."""
    x, w, b, _ = operands((rows,), features, dtype)
    dy = values((rows, features[1]), torch.Generator().manual_seed(1), dtype)
    results = []
    for function, kind in ((fastconv.linear, dtype), (F.linear, dtype), (F.linear, torch.float64)):
        leaves = [t.detach().to(kind).requires_grad_() for t in (x, w, b)]
        y = function(*leaves)
        results.append((y, *torch.autograd.grad(y, leaves, dy.to(kind))))
    for mine, theirs, true in zip(*results, strict=True):
        if dtype == torch.float64:
            assert torch.equal(mine, true)
        else:
            assert_good(mine, theirs, true, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("features", ((37, 21), (16, 8), (1100, 300)), ids=str)
@pytest.mark.parametrize("rows", (1, 4, 11))
def test_nothing_is_read_past_an_operand(rows, features, dtype, isa):
    x, w, b, r = (t.detach() for t in operands((rows,), features, dtype))
    plain = fastconv.linear(x, w, b, residual=r)
    assert torch.equal(fastconv.linear(*map(guarded, (x, w, b)), residual=guarded(r)), plain)
    grad = torch.ops.fastconv.conv2d_input_grad_raw
    numbers = (1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 0)
    pair = [t[:, :, None, None] for t in (r, w)]
    assert torch.equal(grad(*map(guarded, pair), *numbers), grad(*pair, *numbers))


def test_weights_and_inputs_of_any_strides():
    x, w, b, _ = operands((6,), (40, 30))
    for weight in (w.t().contiguous().t(), torch.stack([w, w], -1).flatten(1)[:, ::2]):
        assert torch.equal(fastconv.linear(x, weight, b), F.linear(x, w, b))
    assert torch.equal(fastconv.linear(x.t().contiguous().t(), w, b), F.linear(x, w, b))
    row = x[:1].expand(6, 40)
    assert torch.equal(fastconv.linear(row, w, b), F.linear(row, w, b))


def test_a_bad_value_reaches_the_outputs_that_read_it():
    for bad in (float("nan"), float("inf")):
        x, w, _, dy = (t.detach() for t in operands((7,), (37, 21)))
        w[3, 5] = bad
        y = fastconv.linear(x, w)
        assert (~y.isfinite()).nonzero()[:, 1].unique().tolist() == [3]
        dx = torch.ops.fastconv.conv2d_input_grad_raw(
            *(t[:, :, None, None] for t in (dy, w)), 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 0
        )
        assert (~dx.isfinite()).nonzero()[:, 1].unique().tolist() == [5]


def test_few_pixels_do_not_depend_on_threads():
    x, w, b, dy = operands((5,), (900, 2000), torch.float32)
    before, runs = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            y = fastconv.linear(x, w, b)
            runs.append((y, *torch.autograd.grad(y, (x, w, b), dy.detach())))
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        assert all(torch.equal(a, c) for a, c in zip(run, runs[0], strict=True))


def test_linear_gradcheck():
    inputs = [(t / 8).detach().requires_grad_() for t in operands((3,), (5, 4))]

    def function(x, w, b, r):
        return fastconv.linear(x, w, b, residual=r, activation="sigmoid")

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_linear_under_torchs_machinery():
    x, w, b, _ = (t.detach() for t in operands((2, 3), dtype=torch.float32))
    compiled = torch.compile(fastconv.linear, fullgraph=True, backend="aot_eager", dynamic=True)
    torch.testing.assert_close(compiled(x, w, b), F.linear(x, w, b))
    mapped = torch.func.vmap(fastconv.linear, (0, None, None))
    torch.testing.assert_close(mapped(x, w, b), F.linear(x, w, b))
    with torch.autocast("cpu", torch.bfloat16):
        assert fastconv.linear(x, w, b).dtype == F.linear(x, w, b).dtype == torch.bfloat16
    meta = fastconv.linear(*(t.to("meta") for t in (x, w, b)))
    assert meta.shape == (2, 3, 21) and meta.is_contiguous()


WRONG = {
    "features": (((3, 7), (5, 6)), r"input of size \[3, 7\] and weight of size \[5, 6\]"),
    "weight": (((3, 7), (7,)), r"weight of size \[7\]"),
    "scalar": (((), (5, 6)), r"input of size \[\]"),
    "bias": (((3, 6), (5, 6), (4,)), r"bias must have size \[5\]"),
    "residual": (((2, 3, 6), (5, 6), (5,), (6, 5)), r"size \[6, 5\] must have size \[2, 3, 5\]"),
    "empty": (((0, 7), (5, 6)), r"input of size \[0, 7\]"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_use_of_linear(name):
    sizes, message = WRONG[name]
    tensors = [torch.randn(size) for size in sizes]
    residual = tensors.pop() if len(tensors) > 3 else None
    with pytest.raises(RuntimeError, match=message):
        fastconv.linear(*tensors, residual=residual)
    with pytest.raises(RuntimeError, match="same dtype"):
        fastconv.linear(torch.randn(3, 6), torch.randn(5, 6).double())


@pytest.mark.parametrize("activation", [None, "relu", "sigmoid"])
@pytest.mark.parametrize("bias", [True, False])
def test_layer_equals_torchs(bias, activation):
    ours = fnn.Linear(9, 6, bias, activation=activation).double()
    twin = torch_layers.Linear(9, 6, bias, activation=activation).double()
    twin.load_state_dict(ours.state_dict())
    x, residual = torch.randn(2, 4, 9).double(), torch.randn(2, 4, 6).double()
    torch.testing.assert_close(ours(x), twin(x))
    torch.testing.assert_close(ours(x, residual), twin(x, residual))
    assert ("activation=" in repr(ours)) == (activation is not None)
    if activation is None:
        assert repr(ours) == repr(torch.nn.Linear(9, 6, bias))
    torch.testing.assert_close(copy.deepcopy(ours.eval())(x), twin(x))
    assert fnn.cache_size(ours) == 0
    with pytest.raises(ValueError, match="gelu"):
        fnn.Linear(9, 6, activation="gelu")


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_whose_linear_a_layer_runs(device, activation, monkeypatch):
    """Off the CPU torch's, but for what torch does not fuse."""
    layer = fnn.Linear(5, 4, device=device, activation=activation)
    calls = []
    monkeypatch.setattr(fnn, "linear", lambda *a, **o: calls.append(a) or fastconv.linear(*a, **o))
    assert layer(torch.empty(2, 3, 5, device=device)).shape == (2, 3, 4)
    assert len(calls) == (device == "cpu" or activation is not None)


def test_convert_keeps_a_linear_layer():
    class Own(torch.nn.Linear):
        pass

    attention = torch.nn.MultiheadAttention(8, 2)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), Own(8, 8), attention)
    calls = []
    model[0].register_forward_hook(lambda module, *_: calls.append(type(module)))
    model[0].eval()
    new, report = fastconv.convert(model, return_report=True)
    assert type(new[0]) is fnn.Linear and new[0].weight is model[0].weight
    assert list(new.state_dict()) == list(model.state_dict())
    assert not new[0].training and new[1].training and new[0].activation is None
    x = torch.randn(3, 8)
    torch.testing.assert_close(new[0](x), model[0](x))
    assert calls == [fnn.Linear, torch.nn.Linear]
    assert [entry.name for entry in report.converted] == ["0"]
    assert [entry.name for entry in report.left] == ["1", "2.out_proj"]
    assert all("a subclass of Linear" in entry.reason for entry in report.left)


def test_plain_calls_pass_the_dispatcher_by():
    x, w, b, _ = (t.detach() for t in operands((3,), dtype=torch.float32))
    taken, calls = fastconv.ops.conv._eager_conv2d, []
    fastconv.ops.conv._eager_conv2d = lambda *a: calls.append(taken(*a)) or calls[-1]
    try:
        y = fastconv.linear(x, w, b)
    finally:
        fastconv.ops.conv._eager_conv2d = taken
    assert torch.equal(calls[0].flatten(1), y)
