"""The product's CUDA kernels under the emulator, with tensors in and out."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from fastconv.explain import DIRECTIONS
from fastconv.ops.sizes import ACTIVATIONS

from . import buffers, configure, library

MATHS = ("f16", "bf16", "tf32", "f32")
DTYPES = dict(
    zip(MATHS, (torch.float16, torch.bfloat16, torch.float32, torch.float32), strict=True)
)

_I64, _I32, _P = ctypes.c_int64, ctypes.c_int32, ctypes.c_void_p


class Problem(ctypes.Structure):
    """ConvProblem of csrc/problem.h."""

    _fields_ = [
        *((name, _I64) for name in "N C H W K R S P Q G stride_h stride_w".split()),
        *((name, _I64) for name in "pad_t pad_l pad_b pad_r dil_h dil_w".split()),
        *((name, _I32) for name in ("dtype", "activation")),
    ]


class Operands(ctypes.Structure):
    """ConvOperands of csrc/cuda/conv_params.h."""

    _fields_ = [
        *((name, _P) for name in "x w bias residual y partial".split()),
        *((name, _I64) for name in "x_pixel y_pixel residual_pixel".split()),
    ]


class Tile(ctypes.Structure):
    """Tile of csrc/cuda/tiles.h."""

    _fields_ = [(name, _I32) for name in "bm bn bk wm wn stages blocks registers".split()]

    def __str__(self):
        return f"{self.bm}x{self.bn}x{self.bk}_s{self.stages}"


class Device(ctypes.Structure):
    """Device of csrc/cuda/tiles.h."""

    _fields_ = [
        *((name, _I32) for name in "arch sms shared_per_sm l2".split()),
        *((name, ctypes.c_float) for name in ("clock", "bandwidth")),
    ]


class Choice(ctypes.Structure):
    """TileChoice of csrc/cuda/tile_choice.h."""

    _fields_ = [
        *((name, _I32) for name in "tile splits split_depth".split()),
        *((name, ctypes.c_float) for name in ("waves", "cycles")),
    ]


def tiles(math: str, direction: str = "forward") -> list[Tile]:
    code, d = MATHS.index(math), DIRECTIONS.index(direction)
    rows = [Tile() for _ in range(library().tiles(code, d))]
    for i, row in enumerate(rows):
        library().tile(code, i, d, ctypes.byref(row))
    return rows


def problem(x, w, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1, activation=None):
    """Of tensor sizes; `padding` is (h, w) or (top, left, bottom, right)."""
    (N, C, H, W), (K, _, R, S) = x, w
    top, left, bottom, right = padding if len(padding) == 4 else padding * 2
    P = (H + top + bottom - dilation[0] * (R - 1) - 1) // stride[0] + 1
    Q = (W + left + right - dilation[1] * (S - 1) - 1) // stride[1] + 1
    sizes = (N, C, H, W, K, R, S, P, Q, groups, *stride, top, left, bottom, right, *dilation)
    return Problem(*sizes, 0, ACTIVATIONS[activation])


def choose(
    p: Problem, math: str, device: Device, direction: str = "forward", known: bool = False
) -> Choice:
    """What the model chooses; `known`: as the ops ask, who remember it."""
    choice = Choice()
    codes = MATHS.index(math), ctypes.byref(device), DIRECTIONS.index(direction)
    ask = library().known if known else library().choose
    ask(ctypes.byref(p), *codes, ctypes.byref(choice))
    return choice


def cycles(p: Problem, math: str, device: Device, direction: str, tile: int, splits: int) -> float:
    """What the planner's model says of a tile and number of splits."""
    library().cycles.restype = ctypes.c_float
    codes = MATHS.index(math), ctypes.byref(device), DIRECTIONS.index(direction)
    return library().cycles(ctypes.byref(p), *codes, tile, splits)


def phases(p: Problem) -> list[tuple[int, int]]:
    """(depth, pixels) of each stride phase of the input gradient, in the order of its grid."""
    depths, pixels = ((_I32 * 16)() for _ in range(2))
    count = library().phases(ctypes.byref(p), depths, pixels)
    return list(zip(depths[:count], pixels[:count], strict=True))


def refusal(kernel: str, p: Problem, math: str) -> str | None:
    function = getattr(library(), f"{kernel}_refusal")
    function.restype = ctypes.c_char_p
    words = function(ctypes.byref(p), MATHS.index(math))
    return words and words.decode()


def conv(
    kernel: str,
    x: Tensor,
    w: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    math: str,
    tile: int,
    splits: int = 1,
    right: bool = True,
    order: str = "ascending",
    seed: int = 1,
    y: Tensor | None = None,
    count_banks: bool = False,
    **settings,
) -> Tensor:
    """One kernel's output, poisoned before. Tensors are N C H W in channels_last memory.

    Raises:
        RuntimeError: the emulator's report.
    """
    p = problem(tuple(x.shape), tuple(w.shape), **settings)
    if y is None:
        y = torch.empty(p.N, p.K, p.P, p.Q, dtype=x.dtype).to(memory_format=torch.channels_last)
    bk = tiles(math)[tile].bk
    steps = -(-(p.R * p.S * (p.C // p.G)) // bk)
    split_depth = -(-steps // splits) * bk
    partial = torch.empty(splits * p.N * p.P * p.Q * p.K) if splits > 1 else None
    launcher = getattr(library(), kernel)
    launcher.restype = ctypes.c_char_p
    configure(order, seed, arch=86, count_banks=count_banks)  # the least shared memory
    tensors = dict(x=x, w=w, bias=bias, residual=residual, y=y, partial=partial)
    with buffers(right, **tensors) as b:
        at = Operands(
            *(buffer and buffer.pointer for buffer in b.values()),
            *(t.stride(3) if t is not None else 0 for t in (x, y, residual)),
        )
        b["y"].tensor.fill_(torch.nan)
        error = launcher(
            *(ctypes.byref(p), ctypes.byref(at), MATHS.index(math), tile, splits, split_depth)
        )
        if error:
            raise RuntimeError(error.decode())
        return b["y"].tensor.clone()


def conv_grad(
    direction: str,
    first: Tensor,
    second: Tensor,
    size: tuple[int, int],
    *,
    math: str,
    tile: int,
    splits: int = 1,
    pointwise: bool = False,
    right: bool = True,
    order: str = "ascending",
    seed: int = 1,
    count_banks: bool = False,
    bias: bool = False,
    **settings,
) -> Tensor | tuple[Tensor, Tensor]:
    """dx of (dy, w), of H x W ``size``, or dw of (x, dy), of R x S ``size``; poisoned before, in
    channels_last memory as they are. ``bias``: the kernel of dw sums dy too: (dw, db).

    Raises:
        RuntimeError: the emulator's report.
    """
    input_grad = direction == "input_grad"
    groups = settings.get("groups", 1)
    if input_grad:
        x, w = (first.shape[0], second.shape[1] * groups, *size), tuple(second.shape)
    else:
        x, w = tuple(first.shape), (second.shape[1], first.shape[1] // groups, *size)
    p = problem(x, w, **settings)
    p.dtype = {torch.float32: 0, torch.bfloat16: 2, torch.float16: 3}[first.dtype]
    out = torch.empty(x if input_grad else w, dtype=first.dtype)
    out = out.to(memory_format=torch.channels_last)
    bk = tiles(math, direction)[tile].bk
    taps = -(-p.R // p.stride_h) * -(-p.S // p.stride_w)
    depth = taps * (p.K // p.G) if input_grad else p.N * p.P * p.Q
    steps = -(-depth // bk)
    split_depth = -(-steps // splits) * bk
    partial = torch.empty(splits * out.numel())
    sums = torch.empty(splits, p.K) if bias else None
    launcher = getattr(library(), f"conv_{direction}")
    launcher.restype = ctypes.c_char_p
    configure(order, seed, arch=86, count_banks=count_banks)
    with buffers(right, first=first, second=second, out=out, partial=partial, sums=sums) as b:
        at = {name: buffer and buffer.pointer for name, buffer in b.items()}
        steps = first.stride(3), second.stride(3)
        if input_grad:
            operands = at["first"], at["second"], None, None, at["out"], at["partial"]
            steps = steps[0], out.stride(3)
        else:
            operands = at["first"], at["out"], at["sums"], None, at["second"], at["partial"]
        for name in ("out", "partial", "sums"):
            if b[name] is not None:
                b[name].tensor.fill_(torch.nan)
        codes = MATHS.index(math), tile, splits, split_depth, pointwise
        error = launcher(ctypes.byref(p), ctypes.byref(Operands(*operands, *steps, 0)), *codes)
        if error:
            raise RuntimeError(error.decode())
        dw = b["out"].tensor.clone()
        return (dw, b["sums"].tensor.sum(0).to(dw.dtype)) if bias else dw
