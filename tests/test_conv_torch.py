"""Convolution in torch's machinery: opcheck, compile, export, vmap, func, autocast."""

import pytest
import torch
import torch.nn.functional as F

import fastconv

WINDOW = (2, 1, 1, 0, 1, 0, 1, 2, 1)


@pytest.mark.parametrize("suffix", ["", "_raw"])
def test_opcheck(suffix):
    x, w = torch.randn(2, 3, 7, 9), torch.randn(4, 3, 3, 2)
    if not suffix:
        x.requires_grad_(), w.requires_grad_()
    y = fastconv.conv2d(x, w, None, (2, 1), (1, 0), (1, 2)).detach()
    get = lambda name: getattr(torch.ops.fastconv, name.strip() + suffix).default  # noqa: E731
    calls = {
        "conv2d": (x, w, torch.randn(4), torch.randn_like(y), *WINDOW, 1, 0),
        "conv2d_input_grad": (y, w, 7, 9, *WINDOW, 0),
        "conv2d_weight_grad": (x, y, 3, 2, *WINDOW, 0),
        "conv2d_bias_grad": (y,),
        "conv2d_weight_bias_grad": (x, y, 3, 2, *WINDOW, 0, torch.rand_like(y), 2),
        "conv2d_weight_bias_grad ": (x, y, 3, 2, *WINDOW, 0, None, 0),
    }
    for name, args in calls.items():
        torch.library.opcheck(get(name), args)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_and_export(dynamic):
    w, b = torch.randn(4, 3, 3, 3, requires_grad=True), torch.randn(4, requires_grad=True)

    def function(x):
        return fastconv.conv2d(x, w, b, padding="same", activation="relu")

    x = torch.randn(2, 3, 8, 11, requires_grad=True)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    torch.testing.assert_close(compiled(x), function(x))
    expected = torch.autograd.grad(function(x).sum(), (x, w, b))
    actual = torch.autograd.grad(compiled(x).sum(), (x, w, b))
    for mine, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, theirs)
    layer = fastconv.nn.Conv2d(3, 4, 3, padding=1)
    program = torch.export.export(layer, (x.detach(),))
    torch.testing.assert_close(program.module()(x.detach()), layer(x.detach()))


@pytest.mark.parametrize(
    "dims", [(0, None, None), (0, 0, 0), (None, 0, None), (3, 1, None), (None, None, 0)], ids=str
)
def test_vmap(dims):
    size = 3
    shapes = ((2, 4, 6, 5), (6, 2, 3, 2), (6,))
    args = []
    for shape, dim in zip(shapes, dims, strict=True):
        full = list(shape)
        if dim is not None:
            full.insert(dim, size)
        args.append(torch.randn(full, dtype=torch.float64))

    def ours(x, w, b):
        return fastconv.conv2d(x, w, b, groups=2, activation="relu")

    def theirs(x, w, b):
        return F.conv2d(x, w, b, groups=2).relu()

    torch.testing.assert_close(torch.vmap(ours, dims)(*args), torch.vmap(theirs, dims)(*args))


@pytest.mark.parametrize("activation", [None, "relu", "sigmoid"])
@pytest.mark.parametrize("wanted", [(1, 2), (0, 1, 2)], ids=["weights", "all"])
def test_per_sample_gradients_of_the_fused(wanted, activation):
    """A gradient that is mapped, whatever else of its ops' operands is."""
    act = {None: lambda t: t, "relu": torch.relu, "sigmoid": torch.sigmoid}[activation]

    def ours(x, w, b):
        y = fastconv.conv2d(x[None], w, b, groups=2, activation=activation)
        return y.square().sum()

    def theirs(x, w, b):
        return act(F.conv2d(x[None], w, b, groups=2)).square().sum()

    x, w, b = (torch.randn(s, dtype=torch.float64) for s in ((3, 4, 6, 5), (6, 2, 3, 2), (3, 6)))
    for dims in ((0, None, 0), (0, None, None), (None, None, 0)):
        args = [x if dims[0] == 0 else x[0], w, b if dims[2] == 0 else b[0]]
        gradients = [torch.vmap(torch.func.grad(f, wanted), dims)(*args) for f in (ours, theirs)]
        for mine, true in zip(*gradients, strict=True):
            torch.testing.assert_close(mine, true)


def test_func_grad_and_per_sample_gradients():
    x, w = torch.randn(3, 2, 6, 5, dtype=torch.float64), torch.randn(4, 2, 3, 3).double()

    def loss(function):
        return lambda w, x: function(x[None], w).square().sum()

    ours = torch.vmap(torch.func.grad(loss(fastconv.conv2d)), (None, 0))(w, x)
    theirs = torch.vmap(torch.func.grad(loss(F.conv2d)), (None, 0))(w, x)
    torch.testing.assert_close(ours, theirs)


def test_forward_mode_says_that_it_is_not_supported():
    x = torch.randn(1, 2, 5, 6)
    with pytest.raises(NotImplementedError):
        torch.func.jvp(lambda x: fastconv.conv2d(x, torch.randn(3, 2, 3, 3)), (x,), (x,))


def test_autocast_takes_its_dtype_but_leaves_float64():
    x, w = torch.randn(1, 2, 5, 6), torch.randn(3, 2, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert fastconv.conv2d(x, w).dtype == torch.bfloat16
        assert fastconv.conv2d(x.double(), w.double()).dtype == torch.float64
