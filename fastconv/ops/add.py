"""Residual add, and the gradient of an activation at its output."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _C
from .registry import Op, public
from .sizes import activation_code, autocast_enabled, batched, check, check_dtype, empty
from .vmap import fold_batch, to_channels


def residual_add(input: Tensor, shortcut: Tensor, activation: str | None = None) -> Tensor:
    """The foot of a residual block: y = act(input + shortcut).

    Args:
        input, shortcut: (N, C, H, W) or (C, H, W), of one size and dtype, any strides. Under
            autocast the narrower dtype is widened.
        activation: None, "relu" or "sigmoid".

    Returns:
        The sum, in the memory format of `input`.

    Raises:
        RuntimeError: sizes, dtypes or devices that differ. ValueError: an unknown activation.

    Source: He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", 2015.
    """
    if not torch.compiler.is_dynamo_compiling():
        output = _C.eager_residual_add(input, shortcut, activation)
        if output is not None:
            return output
    code = activation_code(activation)
    _check_sizes("residual_add", input=input, shortcut=shortcut)
    if input.dtype != shortcut.dtype and autocast_enabled(input):
        dtype = torch.promote_types(input.dtype, shortcut.dtype)
        input, shortcut = input.to(dtype), shortcut.to(dtype)
    input, added = batched(input, "residual_add")
    if not added:
        return _residual_add(input, shortcut, code)
    return _residual_add(input, shortcut.unsqueeze(0), code).squeeze(0)


def activation_grad(grad: Tensor, output: Tensor, activation: int) -> Tensor:
    """The gradient of the activation whose result is `output`; twice differentiable.

    dz = dy where y > 0 or y is NaN, else 0 (relu, code 1); dz = dy * y * (1 - y) (sigmoid, code 2).
    """
    return _activation_grad(grad, output, activation)


def activation_bias_grad(grad: Tensor, output: Tensor, activation: int) -> tuple[Tensor, Tensor]:
    """`activation_grad`, and its sum over n, p and q: the gradient of a bias before it."""
    return _activation_bias_grad(grad, output, activation)


# --- fake kernels -------------------------------------------------------------------------------


def _check_sizes(op: str, **operands: Tensor) -> None:
    (name_a, a), (name_b, b) = operands.items()
    if a.shape != b.shape:
        raise RuntimeError(
            f"{op}: {name_a} of size {list(a.shape)} and {name_b} of size {list(b.shape)} must "
            "have the same size"
        )


def _fake(op: str, layout: int, **operands: Tensor) -> Tensor:
    _check_sizes(op, **operands)
    (name_a, a), (name_b, b) = operands.items()
    check_dtype(op, a)
    check(
        a.dtype == b.dtype,
        lambda: (
            f"{op}: {name_a} is {a.dtype} but {name_b} is {b.dtype}; they must have the same dtype"
        ),
    )
    return empty((a, b)[layout], a.shape)


def _residual_add_fake(input, shortcut, activation):
    return _fake("residual_add", 0, input=input, shortcut=shortcut)


def _activation_grad_fake(grad, output, activation):
    return _fake("activation_grad", 1, grad=grad, output=output)


def _activation_bias_grad_fake(grad, output, activation):
    return _activation_grad_fake(grad, output, activation), grad.new_empty([grad.shape[1]])


# --- vmap ---------------------------------------------------------------------------------------


def _activation_bias_grad_vmap(info, in_dims, grad, output, activation):
    size, (dg, dy) = info.batch_size, in_dims[:2]
    dz, db = public("activation_bias_grad")(
        to_channels(grad, dg, size, 1), to_channels(output, dy, size, 1), activation
    )
    return (dz.unflatten(1, (size, -1)), db.unflatten(0, (size, -1))), (1, 0)


# --- gradients ----------------------------------------------------------------------------------


def _residual_add_save(ctx, inputs, output):
    ctx.activation = inputs[2]
    ctx.save_for_backward(output if ctx.activation else None)


def _residual_add_backward(ctx, grad):
    (output,) = ctx.saved_tensors
    dz = activation_grad(grad, output, ctx.activation) if ctx.activation else grad
    return dz, dz, None


def _activation_grad_save(ctx, inputs, output):
    grad, y, ctx.activation = inputs
    ctx.save_for_backward(grad, y)


def _activation_grad_backward(ctx, grad_dz):
    grad, y = ctx.saved_tensors
    d_grad = d_output = None
    if ctx.needs_input_grad[0]:
        d_grad = activation_grad(grad_dz, y, ctx.activation)
    if ctx.needs_input_grad[1] and ctx.activation == 2:
        d_output = grad_dz * grad * (1 - 2 * y)
    return d_grad, d_output, None


def _activation_bias_grad_backward(ctx, grad_dz, grad_db):
    return _activation_grad_backward(ctx, grad_dz + grad_db[:, None, None])


_residual_add = Op(
    "residual_add",
    _residual_add_fake,
    fold_batch("residual_add"),
    _residual_add_save,
    _residual_add_backward,
)
_activation_grad = Op(
    "activation_grad",
    _activation_grad_fake,
    fold_batch("activation_grad"),
    _activation_grad_save,
    _activation_grad_backward,
)
_activation_bias_grad = Op(
    "activation_bias_grad",
    _activation_bias_grad_fake,
    _activation_bias_grad_vmap,
    _activation_grad_save,
    _activation_bias_grad_backward,
)
