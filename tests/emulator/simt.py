"""The kernels outside the tensor-core mainloop under the emulator, with tensors in and out."""

from __future__ import annotations

import contextlib
import ctypes

import torch
from torch import Tensor

from . import Buffer, buffers, configure, kernels, library, take_log

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)  # DType of csrc/problem.h
# Order of the fibers, seed, and whether buffers end or begin at a page that cannot be accessed.
RUNS = (("ascending", 1, True), ("descending", 1, False), ("random", 1, True))

_I64, _P = ctypes.c_int64, ctypes.c_void_p


class View(ctypes.Structure):
    """View of csrc/problem.h."""

    _fields_ = [("data", _P), ("size", _I64 * 4), ("stride", _I64 * 4)]


class DirectParams(ctypes.Structure):
    """DirectParams of csrc/cuda/conv_direct.h."""

    _fields_ = [
        ("p", kernels.Problem),
        *((name, View) for name in ("x", "w", "residual", "y")),
        ("bias", _P),
        ("bias_stride", _I64),
    ]


def view(buffer: Buffer | None) -> View:
    if buffer is None:
        return View()
    t = buffer.tensor
    return View(buffer.pointer, (_I64 * 4)(*t.shape), (_I64 * 4)(*t.stride()))


def call(name: str, *arguments) -> None:
    """RuntimeError with the report of the emulator or the launcher."""
    launcher = getattr(library(), name)
    launcher.restype = ctypes.c_char_p
    if error := launcher(*arguments):
        raise RuntimeError(error.decode())


def poison(tensor: Tensor) -> None:
    tensor.fill_(torch.nan if tensor.is_floating_point() else torch.iinfo(tensor.dtype).max)


@contextlib.contextmanager
def _run(right: bool, order: str, seed: int, count_banks: bool, **tensors):
    configure(order, seed, count_banks=count_banks)
    with buffers(right, **tensors) as b:
        yield b


def every_order(run, *arguments, kernel: str, **settings):
    """``run``'s outputs, the same to the bit under every order; all launches are of ``kernel``."""
    take_log()
    results = []
    for order, seed, right in RUNS:
        outputs = run(*arguments, order=order, seed=seed, right=right, **settings)
        results.append(outputs if isinstance(outputs, tuple) else (outputs,))
        for one, first in zip(results[-1], results[0], strict=True):
            same = (one == first) | (one.isnan() & first.isnan())
            assert same.all(), f"{order} order differs from ascending in {int((~same).sum())}"
    log = take_log()
    assert log and all(name.startswith(kernel) for name in log), log
    return results[0] if len(results[0]) > 1 else results[0][0]


def empty_like_layout(sizes, like: Tensor, dtype=None) -> Tensor:
    """Of the memory format of ``like``."""
    last = like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous()
    format = torch.channels_last if last else torch.contiguous_format
    return torch.empty(sizes, dtype=dtype or like.dtype).contiguous(memory_format=format)


def conv_direct(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    y: Tensor | None = None,
    right: bool = True,
    order: str = "ascending",
    seed: int = 1,
    count_banks: bool = False,
    **settings,
) -> Tensor:
    p = kernels.problem(tuple(x.shape), tuple(w.shape), **settings)
    p.dtype = DTYPES.index(x.dtype)
    if y is None:
        y = empty_like_layout((p.N, p.K, p.P, p.Q), x)
    tensors = dict(x=x, w=w, bias=bias, residual=residual, y=y)
    with _run(right, order, seed, count_banks, **tensors) as b:
        poison(b["y"].tensor)
        params = DirectParams(p, *(view(b[name]) for name in ("x", "w", "residual", "y")))
        if bias is not None:
            params.bias, params.bias_stride = b["bias"].pointer, bias.stride(0)
        call("conv_direct", ctypes.byref(params))
        return b["y"].tensor.clone()
