"""Arguments and sizes in Python: parsing, and the formulas of the fake kernels.

The formulas mirror csrc/problem.h (a property test compares them); values are checked there, and
here only for tensors without data.
"""

from __future__ import annotations

import operator
import types
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

ACTIVATIONS = {None: 0, "relu": 1, "sigmoid": 2}


def activation_code(activation: str | None) -> int:
    """0, 1 or 2 for None, "relu" or "sigmoid".

    Raises:
        ValueError: any other activation.
    """
    try:
        return ACTIVATIONS[activation]
    except (KeyError, TypeError):
        raise ValueError(
            f'activation must be None, "relu" or "sigmoid", got {activation!r}'
        ) from None


def _integer(value: Any, name: str) -> int:
    if isinstance(value, bool):
        raise TypeError(f"{name} must be an int or a pair of ints, got {value!r}")
    if isinstance(value, (int, torch.SymInt)):
        return value
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int or a pair of ints, got {value!r}") from None


def pair(value: int | Sequence[int], name: str) -> tuple[int, int]:
    """(h, w) of an int, a 1-tuple or a pair.

    Raises:
        TypeError: not integers. ValueError: another number of them.
    """
    if isinstance(value, (tuple, list)):
        if len(value) == 1:
            value = (value[0], value[0])
        if len(value) != 2:
            raise ValueError(f"{name} must be an int or a pair of ints, got {value!r}")
        return _integer(value[0], name), _integer(value[1], name)
    size = _integer(value, name)
    return size, size


def conv_padding(
    padding: int | str | Sequence[int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
) -> tuple[int, int, int, int]:
    """(top, left, bottom, right). "same" pads dilation * (k - 1) in all, the odd one at the end.

    Raises:
        ValueError: an unknown word. RuntimeError: "same" with a stride, as torch.
    """
    if isinstance(padding, str):
        if padding == "valid":
            return 0, 0, 0, 0
        if padding != "same":
            raise ValueError(f'padding must be ints, "same" or "valid", got {padding!r}')
        if stride[0] != 1 or stride[1] != 1:
            raise RuntimeError(f'padding="same" is not supported with stride={tuple(stride)}')
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        before = [t // 2 for t in total]
        return before[0], before[1], total[0] - before[0], total[1] - before[1]
    top, left = pair(padding, "padding")
    return top, left, top, left


def conv_output_size(size: int, k: int, stride: int, before: int, after: int, dilation: int) -> int:
    """floor((size + before + after - dilation * (k - 1) - 1) / stride) + 1."""
    return (size + before + after - dilation * (k - 1) - 1) // stride + 1


def conv_shape(input: Sequence, weight: Sequence, window: Sequence) -> list:
    """[N, K, P, Q] of a convolution; `window` is stride, pad (t, l, b, r), dilation, groups.

    Raises:
        RuntimeError: sizes that do not fit.
    """
    (n, c, h, w), (k, cg, r, s) = input, weight
    sh, sw, top, left, bottom, right, dh, dw, groups = window
    check(sh > 0 and sw > 0, lambda: f"conv2d: stride must be positive, got ({sh}, {sw})")
    check(dh > 0 and dw > 0, lambda: f"conv2d: dilation must be positive, got ({dh}, {dw})")
    check(
        min(top, left, bottom, right) >= 0,
        lambda: f"conv2d: padding must not be negative, got ({top}, {left})",
    )
    check(groups > 0, lambda: f"conv2d: groups must be positive, got {groups}")
    check(
        c == cg * groups,
        lambda: (
            f"conv2d: weight of size {list(weight)} has {cg} input channels per group, but "
            f"input of size {list(input)} has {c} channels in {groups} groups"
        ),
    )
    check(
        k % groups == 0,
        lambda: (
            f"conv2d: {k} output channels (weight of size {list(weight)}) are not divisible "
            f"by groups={groups}"
        ),
    )
    p = conv_output_size(h, r, sh, top, bottom, dh)
    q = conv_output_size(w, s, sw, left, right, dw)
    check(
        h + top + bottom >= dh * (r - 1) + 1 and w + left + right >= dw * (s - 1) + 1,
        lambda: (
            f"conv2d: kernel of size ({dh * (r - 1) + 1} x {dw * (s - 1) + 1}, with dilation) "
            f"is larger than the padded input of size ({h + top + bottom} x {w + left + right})"
        ),
    )
    return [n, k, p, q]


def check(condition: bool, message) -> None:
    """Raises RuntimeError, with symbolic sizes too."""
    if condition is not True:  # torch's own check of a bool costs a microsecond
        torch._check(condition, message)


def check_size(op: str, name: str, t: Tensor, size: Sequence) -> None:
    """RuntimeError unless the tensor has this size."""
    check(
        t.dim() == len(size) and all(a == b for a, b in zip(t.shape, size, strict=True)),
        lambda: f"{op}: {name} of size {list(t.shape)} must have size {list(size)}",
    )


def empty(like: Tensor, size: Sequence, dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised tensor of 4 dimensions in the memory format of `like`."""
    order = (0, 2, 3, 1) if suggest_memory_format(like) == torch.channels_last else (0, 1, 2, 3)
    # NOTE not `torch.empty` of a memory format: Inductor makes that dense in NCHW, then copies it.
    return torch.empty_permuted(size, order, dtype=dtype or like.dtype, device=like.device)


DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)  # of csrc/problem.h


def check_dtype(op: str, t: Tensor) -> None:
    """RuntimeError unless there are kernels of the tensor's dtype."""
    check(
        t.dtype in DTYPES,
        lambda: (
            f"{op}: expected a float32, float64, bfloat16 or float16 tensor; other dtypes are "
            "not supported"
        ),
    )


def batched(input: Tensor, name: str) -> tuple[Tensor, bool]:
    """The input with a batch dimension, and whether one was added.

    Raises:
        RuntimeError: neither 3 nor 4 dimensions.
    """
    if input.dim() == 4:
        return input, False
    if input.dim() == 3:
        return input.unsqueeze(0), True
    raise RuntimeError(
        f"{name}: expected a 3-D (C, H, W) or 4-D (N, C, H, W) input, got size {list(input.shape)}"
    )


class _Switches(types.ModuleType):
    """torch's switches as attributes of a module: torch.compile reads those, and compiles again
    when one has another value. It refuses the object in which torch keeps them."""

    @property
    def tf32(self) -> bool:
        return torch.backends.cudnn.conv.fp32_precision == "tf32"


_switches = _Switches("switches")


def allows_tf32() -> bool:
    """torch's switch for convolutions: float32 on CUDA may be multiplied in tf32."""
    return _switches.tf32


def autocast_enabled(t: Tensor) -> bool:
    """Whether autocast is on for the tensor's device; the meta device has no such state."""
    device = t.device.type
    return device != "meta" and torch.is_autocast_enabled(device)
