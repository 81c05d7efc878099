"""Fake kernels of the pooling ops: csrc/pool_problem.cpp again, for tensors without data."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .sizes import check, check_dtype, check_size, empty


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


def _check_index(op: str, index: Tensor, name: str, values: Tensor, size: Sequence) -> None:
    check(
        index.device == values.device,
        lambda: f"{op}: index and {name} are on different devices",
    )
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


def max_pool2d(input, *window):
    return empty(input, _pool_shape("max_pool2d", input, window[:8], window[8]))


def window(input, *window):
    size = _pool_shape("max_pool2d", input, window[:8], window[8])
    byte = window[0] * window[1] <= 256
    return empty(input, size), empty(input, size, torch.uint8 if byte else torch.int32)


def with_indices(input, *window):
    size = _pool_shape("max_pool2d", input, window[:8], window[8])
    return empty(input, size), empty(input, size, torch.int64)


def max_pool2d_grad(grad, index, height, width, *window):
    size = [*grad.shape[:2], height, width]
    _check_input("max_pool2d_grad", grad, size)
    _check_output("max_pool2d_grad", grad, height, width, window)
    _check_index("max_pool2d_grad", index, "grad", grad, grad.shape)
    return empty(index, size, grad.dtype)


def max_pool2d_gather(input, index, height, width, *window):
    _check_input("max_pool2d_gather", input, input.shape)
    check_size("max_pool2d_gather", "input", input, [*index.shape[:2], height, width])
    _check_output("max_pool2d_gather", index, height, width, window)
    _check_index("max_pool2d_gather", index, "input", input, index.shape)
    return empty(input, index.shape)


def avg_pool2d(input, *settings):
    return empty(input, _pool_shape("avg_pool2d", input, (*settings[:6], 1, 1), settings[6]))


def avg_pool2d_grad(grad, height, width, *settings):
    size = [*grad.shape[:2], height, width]
    _check_input("avg_pool2d_grad", grad, size)
    _check_output("avg_pool2d_grad", grad, height, width, (*settings[:6], 1, 1))
    return empty(grad, size)


def adaptive(input, out_h, out_w):
    check(
        out_h >= 0 and out_w >= 0,
        lambda: f"adaptive_avg_pool2d: output_size must be non-negative, got ({out_h}, {out_w})",
    )
    _check_input("adaptive_avg_pool2d", input, input.shape)
    return empty(input, [*input.shape[:2], out_h, out_w])


def adaptive_grad(grad, height, width):
    size = [*grad.shape[:2], height, width]
    _check_input("adaptive_avg_pool2d_grad", grad, size)
    return empty(grad, size)
