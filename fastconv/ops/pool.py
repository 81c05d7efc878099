"""Max, average, adaptive average and global average pooling, with gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .registry import Op
from .sizes import batched, check, check_dtype, check_size, empty, pair
from .vmap import fold_batch

Pair = int | Sequence[int]


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


# --- fake kernels: csrc/pool_problem.cpp again --------------------------------------------------


def pool_output_size(size: int, k: int, stride: int, pad: int, dilation: int, ceil: int) -> int:
    """(size + 2 pad - dilation * (k - 1) - 1) / stride + 1, rounded down, or up where `ceil`.

    Rounded up, no window starts beyond the input and its first pad.
    """
    room = size + 2 * pad - dilation * (k - 1) - 1
    windows = (room + (stride - 1 if ceil else 0)) // stride + 1
    return windows - 1 if ceil and (windows - 1) * stride >= size + pad else windows


def _check_window(op: str, kh, kw, sh, sw, ph, pw, dh, dw) -> None:
    for name, h, w in (("kernel_size", kh, kw), ("stride", sh, sw), ("dilation", dh, dw)):
        check(
            h > 0 and w > 0,
            lambda name=name, h=h, w=w: f"{op}: {name} must be greater than zero, got ({h}, {w})",
        )
    check(ph >= 0 and pw >= 0, lambda: f"{op}: padding must be non-negative, got ({ph}, {pw})")
    check(
        ph <= kh // 2 and pw <= kw // 2,
        lambda: (
            f"{op}: padding must be at most half of kernel_size, got padding=({ph}, {pw}) with "
            f"kernel_size=({kh}, {kw})"
        ),
    )


def _check_input(op: str, t: Tensor, size: Sequence) -> None:
    check_dtype(op, t)
    check(
        len(size) == 4 and size[1] > 0 and size[2] > 0 and size[3] > 0,
        lambda: (
            f"{op}: input must have no empty dimension but the batch, got input of size "
            f"{list(size)}"
        ),
    )


def _pool_shape(op: str, input: Tensor, window: Sequence, ceil_mode: int) -> list:
    _check_window(op, *window)
    _check_input(op, input, input.shape)
    kernel, stride, pad, dilation = (window[i : i + 2] for i in (0, 2, 4, 6))
    size = [
        pool_output_size(input.shape[2 + i], kernel[i], stride[i], pad[i], dilation[i], ceil_mode)
        for i in (0, 1)
    ]
    check(
        size[0] > 0 and size[1] > 0,
        lambda: (
            f"{op}: input of size {list(input.shape)} with kernel_size={tuple(kernel)}, "
            f"padding={tuple(pad)}, dilation={tuple(dilation)} gives an output of size "
            f"({size[0]} x {size[1]}), which is too small"
        ),
    )
    return [*input.shape[:2], *size]


def _check_index(op: str, index: Tensor, size: Sequence) -> None:
    check(
        index.dtype in (torch.uint8, torch.int32, torch.int64),
        lambda: (
            f"{op}: expected index to be uint8 or int32 (within the window) or int64 (within the "
            f"plane), got {index.dtype}"
        ),
    )
    check_size(op, "index", index, size)


def _check_output(op: str, t: Tensor, height: int, width: int, window: Sequence) -> None:
    """That `t` has the output's size of an input of height x width, which either rounding gives."""
    _check_window(op, *window)
    kernel, stride, pad, dilation = (window[i : i + 2] for i in (0, 2, 4, 6))
    for i, size in enumerate((height, width)):
        down, up = (
            pool_output_size(size, kernel[i], stride[i], pad[i], dilation[i], ceil)
            for ceil in (0, 1)
        )
        found = t.shape[2 + i]
        check(
            (found == down or found == up) and found > 0,
            lambda down=down, up=up, i=i: (
                f"{op}: operand of size {list(t.shape)} must have {down} or {up} places along "
                f"axis {2 + i} for an input of ({height} x {width})"
            ),
        )


def _max_pool2d_fake(input, *window):
    return empty(input, _pool_shape("max_pool2d", input, window[:8], window[8]))


def _window_fake(input, *window):
    size = _pool_shape("max_pool2d", input, window[:8], window[8])
    byte = window[0] * window[1] <= 256
    return empty(input, size), empty(input, size, torch.uint8 if byte else torch.int32)


def _with_indices_fake(input, *window):
    size = _pool_shape("max_pool2d", input, window[:8], window[8])
    return empty(input, size), empty(input, size, torch.int64)


def _max_pool2d_grad_fake(grad, index, height, width, *window):
    size = [*grad.shape[:2], height, width]
    _check_input("max_pool2d_grad", grad, size)
    _check_output("max_pool2d_grad", grad, height, width, window)
    _check_index("max_pool2d_grad", index, grad.shape)
    return empty(grad, size)


def _max_pool2d_gather_fake(input, index, height, width, *window):
    _check_input("max_pool2d_gather", input, input.shape)
    check_size("max_pool2d_gather", "input", input, [*index.shape[:2], height, width])
    _check_output("max_pool2d_gather", index, height, width, window)
    _check_index("max_pool2d_gather", index, index.shape)
    return empty(input, index.shape)


def _avg_pool2d_fake(input, *settings):
    return empty(input, _pool_shape("avg_pool2d", input, (*settings[:6], 1, 1), settings[6]))


def _avg_pool2d_grad_fake(grad, height, width, *settings):
    size = [*grad.shape[:2], height, width]
    _check_input("avg_pool2d_grad", grad, size)
    _check_output("avg_pool2d_grad", grad, height, width, (*settings[:6], 1, 1))
    return empty(grad, size)


def _adaptive_fake(input, out_h, out_w):
    check(
        out_h >= 0 and out_w >= 0,
        lambda: f"adaptive_avg_pool2d: output_size must be non-negative, got ({out_h}, {out_w})",
    )
    _check_input("adaptive_avg_pool2d", input, input.shape)
    return empty(input, [*input.shape[:2], out_h, out_w])


def _adaptive_grad_fake(grad, height, width):
    size = [*grad.shape[:2], height, width]
    _check_input("adaptive_avg_pool2d_grad", grad, size)
    return empty(grad, size)


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


def _avg_pool2d_save(ctx, inputs, output):
    input, *ctx.settings = inputs
    ctx.size = input.shape[2:]


def _avg_pool2d_backward(ctx, grad):
    return (_avg_pool2d_grad(grad, *ctx.size, *ctx.settings), *[None] * 9)


def _avg_pool2d_grad_save(ctx, inputs, output):
    _, _, _, *ctx.settings = inputs


def _avg_pool2d_grad_backward(ctx, grad_dx):
    return (_avg_pool2d(grad_dx, *ctx.settings), *[None] * 11)


def _adaptive_save(ctx, inputs, output):
    ctx.size = inputs[0].shape[2:]


def _adaptive_backward(ctx, grad):
    return _adaptive_avg_pool2d_grad(grad, *ctx.size), None, None


def _adaptive_grad_backward(ctx, grad_dx):
    return _adaptive_avg_pool2d(grad_dx, *ctx.size), None, None


_max_pool2d = Op(
    "max_pool2d",
    _max_pool2d_fake,
    fold_batch("max_pool2d"),
    _max_pool2d_save,
    _max_pool2d_backward,
)
_max_pool2d_window = Op(
    "max_pool2d_window",
    _window_fake,
    fold_batch("max_pool2d_window"),
    _indexed_save,
    _indexed_backward,
)
_max_pool2d_with_indices = Op(
    "max_pool2d_with_indices",
    _with_indices_fake,
    fold_batch("max_pool2d_with_indices"),
    _indexed_save,
    _indexed_backward,
)
_max_pool2d_grad = Op(
    "max_pool2d_grad",
    _max_pool2d_grad_fake,
    fold_batch("max_pool2d_grad"),
    _index_save,
    _max_pool2d_grad_backward,
)
_max_pool2d_gather = Op(
    "max_pool2d_gather",
    _max_pool2d_gather_fake,
    fold_batch("max_pool2d_gather"),
    _index_save,
    _max_pool2d_gather_backward,
)
_avg_pool2d = Op(
    "avg_pool2d",
    _avg_pool2d_fake,
    fold_batch("avg_pool2d"),
    _avg_pool2d_save,
    _avg_pool2d_backward,
)
_avg_pool2d_grad = Op(
    "avg_pool2d_grad",
    _avg_pool2d_grad_fake,
    fold_batch("avg_pool2d_grad"),
    _avg_pool2d_grad_save,
    _avg_pool2d_grad_backward,
)
_adaptive_avg_pool2d = Op(
    "adaptive_avg_pool2d",
    _adaptive_fake,
    fold_batch("adaptive_avg_pool2d"),
    _adaptive_save,
    _adaptive_backward,
)
_adaptive_avg_pool2d_grad = Op(
    "adaptive_avg_pool2d_grad",
    _adaptive_grad_fake,
    fold_batch("adaptive_avg_pool2d_grad"),
    _adaptive_save,
    _adaptive_grad_backward,
)
