"""Max, average, adaptive average and global average pooling, with gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from .. import _C
from . import pool_fakes
from .registry import Op
from .sizes import batched, check, pair
from .vmap import fold_batch

Pair = int | Sequence[int]
_is_dynamo_compiling = torch.compiler.is_dynamo_compiling


def max_pool2d(
    input: Tensor,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """y[n,c,p,q] = max over r, s of x[n, c, p*stride + r*dilation - padding, ...].

    The first of equal maxima wins, and NaN wins over every number. Gradients go to the winner.

    Args:
        input: (N, C, H, W) or (C, H, W); float32, float64, bfloat16 or float16, any strides.
        kernel_size, padding, dilation: an int or a pair; padding at most half of kernel_size.
        stride: an int or a pair; None or () for kernel_size.
        ceil_mode: round the output size up instead of down; no window starts beyond the padding.
        return_indices: also return each maximum's place h * W + w in its plane, int64.

    Returns:
        (N, C, P, Q) in the input's memory format, P = floor or ceil((H + 2 padding -
        dilation (R - 1) - 1) / stride) + 1, and Q likewise; the indices too where asked for.

    Raises:
        RuntimeError: values or sizes that do not fit. ValueError, TypeError: arguments that are no
        such thing.

    Source: `torch.nn.functional.max_pool2d`, whose arguments and results these are.
    """
    if not return_indices and not _is_dynamo_compiling():
        output = _C.eager_max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode)
        if type(output) is tuple:  # the settings, where a gradient is asked for
            return _apply_eager(input, output)
        if output is not None:
            return output
    window = (*_window(kernel_size, stride, padding), *pair(dilation, "dilation"))
    input, added = batched(input, "max_pool2d")
    args = (input, *window, int(bool(ceil_mode)))
    if return_indices:
        output, index = _max_pool2d_with_indices(*args)
        return (output.squeeze(0), index.squeeze(0)) if added else (output, index)
    if torch.is_grad_enabled() and input.requires_grad:
        output = _max_pool2d_window(*args)[0]
    else:
        output = _max_pool2d(*args)
    return output.squeeze(0) if added else output


def avg_pool2d(
    input: Tensor,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """y[n,c,p,q] = sum over r, s of x[n, c, p*stride + r - padding, ...] / divisor.

    Args:
        count_include_pad: the divisor counts the padding's places too, else the input's only.
        divisor_override: the divisor instead of a count, not zero.
        the others: as in `max_pool2d`.

    Returns:
        (N, C, P, Q) in the input's memory format.

    Raises:
        RuntimeError: values or sizes that do not fit. ValueError, TypeError: arguments that are no
        such thing.

    Source: `torch.nn.functional.avg_pool2d`, whose arguments and results these are.
    """
    if not _is_dynamo_compiling():
        output = _C.eager_avg_pool2d(
            input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
        )
        if output is not None:
            return output
    window = _window(kernel_size, stride, padding)
    check(divisor_override is None or divisor_override != 0, lambda: "divisor must be not zero")
    input, added = batched(input, "avg_pool2d")
    output = _avg_pool2d(
        input, *window, int(bool(ceil_mode)), int(bool(count_include_pad)), divisor_override or 0
    )
    return output.squeeze(0) if added else output


def adaptive_avg_pool2d(input: Tensor, output_size: int | None | Sequence[int | None]) -> Tensor:
    """y[n,c,p,q] = mean of x over rows floor(p H / P) to ceil((p + 1) H / P), columns likewise.

    Args:
        input: (N, C, H, W) or (C, H, W).
        output_size: (P, Q), or one number for both; None keeps the input's size.

    Returns:
        (N, C, P, Q) in the input's memory format.

    Raises:
        RuntimeError: a negative size, an empty input. ValueError, TypeError: no size at all.

    Source: `torch.nn.functional.adaptive_avg_pool2d`, whose arguments and results these are.
    """
    if not _is_dynamo_compiling():
        output = _C.eager_adaptive_avg_pool2d(input, output_size)
        if output is not None:
            return output
    input, added = batched(input, "adaptive_avg_pool2d")
    wanted = tuple(output_size) if isinstance(output_size, (tuple, list)) else (output_size,) * 2
    if len(wanted) == 1:
        wanted *= 2
    if len(wanted) == 2:
        wanted = tuple(
            size if want is None else want
            for want, size in zip(wanted, input.shape[2:], strict=True)
        )
    output = _adaptive_avg_pool2d(input, *pair(wanted, "output_size"))
    return output.squeeze(0) if added else output


def global_avg_pool2d(input: Tensor) -> Tensor:
    """y[n,c,0,0] = mean of x[n,c]: (N, C, H, W) to (N, C, 1, 1).

    Source: Lin, Chen and Yan, "Network In Network", 2013.
    """
    return adaptive_avg_pool2d(input, 1)


def _window(kernel_size, stride, padding) -> tuple[int, ...]:
    kernel = pair(kernel_size, "kernel_size")
    empty_stride = stride is None or (isinstance(stride, (tuple, list)) and len(stride) == 0)
    stride = kernel if empty_stride else pair(stride, "stride")
    return (*kernel, *stride, *pair(padding, "padding"))


# --- gradients: each is the other's, so that they can be differentiated again -------------------


def _max_pool2d_save(ctx, inputs, output):
    input, *ctx.window = inputs
    ctx.save_for_backward(input)


def _max_pool2d_backward(ctx, grad):
    (input,) = ctx.saved_tensors
    index = _max_pool2d_window(input.detach(), *ctx.window)[1]
    return (_max_pool2d_grad(grad, index, *input.shape[2:], *ctx.window[:8]), *[None] * 9)


def _indexed_save(ctx, inputs, output):
    input, *ctx.window = inputs
    ctx.size = input.shape[2:]
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1])


def _indexed_backward(ctx, grad, _):
    (index,) = ctx.saved_tensors
    return (_max_pool2d_grad(grad, index, *ctx.size, *ctx.window[:8]), *[None] * 9)


def _index_save(ctx, inputs, output):
    _, index, *ctx.settings = inputs
    ctx.save_for_backward(index)


def _max_pool2d_grad_backward(ctx, grad_dx):
    (index,) = ctx.saved_tensors
    return (_max_pool2d_gather(grad_dx, index, *ctx.settings), *[None] * 11)


def _max_pool2d_gather_backward(ctx, grad):
    (index,) = ctx.saved_tensors
    return (_max_pool2d_grad(grad, index, *ctx.settings), *[None] * 11)


def _in_format(grad: Tensor, channels_last: bool) -> Tensor:
    """An average's gradient in its input's memory format, which the input's gradient then has:
    from behind a flatten it comes contiguous, and so would every gradient before it."""
    n, c, p, q = grad.shape
    # NOTE one pixel has any format to contiguous(), and its strides are not what a trace expects.
    if (p, q) != (1, 1) and channels_last == (suggest_memory_format(grad) == torch.channels_last):
        return grad
    if channels_last:
        return grad.permute(0, 2, 3, 1).reshape(n, p * q * c).view(n, p, q, c).permute(0, 3, 1, 2)
    return grad.reshape(n, c * p * q).view(n, c, p, q)


def _avg_pool2d_save(ctx, inputs, output):
    input, *ctx.settings = inputs
    ctx.size = input.shape[2:]
    ctx.channels_last = suggest_memory_format(input) == torch.channels_last


def _avg_pool2d_backward(ctx, grad):
    grad = _in_format(grad, ctx.channels_last)
    return (_avg_pool2d_grad(grad, *ctx.size, *ctx.settings), *[None] * 9)


def _avg_pool2d_grad_save(ctx, inputs, output):
    _, _, _, *ctx.settings = inputs


def _avg_pool2d_grad_backward(ctx, grad_dx):
    return (_avg_pool2d(grad_dx, *ctx.settings), *[None] * 11)


def _adaptive_save(ctx, inputs, output):
    ctx.size = inputs[0].shape[2:]
    ctx.channels_last = suggest_memory_format(inputs[0]) == torch.channels_last


def _adaptive_backward(ctx, grad):
    grad = _in_format(grad, ctx.channels_last)
    return _adaptive_avg_pool2d_grad(grad, *ctx.size), None, None


def _adaptive_grad_backward(ctx, grad_dx):
    return _adaptive_avg_pool2d(grad_dx, *ctx.size), None, None


_max_pool2d = Op(
    "max_pool2d",
    pool_fakes.max_pool2d,
    fold_batch("max_pool2d"),
    _max_pool2d_save,
    _max_pool2d_backward,
)
_max_pool2d_window = Op(
    "max_pool2d_window",
    pool_fakes.window,
    fold_batch("max_pool2d_window"),
    _indexed_save,
    _indexed_backward,
)
_max_pool2d_with_indices = Op(
    "max_pool2d_with_indices",
    pool_fakes.with_indices,
    fold_batch("max_pool2d_with_indices"),
    _indexed_save,
    _indexed_backward,
)
_max_pool2d_grad = Op(
    "max_pool2d_grad",
    pool_fakes.max_pool2d_grad,
    fold_batch("max_pool2d_grad"),
    _index_save,
    _max_pool2d_grad_backward,
)
_max_pool2d_gather = Op(
    "max_pool2d_gather",
    pool_fakes.max_pool2d_gather,
    fold_batch("max_pool2d_gather"),
    _index_save,
    _max_pool2d_gather_backward,
)
_avg_pool2d = Op(
    "avg_pool2d",
    pool_fakes.avg_pool2d,
    fold_batch("avg_pool2d"),
    _avg_pool2d_save,
    _avg_pool2d_backward,
)
_avg_pool2d_grad = Op(
    "avg_pool2d_grad",
    pool_fakes.avg_pool2d_grad,
    fold_batch("avg_pool2d_grad"),
    _avg_pool2d_grad_save,
    _avg_pool2d_grad_backward,
)
_adaptive_avg_pool2d = Op(
    "adaptive_avg_pool2d",
    pool_fakes.adaptive,
    fold_batch("adaptive_avg_pool2d"),
    _adaptive_save,
    _adaptive_backward,
)
_adaptive_avg_pool2d_grad = Op(
    "adaptive_avg_pool2d_grad",
    pool_fakes.adaptive_grad,
    fold_batch("adaptive_avg_pool2d_grad"),
    _adaptive_save,
    _adaptive_grad_backward,
)


class _MaxPool2d(torch.autograd.Function):
    """The gradient of a call that csrc/eager_pool.cpp takes: of few arguments, as in `_Conv2d`."""

    @staticmethod
    def forward(ctx, input, window):
        both = _C.eager_max_pool2d_window(input, window)
        output, index = both or _max_pool2d_window.of_device.raw(input, *window)
        ctx.window, ctx.size = window, input.shape[2:]
        ctx.save_for_backward(index)
        return output

    @staticmethod
    def backward(ctx, grad):
        return _indexed_backward(ctx, grad, None)[:2]


# Function.apply without its look for transforms, for calls that have looked.
_apply_eager = super(torch.autograd.Function, _MaxPool2d).apply
