"""One convolution's sizes, and which algorithm runs it: pure functions, as csrc/problem.h and
csrc/plan.cpp are for the other backends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

FORWARD, INPUT_GRAD, WEIGHT_GRAD = "forward", "input_grad", "weight_grad"


class ConvProblem(NamedTuple):
    """The letters of csrc/problem.h; `precision` is 1 where float32 may be multiplied in tf32."""

    N: int
    C: int
    H: int
    W: int
    K: int
    R: int
    S: int
    P: int
    Q: int
    stride_h: int
    stride_w: int
    pad_t: int
    pad_l: int
    pad_b: int
    pad_r: int
    dil_h: int
    dil_w: int
    G: int
    dtype: torch.dtype
    precision: int

    @property
    def strides(self) -> tuple[int, int]:
        return self.stride_h, self.stride_w

    @property
    def is_read_as_it_lies(self) -> bool:
        """Whether operands are not copied into rows of channels for tensor cores."""
        return self.dtype == torch.float64 or self.N * self.H * self.W >= 1 << 31


def _refuse_conv1x1(p: ConvProblem, direction: str) -> str | None:
    if p.R != 1 or p.S != 1:
        return "the kernel is larger than 1x1"
    if p.pad_t or p.pad_l or p.pad_b or p.pad_r:
        return "a padded 1x1 reads outside the input"
    if p.G != 1:
        return "groups split the GEMM"
    if direction == INPUT_GRAD and (p.stride_h > 1 or p.stride_w > 1):
        return "the gradient of a strided 1x1 is written by stride phase"
    return None


def _refuse_stem(p: ConvProblem, direction: str) -> str | None:
    if direction == INPUT_GRAD:
        return "its reduction runs over the output channels"
    if p.is_read_as_it_lies:
        return "float64, and inputs of 2^31 pixels, are not copied"
    if p.C > 4:
        return "more than 4 input channels"
    if p.G != 1:
        return "groups split the filter's rows"
    if p.dil_w != 1:
        return "a dilated row of the filter is not contiguous"
    if p.S > 32:
        return "a row of the filter is longer than 128 elements"
    return None


def _refuse_depthwise(p: ConvProblem, direction: str) -> str | None:
    if p.G == 1:
        return "a single group"
    summed = (p.K if direction == INPUT_GRAD else p.C) // p.G
    return None if summed < 8 else "8 and more channels per group are summed: a GEMM"


def _refuse_implicit_gemm(p: ConvProblem, direction: str) -> str | None:
    return None


# Ordered: the first row that does not refuse is the plan. The last takes everything.
ROWS: dict[str, Callable[[ConvProblem, str], str | None]] = {
    "conv1x1": _refuse_conv1x1,
    "stem": _refuse_stem,
    "depthwise": _refuse_depthwise,
    "implicit_gemm": _refuse_implicit_gemm,
}


def problem_of(input, weight, output, window, precision) -> ConvProblem:
    """That of three tensors; `window` is stride, pad (t, l, b, r), dilation, groups."""
    return ConvProblem(
        *input.shape, weight.shape[0], *weight.shape[2:], *output.shape[2:], *window,
        input.dtype, precision,
    )  # fmt: skip


DIRECTIONS = (FORWARD, INPUT_GRAD, WEIGHT_GRAD)
_ran: set[tuple[str, str]] = set()


def plan(p: ConvProblem, direction: str) -> str:
    """The algorithm of a problem."""
    name = next(name for name, refuse in ROWS.items() if refuse(p, direction) is None)
    _ran.add((name, direction))
    return name


def executed() -> list[tuple[str, bool]]:
    """Rows by direction, and whether each has run in this process: tests fail on one that never
    did."""
    return [
        (f"triton {name} {direction}", (name, direction) in _ran)
        for name in ROWS
        for direction in DIRECTIONS
        if (name, direction) != ("stem", INPUT_GRAD)
    ]
