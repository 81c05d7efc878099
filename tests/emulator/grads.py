"""The gradients of the convolution as the torch side of the CUDA backend runs them, emulated."""

from __future__ import annotations

import torch
from torch import Tensor

from . import buffers
from .ops import SMALL_H100, emulated_cuda
from .simt import RUNS


def window(stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1) -> tuple[int, ...]:
    """The numbers of the ops' schema; `padding` is (h, w) or (top, left, bottom, right)."""
    return (*stride, *(padding if len(padding) == 4 else padding * 2), *dilation, groups)


def in_every_order(op: str, first: Tensor, second: Tensor | None, *arguments, gpu=SMALL_H100):
    """(output, kernels launched): the same to the bit under every order of fibers.

    The operands end, or begin, at a page that cannot be accessed; the output is poisoned before.
    """
    outputs = []
    for order, seed, right in RUNS:
        with (
            emulated_cuda(gpu, order, seed) as log,
            buffers(right, first=first, second=second) as b,
        ):
            tensors = [buffer.tensor for buffer in b.values() if buffer is not None]
            run = getattr(torch.ops.fastconv_emulated, f"{op}_raw")
            outputs.append(run(*tensors, *arguments))
        same = (outputs[-1] == outputs[0]) | (outputs[-1].isnan() & outputs[0].isnan())
        assert same.all(), f"{order} order differs from ascending in {int((~same).sum())}"
    return outputs[0], log


def input_grad(dy: Tensor, w: Tensor, size, tf32=False, gpu=SMALL_H100, **settings):
    """Of an input of (H, W) `size`."""
    return in_every_order(
        "conv2d_input_grad", dy, w, *size, *window(**settings), int(tf32), gpu=gpu
    )


def weight_grad(x: Tensor, dy: Tensor, size, tf32=False, gpu=SMALL_H100, **settings):
    """Of a kernel of (R, S) `size`."""
    return in_every_order(
        "conv2d_weight_grad", x, dy, *size, *window(**settings), int(tf32), gpu=gpu
    )


def bias_grad(dy: Tensor, gpu=SMALL_H100):
    return in_every_order("conv2d_bias_grad", dy, None, gpu=gpu)
