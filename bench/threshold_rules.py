"""The planner's measured rules: what each compares, and a grid of problems around its threshold.

A rule runs the first of its ``contestants`` where its number of a problem is below the threshold
and the second from it on (``above``: only over it). Numbers are those that csrc/plan.cpp and
csrc/cpu/winograd.h compare; tests/test_thresholds.py holds the two to each other.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from fastconv import _C
from fastconv.testing.compare import FACTORS
from fastconv.tune import Convolution

ROOT = Path(__file__).parents[1]
PLAN, FORMS = "csrc/plan.cpp", "csrc/cpu/winograd.h"
# Winograd of a 3x3, by the outputs of its tile, down and across.
TILES = {"F(2)": (2, 2), "F(4x2)": (4, 2), "F(4)": (4, 4)}
# "repacked" is a training step's forward, whose weights are packed in every call; "forward" an eval
# layer's, which keeps them packed.
GRADS = ("input_grad", "weight_grad")
ALL = ("forward", "repacked", *GRADS)


class Problem(NamedTuple):
    """A convolution of stride 1 or 2, padded by half its taps."""

    c: int
    k: int
    h: int
    w: int
    n: int = 1
    taps: int = 3
    stride: int = 1
    groups: int = 1
    bf16: bool = False

    def __str__(self) -> str:
        size = f"{self.h}" if self.h == self.w else f"{self.h}x{self.w}"
        text = f"{self.taps}x{self.taps}{f'/{self.stride}' if self.stride > 1 else ''}"
        if self.groups == self.c:
            return f"{text} depthwise {self.c} @{size}"
        text += f" {self.c}->{self.k} @{size}"
        text += f" groups {self.groups}" if self.groups > 1 else ""
        text += f" batch {self.n}" if self.n > 1 else ""
        return text + " bfloat16" * self.bf16

    def convolution(self, direction: str, layout: str) -> Convolution:
        return Convolution(
            "forward" if direction == "repacked" else direction,
            (self.n, self.c, self.h, self.w),
            (self.k, self.c // self.groups, self.taps, self.taps),
            (self.stride,) * 2 + (self.taps // 2,) * 4 + (1, 1, self.groups),
            torch.bfloat16 if self.bf16 else torch.float32,
            layout == "channels_last",
        )


def channels(p: Problem) -> int:
    return min(p.c, p.k) // p.groups


def outputs(p: Problem) -> int:
    return p.n * -(-p.h // p.stride) * -(-p.w // p.stride)


def weight_megabytes(p: Problem) -> float:
    """Of Winograd's 36 matrices of weights for tiles of 4 x 4 outputs."""
    return p.c * p.k * 36 * 4 / 2**20


def percent_of_products(p: Problem) -> float:
    """Of Winograd's input gradient of stride 2: its products over a direct kernel's."""

    def tiled(inputs: int) -> int:
        pairs = -(-inputs // 2)
        return pairs // 2 * 5 + pairs % 2 * 4

    def direct(inputs: int) -> int:
        return inputs // 2 * 3 + inputs % 2

    return 100 * tiled(p.h) * tiled(p.w) / (direct(p.h) * direct(p.w))


@dataclass(frozen=True)
class Rule:
    name: str
    constant: str  # "": the order of the planner's rows is the rule
    file: str
    number: str  # what is compared with the threshold, in words
    of: Callable[[Problem], float]
    contestants: tuple[str, str]  # below the threshold, and from it on
    problems: tuple[Problem, ...]
    directions: tuple[str, ...]
    above: bool = False  # the second runs over the threshold only, not at it
    error_limit: float | None = None  # a rule of exactness: times torch's own error
    most_lanes: bool = False  # the threshold is at most the float32 lanes of a vector
    fits: Callable[[Problem], bool] = lambda p: True  # those of the instruction set that runs

    def rare(self) -> bool:
        """Whether it is of dot products of bfloat16, which few processors have."""
        return self.problems[0].bf16

    def source(self) -> int:
        """The threshold in the source; 0, always, where the order of rows is the rule."""
        if not self.constant:
            return 0
        found = re.search(rf"int64_t {self.constant} = (\d+);", (ROOT / self.file).read_text())
        if not found:
            raise ValueError(f"{self.file} has no constant {self.constant}")
        return min(int(found[1]), _C.cpu_lanes()) if self.most_lanes else int(found[1])


def squares(sizes: tuple, channels: tuple, **more) -> tuple[Problem, ...]:
    """Every pair of channels on every map; a size is that of a square or (height, width)."""
    return tuple(
        Problem(*pair, *(size if isinstance(size, tuple) else (size, size)), **more)
        for pair in channels
        for size in sizes
    )


# NOTE problems take 2 ms at most where they can: in a longer call a busy machine's time slices are
# part of every sample.

# Around whole vectors of 8 and 16 channels; beside many channels, in groups, and of 5x5.
FEW = (4, 6, 8, 12, 16, 24)
WINOGRAD_CHANNELS = (
    *(Problem(n, n, 14, 14) for n in FEW),
    *(Problem(n, n, 56, 56) for n in FEW),
    *(Problem(n, 64, 28, 28) for n in FEW),
    *(Problem(64, n, 28, 28) for n in FEW),
    *(Problem(4 * n, 8 * n, 28, 28, groups=4) for n in FEW),
    *(Problem(n, n, 28, 28, taps=5) for n in FEW),
)
WEIGHT_GRAD_CHANNELS = tuple(
    Problem(n, n, size, size) for size in (14, 28, 56) for n in (2, 3, *FEW)
)
STRIDED_CHANNELS = tuple(
    Problem(n, times * n, size, size, stride=2)
    for times, size in ((1, 28), (2, 28), (1, 56))
    for n in (8, 16, 24, 32, 40, 48, 64)
)
# Maps of 3 x 3 to 7 x 7; with 256 channels the weights are what counts.
LEAST_PIXELS = (
    *squares((3, (3, 4), (3, 5), 4, (4, 5), 5, 6, 7), ((64, 64), (256, 256))),
    Problem(128, 128, 3, 3, n=2),
    Problem(128, 128, 3, 3, n=4),
)
# Products of Winograd's input gradient, 69 to 165 % of a direct kernel's.
STRIDED_PERCENT = tuple(
    Problem(*pair, *size, n=n, stride=2)
    for pair in ((64, 64), (64, 128))
    for n, *size in (
        (1, 28, 28), (1, 55, 55), (2, 28, 22), (2, 28, 14), (1, 30, 30), (1, 31, 31), (2, 26, 26),
        (1, 27, 27), (2, 22, 22), (3, 18, 18), (1, 37, 37), (1, 33, 33), (4, 14, 14),
        (6, 10, 10), (4, 13, 13), (8, 7, 7), (16, 6, 6), (8, 9, 9), (16, 5, 5),
    )
)  # fmt: skip
GRAD_5X5 = (
    *squares((7, 14, (16, 24), (16, 32), 27, 32), ((16, 16), (48, 48)), taps=5),
    *(Problem(48, 48, 14, 14, n=n, taps=5) for n in (2, 3, 4)),
    *(Problem(48, 48, 7, 7, n=n, taps=5) for n in (8, 11, 16)),
)
WINOGRAD_TILES = squares((7, (7, 8), 8, 9, 10, 12, 14), ((64, 64), (256, 256)))
MIXED_TILES = squares((4, (4, 5), 5, (5, 6), 6, (6, 7), 7), ((64, 64), (256, 256)))
STRIDED_TILES = squares((14, 20, 28, 32, 36, 40, 56), ((64, 64), (128, 128)), stride=2)
FOLDED = tuple(
    Problem(3, k, size, size, taps=taps, stride=stride)
    for taps, stride, size in ((7, 2, 56), (7, 2, 112), (11, 4, 99), (5, 2, 56))
    for k in (4, 8, 12, 16, 24, 32, 64)
)
# Of bfloat16, where Winograd works in float32.
FOLDED_DOTS = tuple(p._replace(bf16=True) for p in FOLDED if p.k > 16) + tuple(
    Problem(3, k, 224, 224, taps=taps, stride=stride, bf16=True)
    for taps, stride in ((7, 2), (11, 4))
    for k in (32, 48, 64, 96)
)
DOTS = squares((4, 5, (5, 6), 6, 7, 8, 9, 10), ((64, 64), (128, 128)), bf16=True)
STRIDED_DOTS = squares(
    (12, 16, 20, 24, 28, 32, 36, 40, 48, 56), ((64, 64), (128, 128)), stride=2, bf16=True
)
DOTS_5X5 = tuple(
    Problem(n, times * n, size, size, taps=5, bf16=True)
    for times, size in ((1, 14), (2, 28))
    for n in (12, 16, 20, 24, 32, 48)
)

RULES = (
    Rule(
        "winograd channels", "kWinogradChannels", PLAN, "least channels per group", channels,
        ("direct", "winograd"), WINOGRAD_CHANNELS, ("forward", "input_grad"), most_lanes=True,
    ),
    Rule(
        "winograd channels, weight gradient", "kWeightGradChannels", PLAN,
        "least channels per group", channels,
        ("direct", "winograd"), WEIGHT_GRAD_CHANNELS, ("weight_grad",),
    ),
    Rule(
        "strided winograd channels", "kStridedChannels", PLAN, "least channels per group", channels,
        ("direct", "winograd"), STRIDED_CHANNELS, ("forward", "weight_grad"),
    ),
    Rule(
        "strided winograd channels, input gradient", "kStridedGradChannels", PLAN,
        "least channels per group", channels,
        ("direct", "winograd"), STRIDED_CHANNELS, ("input_grad",),
    ),
    Rule(
        "winograd pixels", "kLeastPixels", PLAN, "pixels", outputs,
        ("direct", "winograd"), LEAST_PIXELS, ALL,
    ),
    Rule(
        "5x5 weight gradient error", "kWeightGrad5x5Pixels", PLAN, "outputs", outputs,
        ("direct", "winograd"), GRAD_5X5,
        ("weight_grad",), error_limit=FACTORS["winograd"],
    ),
    Rule(
        "strided input gradient products", "kStridedGradPercent", PLAN, "% of the products",
        percent_of_products, ("winograd", "direct"), STRIDED_PERCENT, ("input_grad",), above=True,
    ),
    Rule(
        "winograd tile", "kWinogradPixels", FORMS, "outputs", outputs,
        ("F(4x2)", "F(4)"), WINOGRAD_TILES, ("repacked", "input_grad"),
    ),
    Rule(
        "mixed winograd tile", "kMixedPixels", FORMS, "outputs", outputs,
        ("F(2)", "F(4x2)"), MIXED_TILES, ("repacked", "input_grad"),
    ),
    Rule(
        "winograd tile, weight gradient", "kGradPixels", FORMS, "outputs", outputs,
        ("F(2)", "F(4)"), WINOGRAD_TILES, ("weight_grad",),
    ),
    Rule(
        "winograd tile, kept weights", "kKeptMegabytes", FORMS, "MB of F(4)'s weights",
        weight_megabytes, ("F(4)", "F(4x2)"),
        squares(
            (7, (7, 8)),
            ((64, 64), (128, 256), (256, 256), (320, 320), (384, 384), (512, 512)),
        ),
        ("forward",),
    ),
    Rule(
        "mixed winograd tile, kept weights", "kMixedMegabytes", FORMS, "MB of F(4)'s weights",
        weight_megabytes, ("F(4x2)", "F(2)"),
        squares((7, (7, 8)), ((384, 384), (384, 512), (512, 512), (512, 640), (640, 640))),
        ("forward",),
    ),
    Rule(
        "strided winograd tile", "kStridedPixels", FORMS, "outputs", outputs,
        ("F(2)", "F(4)"), STRIDED_TILES, ("forward", "repacked"),
    ),
    Rule(
        "strided winograd tile, weight gradient", "kStridedGradPixels", FORMS, "outputs", outputs,
        ("F(2)", "F(4)"), STRIDED_TILES, ("weight_grad",),
    ),
    Rule(
        "folded strides, outputs", "kFoldedOutputs", PLAN, "output channels", lambda p: p.k,
        ("direct", "winograd"), FOLDED, ("forward", "repacked", "weight_grad"),
    ),
    Rule(
        "folded strides, dot products", "kFoldedDotOutputs", PLAN, "output channels", lambda p: p.k,
        ("direct", "winograd"), FOLDED_DOTS, ("forward", "repacked"),
    ),
    Rule(
        "conv1x1", "", PLAN, "outputs", outputs, ("direct", "conv1x1"),
        squares((4, 7, 14, 28), ((16, 16), (64, 256), (256, 64)), taps=1), ("forward", *GRADS),
    ),
    Rule(
        "depthwise", "", PLAN, "outputs", outputs, ("direct", "depthwise"),
        tuple(
            Problem(c, c, size, size, taps=taps, stride=stride, groups=c)
            for taps, stride in ((3, 1), (3, 2), (5, 1))
            for c, size in ((256, 4), (256, 7), (128, 14), (64, 28), (32, 56))
        ),
        ("forward", *GRADS),
    ),
    Rule(
        "grouped", "", PLAN, "channels per group", channels, ("winograd", "grouped"),
        tuple(
            Problem(c, c, size, size, groups=c // width)
            for width in (2, 4)
            for c, size in ((256, 7), (128, 14), (64, 28), (32, 56))
        ),
        ("forward", *GRADS),
    ),
    Rule(
        "groups of a vector", "kVectorGroups", PLAN, "outputs times the lanes of a vector",
        lambda p: outputs(p) * _C.cpu_lanes(), ("grouped", "winograd"),
        tuple(
            Problem(c, c, size, size, groups=c // width)
            for width in (8, 16)
            for c, size in ((512, 7), (256, 10), (128, 14), (128, 20), (64, 28), (64, 56))
        ),
        ("forward", *GRADS), fits=lambda p: channels(p) == _C.cpu_lanes(),
    ),
    Rule(
        "dot products, outputs", "kDotPixels", PLAN, "outputs", outputs, ("direct", "winograd"),
        DOTS, ("forward", "repacked", "input_grad"), fits=lambda p: _C.bf16_dots(),
    ),
    Rule(
        "dot products, strided input gradient", "kDotStridedPixels", PLAN, "outputs", outputs,
        ("winograd", "direct"), STRIDED_DOTS, ("input_grad",), fits=lambda p: _C.bf16_dots(),
    ),
    Rule(
        "dot products, 5x5 channels", "kDot5x5Channels", PLAN, "least channels", channels,
        ("direct", "winograd"), DOTS_5X5, ("forward", "repacked", "input_grad"),
        fits=lambda p: _C.bf16_dots(),
    ),
)  # fmt: skip
