"""Operands beside a forbidden page: a kernel that reads past one ends the process."""

from __future__ import annotations

import ctypes
import mmap

import torch


def guarded(t: torch.Tensor, before: bool = False) -> torch.Tensor:
    """A copy of the tensor, of its strides, with a forbidden page after its last byte, or just
    before its first."""
    size = (sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) + 1) * t.itemsize
    page = mmap.PAGESIZE
    whole = -(-size // page) * page
    memory = mmap.mmap(-1, whole + page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    forbidden, start = (0, page) if before else (whole, whole - size)
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address + forbidden), page, 0) == 0
    flat = torch.frombuffer(memory, dtype=t.dtype, count=size // t.itemsize, offset=start)
    return flat.as_strided(t.shape, t.stride()).copy_(t)
