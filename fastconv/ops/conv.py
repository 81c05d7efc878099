"""2-D cross-correlation, 1x1 convolution and true convolution, with gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _C
from . import conv_fakes
from .add import activation_bias_grad, activation_grad
from .registry import Op, public
from .sizes import (
    activation_code,
    allows_tf32,
    autocast_enabled,
    batched,
    conv_padding,
    pair,
)
from .vmap import to_batch, to_channels

Pair = int | Sequence[int]
_is_dynamo_compiling = torch.compiler.is_dynamo_compiling
_eager_conv2d, _eager_conv2d_raw = _C.eager_conv2d, _C.eager_conv2d_raw


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    groups: int = 1,
    *,
    residual: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """2-D cross-correlation with fused bias, residual and activation.

    y[n,k,p,q] = act(sum_{c,r,s} x[n, c, p*stride + r*dilation - padding, …] * w[k,c,r,s]
                     + bias[k] + residual[n,k,p,q])

    Args:
        input: (N, C, H, W) or (C, H, W); float32, float64, bfloat16 or float16, any strides.
        weight: (K, C / groups, R, S), of the input's dtype.
        bias: (K) or None.
        stride, padding, dilation: an int or a pair; padding also "same" or "valid".
        residual: of the output's size, added before the activation.
        activation: None, "relu" or "sigmoid".

    Returns:
        (N, K, P, Q) in the input's memory format, P = floor((H + 2 padding - dilation (R - 1) - 1)
        / stride) + 1, and Q likewise.

    Raises:
        RuntimeError: sizes, dtypes or devices that do not fit. ValueError, TypeError: arguments
        that are no such thing.

    Source: `torch.nn.functional.conv2d`, whose arguments and results these are.
    """
    if not _is_dynamo_compiling():
        output = _eager_conv2d(
            input, weight, bias, stride, padding, dilation, groups, residual, activation
        )
        if type(output) is tuple:  # the settings, where a gradient is asked for
            return _apply_eager(input, weight, bias, residual, output)
        if output is not None:
            return output
    code = activation_code(activation)
    if weight.dim() != 4:
        raise RuntimeError(
            f"conv2d: expected weight to have 4 dimensions (K, C / groups, R, S), got size "
            f"{list(weight.shape)}"
        )
    stride, dilation = pair(stride, "stride"), pair(dilation, "dilation")
    pads = conv_padding(padding, weight.shape[2:], stride, dilation)
    if autocast_enabled(input):
        input, weight, bias, residual = _autocast(input, weight, bias, residual)
    input, added = batched(input, "conv2d")
    if added and residual is not None:
        if residual.dim() != 3:
            raise RuntimeError(
                f"conv2d: residual of size {list(residual.shape)} must have 3 dimensions, as input"
            )
        residual = residual.unsqueeze(0)
    # The other backends follow torch's switches; the CPU's arithmetic is float32 always.
    tf32 = int(input.device.type == "cuda" and allows_tf32())
    output = _conv2d(input, weight, bias, residual, *stride, *pads, *dilation, groups, code, tf32)
    return output.squeeze(0) if added else output


def conv1x1(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    *,
    residual: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """1x1 convolution: one fully connected layer applied at every pixel.

    y[n,k,p,q] = act(sum_c x[n, c, p*stride, q*stride] * w[k,c] + bias[k] + residual[n,k,p,q])

    Args:
        weight: (K, C) or (K, C, 1, 1); the others as in `conv2d`.

    Raises:
        RuntimeError: a weight of another size, and what `conv2d` raises.

    Source: Lin, Chen and Yan, "Network In Network", 2013.
    """
    if weight.dim() == 2:
        weight = weight[:, :, None, None]
    if weight.dim() != 4 or weight.shape[2] != 1 or weight.shape[3] != 1:
        raise RuntimeError(
            f"conv1x1: expected weight of size (K, C) or (K, C, 1, 1), got {list(weight.shape)}"
        )
    return conv2d(input, weight, bias, stride, residual=residual, activation=activation)


def convolve2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    groups: int = 1,
    *,
    residual: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """True convolution: `conv2d` with the kernel flipped in both axes.

    y[n,k,p,q] = act(sum_{c,r,s} x[n, c, p*stride + r*dilation - padding, …] * w[k,c,R-1-r,S-1-s]
                     + bias[k] + residual[n,k,p,q])

    Arguments, shapes and errors are those of `conv2d`.
    """
    if weight.dim() != 4:
        raise RuntimeError(
            f"convolve2d: expected weight to have 4 dimensions, got size {list(weight.shape)}"
        )
    return conv2d(
        input, weight.flip(2, 3), bias, stride, padding, dilation, groups,
        residual=residual, activation=activation,
    )  # fmt: skip


def _autocast(*tensors: Tensor | None) -> list[Tensor | None]:
    """torch's rule for convolutions: floating tensors but float64 take the autocast dtype."""
    dtype = torch.get_autocast_dtype(tensors[0].device.type)
    return [
        t.to(dtype) if t is not None and t.is_floating_point() and t.dtype != torch.float64 else t
        for t in tensors
    ]


# --- vmap: the mapped axis joins the batch, or the groups where the weights are mapped ----------
# NOTE the rules call the public ops: an Op's own call would start a transform again.


def _more_groups(settings: tuple, size: int) -> tuple:
    return (*settings[:8], settings[8] * size, *settings[9:])


def _conv2d_vmap(info, in_dims, input, weight, bias, residual, *settings):
    size, (dx, dw, db, dr) = info.batch_size, in_dims[:4]
    if dw is None and db is None:
        y = public("conv2d")(
            to_batch(input, dx, size), weight, bias, to_batch(residual, dr, size), *settings
        )
        return y.unflatten(0, (size, -1)), 0
    y = public("conv2d")(
        to_channels(input, dx, size, 1),
        to_channels(weight, dw, size, 0),
        to_channels(bias, db, size, 0),
        to_channels(residual, dr, size, 1),
        *_more_groups(settings, size),
    )
    return y.unflatten(1, (size, -1)), 1


def _input_grad_vmap(info, in_dims, grad, weight, height, width, *settings):
    size, (dg, dw) = info.batch_size, in_dims[:2]
    if dw is None:
        dx = public("conv2d_input_grad")(to_batch(grad, dg, size), weight, height, width, *settings)
        return dx.unflatten(0, (size, -1)), 0
    dx = public("conv2d_input_grad")(
        to_channels(grad, dg, size, 1),
        to_channels(weight, dw, size, 0),
        height,
        width,
        *_more_groups(settings, size),
    )
    return dx.unflatten(1, (size, -1)), 1


def _weight_grad_vmap(info, in_dims, input, grad, kernel_h, kernel_w, *settings):
    size, (dx, dg) = info.batch_size, in_dims[:2]
    dw = public("conv2d_weight_grad")(
        to_channels(input, dx, size, 1),
        to_channels(grad, dg, size, 1),
        kernel_h,
        kernel_w,
        *_more_groups(settings, size),
    )
    return dw.unflatten(0, (size, -1)), 0


def _weight_bias_grad_vmap(info, in_dims, input, grad, kernel_h, kernel_w, *args):
    size, (dx, dg, do) = info.batch_size, (*in_dims[:2], in_dims[14])
    *settings, output, activation = args
    grads = public("conv2d_weight_bias_grad")(
        to_channels(input, dx, size, 1),
        to_channels(grad, dg, size, 1),
        kernel_h,
        kernel_w,
        *_more_groups(settings, size),
        to_channels(output, do, size, 1),
        activation,
    )
    return tuple(g.unflatten(0, (size, -1)) for g in grads), (0, 0)


def _bias_grad_vmap(info, in_dims, grad):
    db = public("conv2d_bias_grad")(to_channels(grad, in_dims[0], info.batch_size, 1))
    return db.unflatten(0, (info.batch_size, -1)), 0


# --- gradients: made of the same ops, so that they can be differentiated again ------------------


def _conv2d_save(ctx, inputs, output):
    input, weight, _, _, *ctx.settings = inputs
    ctx.save_for_backward(input, weight, output if ctx.settings[9] else None)


def _conv2d_backward(ctx, grad):
    input, weight, output = ctx.saved_tensors
    needs = ctx.needs_input_grad
    *window, activation, precision = ctx.settings
    sizes = (*weight.shape[2:], *window, precision)
    dx = dw = db = None
    # Where nothing else needs the gradient before the activation it is not made as a tensor.
    if needs[1] and (not (needs[0] or needs[3]) if activation else needs[2]):
        dw, db = _conv2d_weight_bias_grad(input, grad, *sizes, output, activation)
        db = db if needs[2] else None  # of a convolution without a bias
        needs = (needs[0], False, False, needs[3])
    elif activation and needs[2]:
        grad, db = activation_bias_grad(grad, output, activation)
    elif activation:
        grad = activation_grad(grad, output, activation)
    elif needs[2]:
        db = _conv2d_bias_grad(grad)
    if needs[1]:  # first, as its scratch would come on top of dx
        dw = _conv2d_weight_grad(input, grad, *sizes)
    if needs[0]:
        dx = _conv2d_input_grad(grad, weight, *input.shape[2:], *window, precision)
    return (dx, dw, db, grad if needs[3] else None, *[None] * 11)


def _input_grad_save(ctx, inputs, output):
    grad, weight, _, _, *ctx.settings = inputs
    ctx.save_for_backward(grad, weight)


def _input_grad_backward(ctx, grad_dx):
    grad, weight = ctx.saved_tensors
    *window, precision = ctx.settings
    d_grad = d_weight = None
    if ctx.needs_input_grad[0]:
        d_grad = _conv2d(grad_dx, weight, None, None, *window, 0, precision)
    if ctx.needs_input_grad[1]:
        d_weight = _conv2d_weight_grad(grad_dx, grad, *weight.shape[2:], *window, precision)
    return (d_grad, d_weight, *[None] * 12)


def _weight_grad_save(ctx, inputs, output):
    input, grad, _, _, *ctx.settings = inputs
    ctx.save_for_backward(input, grad)


def _weight_grad_backward(ctx, grad_dw):
    input, grad = ctx.saved_tensors
    *window, precision = ctx.settings
    d_input = d_grad = None
    if ctx.needs_input_grad[0]:
        d_input = _conv2d_input_grad(grad, grad_dw, *input.shape[2:], *window, precision)
    if ctx.needs_input_grad[1]:
        d_grad = _conv2d(input, grad_dw, None, None, *window, 0, precision)
    return (d_input, d_grad, *[None] * 12)


def _weight_bias_grad_save(ctx, inputs, output):
    input, grad, _, _, *ctx.settings, mask, ctx.activation = inputs
    ctx.save_for_backward(input, grad, mask if ctx.activation else None)


def _weight_bias_grad_backward(ctx, grad_dw, grad_db):
    input, grad, output = ctx.saved_tensors
    *window, precision = ctx.settings
    needs = ctx.needs_input_grad
    d_input = d_grad = d_output = None
    if needs[0]:
        dz = activation_grad(grad, output, ctx.activation) if ctx.activation else grad
        d_input = _conv2d_input_grad(dz, grad_dw, *input.shape[2:], *window, precision)
    if needs[1] or needs[14]:
        d_grad = _conv2d(input, grad_dw, grad_db, None, *window, 0, precision)
        if ctx.activation == 2 and needs[14]:
            d_output = d_grad * grad * (1 - 2 * output)
        if ctx.activation:
            d_grad = activation_grad(d_grad, output, ctx.activation)
    return (d_input, d_grad if needs[1] else None, *[None] * 12, d_output, None)


def _bias_grad_save(ctx, inputs, output):
    ctx.size = inputs[0].shape


def _bias_grad_backward(ctx, grad_db):
    return grad_db[None, :, None, None].expand(ctx.size)


_conv2d = Op("conv2d", conv_fakes.conv2d, _conv2d_vmap, _conv2d_save, _conv2d_backward)
_conv2d_input_grad = Op(
    "conv2d_input_grad",
    conv_fakes.input_grad,
    _input_grad_vmap,
    _input_grad_save,
    _input_grad_backward,
)
_conv2d_weight_grad = Op(
    "conv2d_weight_grad",
    conv_fakes.weight_grad,
    _weight_grad_vmap,
    _weight_grad_save,
    _weight_grad_backward,
)
_conv2d_bias_grad = Op(
    "conv2d_bias_grad", conv_fakes.bias_grad, _bias_grad_vmap, _bias_grad_save, _bias_grad_backward
)
_conv2d_weight_bias_grad = Op(
    "conv2d_weight_bias_grad",
    conv_fakes.weight_bias_grad,
    _weight_bias_grad_vmap,
    _weight_bias_grad_save,
    _weight_bias_grad_backward,
)


class _Conv2d(torch.autograd.Function):
    """The gradients of a call that csrc/eager_conv.cpp takes: of few arguments, as each costs."""

    @staticmethod
    def forward(ctx, input, weight, bias, residual, settings):
        output = _eager_conv2d_raw(input, weight, bias, residual, settings)
        if output is None:
            output = _conv2d.of_device.raw(input, weight, bias, residual, *settings)
        ctx.settings = settings
        ctx.save_for_backward(input, weight, output if settings[9] else None)
        return output

    @staticmethod
    def backward(ctx, grad):
        return (*_conv2d_backward(ctx, grad)[:4], None)


# Function.apply without its look for transforms, for calls that have looked.
_apply_eager = super(torch.autograd.Function, _Conv2d).apply
_C.prepare_eager()
