"""Residual add and the activations' gradient against torch and the float64 reference."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import fastconv
from fastconv.ops.add import activation_bias_grad, activation_grad
from fastconv.testing import reference
from fastconv.testing.compare import assert_good, poison

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SIZE = (2, 5, 7, 9)
# Without Triton, whose interpreter is slow at second derivatives.
NATIVE = pytest.mark.parametrize("backend", ["cpu", "cuda"], indirect=True)


def operand(layout: str, dtype=torch.float64, size=SIZE, seed=0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    n, c, h, w = size
    if layout == "sliced":
        return torch.randn(n, c + 1, h, 2 * w, generator=g).to(dtype)[:, 1:, :, ::2]
    x = torch.randn(size, generator=g).to(dtype)
    if layout == "expanded":
        return x[:, :, :1, :1].expand(size)
    return x.to(memory_format=torch.channels_last if layout == "nhwc" else torch.contiguous_format)


def torch_sum(x, y, activation):
    return reference.activate(x + y, activation)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("activation", [None, "relu", "sigmoid"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layouts", ["nchw nchw", "nhwc nhwc", "nhwc nchw", "sliced expanded"])
def test_sum(layouts, dtype, activation):
    first, second = layouts.split()
    x, y = operand(first, dtype), operand(second, dtype, seed=1)
    expected = torch_sum(x, y, activation)
    poison(torch.empty_like(expected))
    actual = fastconv.residual_add(x, y, activation)
    assert_good(actual, expected, reference.residual_add(x, y, activation), dtype)
    wanted = torch.channels_last if first == "nhwc" else torch.contiguous_format
    assert actual.is_contiguous(memory_format=wanted)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("size", [(1, 64, 113, 57), (3, 1, 1, 1), (1, 3, 5, 1), (2, 17, 1, 3)])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_sizes_of_one_and_of_many_blocks(size, layout):
    x, y = operand(layout, size=size), operand(layout, size=size, seed=1)
    assert torch.equal(fastconv.residual_add(x, y, "relu"), torch.relu(x + y))


@pytest.mark.usefixtures("backend")
def test_empty_batch_and_three_dimensions():
    x = operand("nchw")
    assert fastconv.residual_add(x[:0], x[:0], "relu").shape == (0, *SIZE[1:])
    assert torch.equal(fastconv.residual_add(x[0], x[1]), x[0] + x[1])


@pytest.mark.usefixtures("backend")
def test_nan_and_infinity_as_torch():
    x = operand("nchw")
    x.view(-1)[:4] = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0])
    y = torch.zeros_like(x)
    for activation in (None, "relu", "sigmoid"):
        torch.testing.assert_close(
            fastconv.residual_add(x, y, activation), torch_sum(x, y, activation), equal_nan=True
        )
    output, dy = x.clone(), operand("nchw", seed=1)
    masked = activation_grad(dy, output, 1)
    assert masked.view(-1)[0] == dy.view(-1)[0]  # NaN passes dy, as torch
    assert torch.equal(masked, torch.where(output <= 0, 0.0, dy))


@NATIVE
@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("activation", [None, "relu", "sigmoid"])
def test_gradients(activation):
    x, y = (operand(s, size=(2, 3, 3, 4), seed=i) for i, s in enumerate(["nhwc", "sliced"]))
    x, y = x.requires_grad_(), y.requires_grad_()

    def f(x, y):
        return fastconv.residual_add(x, y, activation)

    assert gradcheck(f, (x, y))
    assert gradgradcheck(f, (x, y))
    dx, dy = torch.autograd.grad(f(x, y).sum(), (x, y))
    assert torch.equal(dx, dy)


@NATIVE
@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("code", [1, 2])
def test_activation_grad_differentiates_in_both(code):
    dy = operand("nchw", size=(2, 3, 2, 5)).requires_grad_()
    y = operand("nhwc", size=(2, 3, 2, 5), seed=1).sigmoid().requires_grad_()
    assert gradcheck(lambda dy, y: activation_grad(dy, y, code), (dy, y))
    assert gradgradcheck(lambda dy, y: activation_grad(dy, y, code), (dy, y))
    assert gradcheck(lambda dy, y: activation_bias_grad(dy, y, code), (dy, y))
    assert gradgradcheck(lambda dy, y: activation_bias_grad(dy, y, code), (dy, y))


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layouts", ["nchw nchw", "nhwc nhwc", "nhwc nchw", "sliced expanded"])
def test_activation_grad_and_its_sum(layouts, dtype):
    first, second = layouts.split()
    dy, y = operand(first, dtype), operand(second, dtype, seed=1)
    if dtype == torch.float64:  # whole numbers, so that the sums are exact
        dy, y = (8 * dy).round(), (8 * y).round()
    for code in (0, 1, 2):
        dz, db = activation_bias_grad(dy, y, code)
        alone = activation_grad(dy, y, code)
        assert torch.equal(dz, alone) and dz.stride() == alone.stride()
        assert_good(db, dz.sum((0, 2, 3)), dz.double().sum((0, 2, 3)), dtype)
    dz, db = activation_bias_grad(dy[:0], y[:0], 1)
    assert dz.shape == (0, *SIZE[1:]) and torch.equal(db, torch.zeros(SIZE[1], dtype=dtype))


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
def test_gradient_in_every_dtype(dtype, activation):
    grads = []
    for f, kind in (
        (fastconv.residual_add, dtype), (torch_sum, dtype), (torch_sum, torch.float64)
    ):  # fmt: skip
        x, y = (operand("nchw", dtype, seed=i).to(kind).requires_grad_() for i in (0, 1))
        f(x, y, activation).backward(operand("nhwc", dtype, seed=2).to(kind))
        grads.append(x.grad)
    # sigmoid: torch rounds its result to the dtype before using it too, so it errs as much.
    assert_good(*grads, dtype)


@pytest.mark.parametrize("layout", ["nchw", "nhwc", "sliced"])
@pytest.mark.parametrize("code", [0, 1, 2])
def test_opcheck(layout, code):
    x, y = operand(layout).requires_grad_(), operand("nhwc", seed=1).requires_grad_()
    for name in ("residual_add", "activation_grad", "activation_bias_grad"):
        torch.library.opcheck(getattr(torch.ops.fastconv, name).default, (x, y, code))
        raw = getattr(torch.ops.fastconv, name + "_raw").default
        torch.library.opcheck(raw, (x.detach(), y.detach(), code))


def test_autocast_promotes_to_the_widest():
    x = operand("nchw", torch.bfloat16).requires_grad_()
    y = operand("nchw", torch.float32, seed=1).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        z = fastconv.residual_add(x, y, "relu")
    assert z.dtype == torch.float32
    z.sum().backward()
    assert x.grad.dtype == torch.bfloat16 and torch.equal(x.grad.float(), y.grad)


def test_compile_and_vmap():
    x, y = operand("nhwc").requires_grad_(), operand("nchw", seed=1)

    def f(x, y):
        return fastconv.residual_add(x, y, "sigmoid")

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, y), f(x, y))
    dx = torch.autograd.grad(compiled(x, y).sum(), x)[0]
    torch.testing.assert_close(dx, torch.autograd.grad(f(x, y).sum(), x)[0])
    xs = torch.stack([operand("nchw", seed=i) for i in range(3)], 1)
    mapped = torch.vmap(f, (1, None))(xs, y)
    torch.testing.assert_close(mapped, torch.sigmoid(xs.movedim(1, 0) + y))
    per_sample = torch.vmap(torch.func.grad(lambda x, y: f(x, y).sum()), (1, None))(xs, y)
    torch.testing.assert_close(per_sample, mapped * (1 - mapped))


@pytest.mark.usefixtures("backend")
def test_errors():
    x = operand("nchw")
    with pytest.raises(RuntimeError, match=r"\[2, 5, 7, 9\].*\[2, 5, 7, 8\]"):
        fastconv.residual_add(x, x[..., :8])
    with pytest.raises(RuntimeError, match="same size"):
        fastconv.residual_add(x, x[0])
    with pytest.raises(RuntimeError, match="dtype"):
        fastconv.residual_add(x, x.float())
    with pytest.raises(RuntimeError, match="float32"):
        fastconv.residual_add(x.int(), x.int())
    with pytest.raises(RuntimeError, match="float32"):
        fastconv.residual_add(x.to(torch.complex64), x.to(torch.complex64))
    with pytest.raises(ValueError, match="gelu"):
        fastconv.residual_add(x, x, "gelu")
    with pytest.raises(RuntimeError, match=r"\[7, 9\]"):
        fastconv.residual_add(x[0, 0], x[0, 0])
