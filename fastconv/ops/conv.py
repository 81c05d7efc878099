"""2-D cross-correlation, 1x1 convolution and true convolution, with gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .add import activation_grad
from .registry import Op, public
from .sizes import (
    activation_code,
    allows_tf32,
    autocast_enabled,
    batched,
    check,
    check_dtype,
    check_size,
    conv_padding,
    conv_shape,
    empty,
    pair,
)
from .vmap import to_batch, to_channels

Pair = int | Sequence[int]


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


# --- fake kernels -------------------------------------------------------------------------------


def _same(op: str, first: Tensor, **others: Tensor | None) -> None:
    check_dtype(op, first)
    for name, t in others.items():
        if t is not None:
            check(
                t.dtype == first.dtype,
                lambda name=name, t=t: (
                    f"{op}: the first operand is {first.dtype} but {name} is "
                    f"{t.dtype}; they must have the same dtype"
                ),
            )
            check(
                t.device == first.device,
                lambda name=name, t=t: (
                    f"{op}: the first operand is on {first.device} but {name} is on {t.device}"
                ),
            )


def _conv2d_fake(input, weight, bias, residual, *settings):
    _same("conv2d", input, weight=weight, bias=bias, residual=residual)
    size = conv_shape(input.shape, weight.shape, settings[:9])
    if bias is not None:
        check(
            bias.dim() == 1 and bias.shape[0] == size[1],
            lambda: f"conv2d: bias must have size [{size[1]}], got {list(bias.shape)}",
        )
    if residual is not None:
        check_size("conv2d", "residual", residual, size)
    return empty(input, size)


def _input_grad_fake(grad, weight, height, width, *settings):
    _same("conv2d_input_grad", grad, weight=weight)
    size = [grad.shape[0], weight.shape[1] * settings[8], height, width]
    check_size("conv2d_input_grad", "grad", grad, conv_shape(size, weight.shape, settings[:9]))
    return empty(grad, size)


def _weight_grad_fake(input, grad, kernel_h, kernel_w, *settings):
    _same("conv2d_weight_grad", input, grad=grad)
    size = [grad.shape[1], input.shape[1] // settings[8], kernel_h, kernel_w]
    check_size("conv2d_weight_grad", "grad", grad, conv_shape(input.shape, size, settings[:9]))
    return input.new_empty(size)


def _bias_grad_fake(grad):
    return grad.new_empty([grad.shape[1]])


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


def _bias_grad_vmap(info, in_dims, grad):
    db = public("conv2d_bias_grad")(to_channels(grad, in_dims[0], info.batch_size, 1))
    return db.unflatten(0, (info.batch_size, -1)), 0


# --- gradients: made of the same ops, so that they can be differentiated again ------------------


def _conv2d_save(ctx, inputs, output):
    input, weight, bias, residual, *settings = inputs
    *ctx.window, ctx.activation, ctx.precision = settings
    ctx.save_for_backward(input, weight, output if ctx.activation else None)


def _conv2d_backward(ctx, grad):
    input, weight, output = ctx.saved_tensors
    needs = ctx.needs_input_grad
    if ctx.activation:
        grad = activation_grad(grad, output, ctx.activation)
    dx = dw = db = None
    if needs[1]:  # first, as its scratch would come on top of dx
        dw = _conv2d_weight_grad(input, grad, *weight.shape[2:], *ctx.window, ctx.precision)
    if needs[2]:
        db = _conv2d_bias_grad(grad)
    if needs[0]:
        dx = _conv2d_input_grad(grad, weight, *input.shape[2:], *ctx.window, ctx.precision)
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


def _bias_grad_save(ctx, inputs, output):
    ctx.size = inputs[0].shape


def _bias_grad_backward(ctx, grad_db):
    return grad_db[None, :, None, None].expand(ctx.size)


_conv2d = Op("conv2d", _conv2d_fake, _conv2d_vmap, _conv2d_save, _conv2d_backward)
_conv2d_input_grad = Op(
    "conv2d_input_grad", _input_grad_fake, _input_grad_vmap, _input_grad_save, _input_grad_backward
)
_conv2d_weight_grad = Op(
    "conv2d_weight_grad",
    _weight_grad_fake,
    _weight_grad_vmap,
    _weight_grad_save,
    _weight_grad_backward,
)
_conv2d_bias_grad = Op(
    "conv2d_bias_grad", _bias_grad_fake, _bias_grad_vmap, _bias_grad_save, _bias_grad_backward
)
