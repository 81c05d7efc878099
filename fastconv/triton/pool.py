"""Torch side of pooling: tensors to the arguments of the kernels.

Each function fills the output that it is given; values were checked when that was made.
"""

from __future__ import annotations

import torch

from .avg_pool import avg_pool, avg_pool_grad, avg_pool_large
from .launch import block, cdiv, is_wide, launch, strides, unit
from .max_pool import max_pool, max_pool_gather, max_pool_grad, max_pool_grad_patches
from .tiles import MOST_TAPS, taps_at_once

LARGE = 64  # places from which on a window has a block of its own


def max_pool2d(y, input, *settings) -> None:
    _max_pool(input, y, None, settings)


def max_pool2d_window(outputs, input, *settings) -> None:
    _max_pool(input, *outputs, settings)


max_pool2d_with_indices = max_pool2d_window


def _index_kind(index) -> int:
    return 0 if index is None else 2 if index.dtype == torch.int64 else 1


def _max_pool(x, y, index, settings) -> None:
    n, c, p, q = y.shape
    by = unit(x, c, y, index)
    bm, bc = block(y, x, index)
    launch(
        max_pool, (cdiv(n * p * q, bm) * cdiv(c, bc),), x, x, y, index, n, c // by, *x.shape[2:],
        p, q, *strides(x, by), *strides(y, by), *strides(index, by), *settings[4:6],
        **_window(settings[:2], settings[2:4], settings[6:8]), **taps_at_once(*settings[:2]),
        UNIT=by, INDEX=_index_kind(index), WIDE=_wide(x, y, settings), BM=bm, BC=bc, num_warps=4,
    )  # fmt: skip


def max_pool2d_grad(dx, grad, index, height, width, *window) -> None:
    kernel, stride, _, dilation = _pairs(window)
    cover = [cdiv(d * (k - 1) + 1, s) for k, s, d in zip(kernel, stride, dilation, strict=True)]
    n, c = grad.shape[:2]
    by = unit(grad, c, index, dx)
    bm, bc = block(dx, grad, index)
    pads = window[4:6]
    places = *strides(grad, by), *strides(index, by), *strides(dx, by), *pads
    constants = dict(
        **_window(kernel, stride, dilation), windows_h=cover[0], windows_w=cover[1], UNIT=by,
        WIDE=_wide(dx, grad, window), BM=bm, BC=bc, num_warps=4,
    )  # fmt: skip
    if _index_kind(index) == 1 and max(stride) == 2 and cover[0] * cover[1] <= MOST_TAPS:
        sizes = [cdiv(d + pad, s) for d, pad, s in zip((height, width), pads, stride, strict=True)]
        launch(
            max_pool_grad_patches, (cdiv(n * sizes[0] * sizes[1], bm) * cdiv(c, bc),), grad, grad,
            index, dx, n, c // by, height, width, *grad.shape[2:], *sizes, *places, **constants,
        )  # fmt: skip
        return
    launch(
        max_pool_grad, (cdiv(n * height * width, bm) * cdiv(c, bc),), grad, grad, index, dx,
        n, c // by, height, width, *grad.shape[2:], *places, **taps_at_once(*cover),
        INDEX=_index_kind(index), **constants,
    )  # fmt: skip


def max_pool2d_gather(y, input, index, height, width, *window) -> None:
    n, c, p, q = y.shape
    by = unit(input, c, index, y)
    bm, bc = block(y, input, index)
    launch(
        max_pool_gather, (cdiv(n * p * q, bm) * cdiv(c, bc),), input, input, index, y,
        n, c // by, height, width, p, q, *strides(input, by), *strides(index, by), *strides(y, by),
        window[1], *window[2:],
        UNIT=by, INDEX=_index_kind(index), WIDE=_wide(input, y, window), BM=bm, BC=bc, num_warps=4,
    )  # fmt: skip


def avg_pool2d(y, input, *settings) -> None:
    _avg_pool(input, y, settings[:6], adaptive=False, count_pad=settings[7], divisor=settings[8])


def avg_pool2d_grad(dx, grad, height, width, *settings) -> None:
    kernel, stride, *_ = _pairs(settings[:6])
    cover = [cdiv(k, s) for k, s in zip(kernel, stride, strict=True)]
    _avg_pool_grad(grad, dx, settings[:6], cover, False, settings[7], settings[8])


def _adaptive_window(x, y) -> tuple[int, ...]:
    """The most places of a window, at stride 1 without padding."""
    largest = [cdiv(a, b) + (a % b != 0) for a, b in zip(x.shape[2:], y.shape[2:], strict=True)]
    return (*largest, 1, 1, 0, 0)


def adaptive_avg_pool2d(y, input, out_h, out_w) -> None:
    if y.numel():
        _avg_pool(input, y, _adaptive_window(input, y), adaptive=True, count_pad=0, divisor=0)


def adaptive_avg_pool2d_grad(dx, grad, height, width) -> None:
    if grad.numel() == 0:
        dx.zero_()
        return
    cover = [b // a + 2 for a, b in zip(dx.shape[2:], grad.shape[2:], strict=True)]
    _avg_pool_grad(grad, dx, _adaptive_window(dx, grad), cover, True, 0, 0)


def _avg_pool(x, y, window, adaptive, count_pad, divisor) -> None:
    n, c, p, q = y.shape
    by = unit(x, c, y)
    kernel, stride, pad = _pairs(window)
    large = kernel[0] * kernel[1] >= LARGE
    bm, bc = block(x if large else y, y if large else x)
    places = (c // by, *x.shape[2:], p, q, *strides(x, by), *strides(y, by))
    constants = dict(
        UNIT=by, ADAPTIVE=adaptive, COUNT_PAD=bool(count_pad), BM=bm, BC=bc,
        WIDE=_wide(x, y, window, adaptive), num_warps=4,
    )  # fmt: skip
    if large:
        launch(
            avg_pool_large, (n * p * q * cdiv(c, bc),), x, x, y, *places, *window, divisor,
            **constants,
        )  # fmt: skip
    else:
        launch(
            avg_pool, (cdiv(n * p * q, bm) * cdiv(c, bc),), x, x, y, n, *places, *pad, divisor,
            **_window(kernel, stride), **taps_at_once(*kernel), **constants,
        )  # fmt: skip


def _avg_pool_grad(dy, dx, window, cover, adaptive, count_pad, divisor) -> None:
    n, c, h, w = dx.shape
    by = unit(dy, c, dx)
    kernel, stride, pad = _pairs(window)
    bm, bc = block(dx, dy)
    launch(
        avg_pool_grad, (cdiv(n * h * w, bm) * cdiv(c, bc),), dy, dy, dx, n, c // by, h, w,
        *dy.shape[2:], *strides(dy, by), *strides(dx, by), *pad, divisor,
        **_window(kernel, stride), **taps_at_once(*cover), windows_h=cover[0], windows_w=cover[1],
        UNIT=by, ADAPTIVE=adaptive, COUNT_PAD=bool(count_pad),
        WIDE=_wide(dx, dy, window, adaptive), BM=bm, BC=bc, num_warps=4,
    )  # fmt: skip


def _window(kernel, stride, dilation=None) -> dict[str, int]:
    """A window's constexprs: its taps are unrolled, and nothing is divided by a variable."""
    named = dict(R=kernel[0], S=kernel[1], stride_h=stride[0], stride_w=stride[1])
    return named | (dict(dil_h=dilation[0], dil_w=dilation[1]) if dilation else {})


def _pairs(window):
    return tuple(window[i : i + 2] for i in range(0, len(window), 2))


def _wide(x, y, window, adaptive=False) -> bool:
    (n, _, h, w), (p, q), (pad_h, pad_w) = x.shape, y.shape[2:], window[4:6]
    sides = ((h + 1, p + 1), (w + 1, q + 1)) if adaptive else ()  # multiplied by window_of
    return is_wide(n, (h + 2 * pad_h, w + 2 * pad_w), (p, q)) or is_wide(1, *sides)
