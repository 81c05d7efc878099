"""Fake kernels of the convolution's ops: checks of tensors without data, sizes and strides."""

from __future__ import annotations

from torch import Tensor

from .sizes import check, check_dtype, check_size, conv_shape, empty


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


def conv2d(input, weight, bias, residual, *settings):
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


def input_grad(grad, weight, height, width, *settings):
    _same("conv2d_input_grad", grad, weight=weight)
    size = [grad.shape[0], weight.shape[1] * settings[8], height, width]
    check_size("conv2d_input_grad", "grad", grad, conv_shape(size, weight.shape, settings[:9]))
    return empty(grad, size)


def weight_grad(input, grad, kernel_h, kernel_w, *settings):
    _same("conv2d_weight_grad", input, grad=grad)
    size = [grad.shape[1], input.shape[1] // settings[8], kernel_h, kernel_w]
    check_size("conv2d_weight_grad", "grad", grad, conv_shape(input.shape, size, settings[:9]))
    # On a GPU in the input's memory format: csrc/cuda/conv_grad.cpp has the reason.
    return empty(input, size) if input.is_cuda else input.new_empty(size)


def weight_bias_grad(input, grad, *args):
    *weight_args, output, activation = args
    if activation:
        check(
            output is not None,
            lambda: "conv2d_weight_bias_grad: an activation's gradient needs its output",
        )
        _same("conv2d_weight_bias_grad", grad, output=output)
        check_size("conv2d_weight_bias_grad", "output", output, grad.shape)
    return weight_grad(input, grad, *weight_args), bias_grad(grad)


def bias_grad(grad):
    return grad.new_empty([grad.shape[1]])
