"""The gradients of the convolution as the torch side of the CUDA backend runs them, emulated."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from fastconv.ops.sizes import ACTIVATIONS

from . import buffers, configure, library
from .ops import SMALL_H100, emulated_cuda
from .simt import RUNS


def window(stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1) -> tuple[int, ...]:
    """The numbers of the ops' schema; `padding` is (h, w) or (top, left, bottom, right)."""
    return (*stride, *(padding if len(padding) == 4 else padding * 2), *dilation, groups)


@contextlib.contextmanager
def guard(right: bool):
    """Within it outputs and scratch of the emulated ops end, or begin, at a forbidden page.

    They are gone afterwards.
    """
    library().emulated_guard(1 if right else 2)
    try:
        yield
    finally:
        library().emulated_guard(0)
        library().emulated_release()


def in_every_order(op: str, *arguments, gpu=SMALL_H100):
    """(*outputs, kernels launched): the same to the bit under every order of fibers.

    Operands, outputs and scratch end, or begin, at a page that cannot be accessed, and no kernel
    may access anything else; outputs and scratch are poisoned before.
    """
    operands = {str(i): a for i, a in enumerate(arguments) if isinstance(a, Tensor)}
    results = []
    for order, seed, right in RUNS:
        with emulated_cuda(gpu, order, seed) as log, buffers(right, **operands) as b, guard(right):
            configure(order, seed, arch=gpu[0])
            given = [b[str(i)].tensor if str(i) in b else a for i, a in enumerate(arguments)]
            try:
                outputs = getattr(torch.ops.fastconv_emulated, f"{op}_raw")(*given)
            except RuntimeError as error:
                report = str(error)  # its frames hold tensors whose memory will be gone
            else:
                report = None
            assert report is None, report
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            results.append([t.clone(memory_format=torch.preserve_format) for t in outputs])
            del outputs
        for one, first in zip(results[-1], results[0], strict=True):
            same = (one == first) | (one.isnan() & first.isnan())
            assert same.all(), f"{order} order differs from ascending in {int((~same).sum())}"
    return *results[0], log


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
    return in_every_order("conv2d_bias_grad", dy, gpu=gpu)


def activation_bias_grad(dy: Tensor, y: Tensor, activation: str | None):
    """dz, its sums, log."""
    return in_every_order("activation_bias_grad", dy, y, ACTIVATIONS[activation])


def weight_bias_grad(
    x: Tensor,
    dy: Tensor,
    y: Tensor | None,
    size,
    activation: str | None,
    tf32=False,
    gpu=SMALL_H100,
    **settings,
):
    """dw, db, log; of the sum before the activation whose result `y` is."""
    return in_every_order(
        "conv2d_weight_bias_grad", x, dy, *size, *window(**settings), int(tf32), y,
        ACTIVATIONS[activation], gpu=gpu,
    )  # fmt: skip
