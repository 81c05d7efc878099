"""Launching a kernel, and the operands as kernels take them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor

from .language import INTERPRETED
from .tiles import CHANNELS_INNERMOST, COLUMNS_INNERMOST, INTERPRETED_BLOCK, Device

INTERPRETING = bool(INTERPRETED.value)
MOST_BLOCKS = (1 << 16) - 1  # of a grid's second and third axis


def launch(kernel, grid: tuple, tensor: Tensor, *args, **constants) -> None:
    """Runs `kernel` on the device of `tensor`; traced where torch traces.

    Raises RuntimeError where a GPU's grid has no room, as for more than 65535 groups.
    """
    if 0 in grid:
        return
    if any(isinstance(size, int) and size > MOST_BLOCKS for size in grid[1:]):
        raise RuntimeError(
            f"{kernel.fn.__name__}: a grid of {tuple(grid)} blocks, of which a GPU allows "
            f"{MOST_BLOCKS} along the second and third axis"
        )
    if not INTERPRETING:
        kernel = torch.library.wrap_triton(kernel)
    with _on(tensor):
        kernel[grid](*args, **constants)


def _on(tensor: Tensor):
    if tensor.is_cuda and type(tensor) in (Tensor, torch.nn.Parameter):
        return torch.cuda.device_of(tensor)
    return contextlib.nullcontext()


def device_of(tensor: Tensor) -> Device:
    """The facts a tile depends on."""
    if not tensor.is_cuda:
        return Device(0, 4)
    facts = torch.cuda.get_device_properties(tensor.device)
    return Device(10 * facts.major + facts.minor, facts.multi_processor_count)


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def unit(tensor: Tensor | None, channels: int, *more: Tensor | None) -> int:
    """The largest power of two, of at most 16 bytes, in `channels` and the strides of pixels.

    Kernels multiply by it what they are passed divided by it, so that the compiler knows that
    rows are aligned. 1 where channels are not next to each other.
    """
    numbers = [channels]
    for t in (tensor, *more):
        if t is None:
            continue
        n, c, h, w = t.stride()
        if c != 1:
            return 1
        numbers += [
            s for s, size in zip((n, h, w), (t.shape[0], *t.shape[2:]), strict=True) if size > 1
        ]
    widest = 16 // (tensor if tensor is not None else more[0]).element_size()
    return common_unit(widest, *numbers)


def common_unit(widest: int, *numbers: int) -> int:
    """The largest power of two, of at most `widest`, that divides all: by remainders, as symbolic
    numbers stay symbolic so."""
    while any(number % widest for number in numbers):
        widest //= 2
    return widest


def plane_unit(strides: tuple[int, int], *tensors: Tensor | None) -> int:
    """The same of planes of pixels (NCHW): in their size, and in the strides of n and c.

    0 where they are none, or not worth it: strided, rows of channels, of units under 8 bytes; or
    where a grid's axis has no room for the batch.
    """
    operands = [t for t in tensors if t is not None]
    (n, _, h, w), size = operands[0].shape, operands[0].element_size()
    numbers = [h * w]
    if n > MOST_BLOCKS:
        return 0
    for t in operands:
        by_n, by_c, by_h, by_w = t.stride()
        dense = (w == 1 or by_w == 1) and (h == 1 or by_h == w) and by_c >= h * w
        if strides != (1, 1) or not dense or h * w >= 1 << 30:
            return 0
        numbers += [by_n if n > 1 else 0, by_c]
    by = common_unit(16 // size, *numbers)
    return by if by * size >= 8 else 0


def strides(tensor: Tensor | None, by: int = 1) -> tuple[int, int, int, int]:
    """Those of n, h and w, in units of `by` elements, and of c."""
    if tensor is None:
        return 0, 0, 0, 1
    n, c, h, w = tensor.stride()
    return (*(s // by for s in (n, h, w)), c)


def channels_last(tensor: Tensor) -> Tensor:
    """The tensor, copied where its channels are not innermost, or it is not `is_aligned`."""
    if tensor.shape[1] != 1 and tensor.stride(1) != 1:
        return tensor.contiguous(memory_format=torch.channels_last)
    return tensor if is_aligned(tensor) else tensor.clone(memory_format=torch.channels_last)


def rows_of_filters(weight: Tensor) -> Tensor:
    """(K, R, S, C) of (K, C, R, S), contiguous and `is_aligned`; no copy of channels_last."""
    rows = weight.permute(0, 2, 3, 1).contiguous()
    return rows if is_aligned(rows) else rows.clone()


def is_aligned(tensor: Tensor) -> bool:
    """Whether its first value is at 16 bytes of its storage: of another address the JIT knows
    nothing, loads are of one value each, not asynchronous, and what they keep is spilled."""
    return tensor.storage_offset() * tensor.element_size() % 16 == 0


def is_wide(n: int, *sizes: Sequence[int]) -> bool:
    """Whether n planes of one of these (height, width), and a block more, are beyond 32 bits."""
    most = (1 << 31) - (1 << 16)
    return any(n * h * w >= most or h >= 1 << 30 or w >= 1 << 30 for h, w in sizes)


def block(*operands: Tensor | None, innermost=CHANNELS_INNERMOST) -> tuple[int, int]:
    """Outputs and channels of a block, so that neighbours in memory share it; `innermost` where
    those are channels."""
    if not operands[0].is_cuda and INTERPRETING:
        return INTERPRETED_BLOCK
    last = all(t is None or t.stride(1) == 1 for t in operands) and operands[0].shape[1] > 1
    return innermost if last else COLUMNS_INNERMOST
