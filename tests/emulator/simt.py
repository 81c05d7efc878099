"""The kernels outside the tensor-core mainloop under the emulator, with tensors in and out."""

from __future__ import annotations

import contextlib
import ctypes

import torch
from torch import Tensor

from fastconv.ops.sizes import ACTIVATIONS

from . import Buffer, buffers, configure, kernels, library, take_log

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)  # DType of csrc/problem.h
NAMES = dict(zip(DTYPES, ("f32", "f64", "bf16", "f16"), strict=True))  # as kernels are named
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
        ("w_group", _I64),
    ]


class PoolAxis(ctypes.Structure):
    """PoolAxis of csrc/pool_problem.h."""

    _fields_ = [
        *((name, _I64) for name in "size out k stride pad dil".split()),
        ("adaptive", ctypes.c_bool),
    ]


class PoolProblem(ctypes.Structure):
    """PoolProblem of csrc/pool_problem.h."""

    _fields_ = [
        *((name, _I64) for name in "NC"),
        *((name, PoolAxis) for name in ("rows", "cols")),
        ("dtype", ctypes.c_int32),
        ("count_include_pad", ctypes.c_bool),
        ("divisor", _I64),
    ]


class PoolJob(ctypes.Structure):
    """PoolJob of csrc/pool_problem.h."""

    _fields_ = [
        ("p", PoolProblem),
        *((name, View) for name in ("x", "y", "index")),
        ("index_type", ctypes.c_int32),
        *((name, ctypes.c_bool) for name in ("max", "grad")),
    ]


class PairJob(ctypes.Structure):
    """PairJob of csrc/pair_job.h."""

    _fields_ = [
        *((name, View) for name in ("a", "b", "out")),
        *((name, ctypes.c_int32) for name in ("dtype", "activation")),
        *((name, ctypes.c_bool) for name in ("grad", "dense")),
        ("total", _I64),
    ]


INDEX_DTYPES = (None, torch.uint8, torch.int32, torch.int64)  # IndexType of csrc/pool_problem.h


def dtype_id(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def tensor(sizes, dtype, layout="nhwc", scale=1.0) -> Tensor:
    """Random; ``layout`` may also be "nchw", or either "sliced" from a larger tensor."""
    n, c, h, w = sizes
    big = (n, c + 3, h + 1, 2 * w) if "sliced" in layout else sizes
    t = (torch.randn(big) * scale).to(dtype)
    if "nhwc" in layout:
        t = t.contiguous(memory_format=torch.channels_last)
    return t[:, 2:-1, 1:, ::2] if "sliced" in layout else t


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
    """``run``'s outputs, the same to the bit under every order; all launches are of the kernel
    whose name ends so."""
    take_log()
    results = []
    for order, seed, right in RUNS:
        outputs = run(*arguments, order=order, seed=seed, right=right, **settings)
        results.append(outputs if isinstance(outputs, tuple) else (outputs,))
        for one, first in zip(results[-1], results[0], strict=True):
            same = (one == first) | (one.isnan() & first.isnan())
            assert same.all(), f"{order} order differs from ascending in {int((~same).sum())}"
    log = take_log()
    assert log and all(name.endswith(kernel) for name in log), log
    return results[0] if len(results[0]) > 1 else results[0][0]


def empty_like_layout(sizes, like: Tensor, dtype=None) -> Tensor:
    """Dense, of the memory format of ``like``."""
    last = like.stride(1) < like.stride(3)
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
        params.w_group = p.K // p.G * w.stride(0)
        if bias is not None:
            params.bias, params.bias_stride = b["bias"].pointer, bias.stride(0)
        call("conv_direct", ctypes.byref(params))
        return b["y"].tensor.clone()


def conv_nhwc(
    kernel: str,
    x: Tensor,
    w: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    arguments: tuple = (),
    y: Tensor | None = None,
    right: bool = True,
    order: str = "ascending",
    seed: int = 1,
    count_banks: bool = False,
    **settings,
) -> Tensor:
    """conv_depthwise, or conv_stem with its ``arguments``: tensors in channels_last memory."""
    p = kernels.problem(tuple(x.shape), tuple(w.shape), **settings)
    p.dtype = DTYPES.index(x.dtype)
    if y is None:
        y = torch.empty(p.N, p.K, p.P, p.Q, dtype=x.dtype).to(memory_format=torch.channels_last)
    tensors = dict(x=x, w=w, bias=bias, residual=residual, y=y)
    with _run(right, order, seed, count_banks, **tensors) as b:
        poison(b["y"].tensor)
        at = kernels.Operands(
            *(buffer and buffer.pointer for buffer in b.values()),
            None,
            *(t.stride(3) if t is not None else 0 for t in (x, y, residual)),
        )
        call(kernel, ctypes.byref(p), ctypes.byref(at), *arguments)
        return b["y"].tensor.clone()


def pool_problem(x: Tensor, kernel, stride=None, padding=0, dilation=1, ceil_mode=False):
    """By csrc/pool_problem.cpp."""
    pairs = [kernel, kernel if stride is None else stride, padding, dilation]
    settings = [i for v in pairs for i in ((v, v) if isinstance(v, int) else v)]
    p = PoolProblem()
    library().pool_problem(
        (_I64 * 4)(*x.shape),
        (_I64 * 9)(*settings, ceil_mode),
        DTYPES.index(x.dtype),
        ctypes.byref(p),
    )
    return p


def _pool(name, p, right=True, order="ascending", seed=1, *, written, **tensors):
    """What the launcher left in the tensors named ``written``, poisoned before."""
    with _run(right, order, seed, False, **tensors) as b:
        for each in written:
            poison(b[each].tensor)
        index = tensors.get("index")
        views = (view(b.get(each)) for each in ("x", "y", "index"))
        kind = INDEX_DTYPES.index(None if index is None else index.dtype)
        call(name, ctypes.byref(PoolJob(p, *views, kind, "max" in name, name.count("_") > 1)))
        outputs = [b[each].tensor.clone() for each in written]
        return tuple(outputs) if len(outputs) > 1 else outputs[0]


def _output_size(p):
    return p.N, p.C, p.rows.out, p.cols.out


def max_pool(x: Tensor, *window, index_dtype=None, **run) -> Tensor | tuple[Tensor, Tensor]:
    """``window`` as of torch's max_pool2d."""
    p = pool_problem(x, *window)
    tensors = dict(x=x, y=empty_like_layout(_output_size(p), x))
    if index_dtype is not None:
        tensors["index"] = empty_like_layout(_output_size(p), x, index_dtype)
    return _pool("max_pool", p, **run, written=list(tensors)[1:], **tensors)


def max_pool_grad(dy: Tensor, index: Tensor, x: Tensor, *window, **run) -> Tensor:
    """``x`` is not read: the input, or one of its size."""
    dx = empty_like_layout(x.shape, dy)
    p = pool_problem(x, *window)
    return _pool("max_pool_grad", p, **run, written=["x"], x=dx, y=dy, index=index)


def max_pool_gather(x: Tensor, index: Tensor, *window, **run) -> Tensor:
    y = empty_like_layout(index.shape, x)
    p = pool_problem(x, *window)
    return _pool("max_pool_gather", p, **run, written=["y"], x=x, y=y, index=index)


def _averages(p: PoolProblem, operand: Tensor, grad_of: Tensor | None, **run) -> Tensor:
    """The average of ``operand``; its gradient in ``grad_of``, where ``operand`` is dy."""
    if grad_of is None:
        y = empty_like_layout(_output_size(p), operand)
        return _pool("avg_pool", p, **run, written=["y"], x=operand, y=y)
    dx = empty_like_layout(grad_of.shape, operand)
    return _pool("avg_pool_grad", p, **run, written=["x"], x=dx, y=operand)


def avg_pool(
    x: Tensor,
    kernel,
    stride=None,
    padding=0,
    ceil_mode=False,
    count_include_pad=True,
    divisor_override=None,
    grad_of=None,
    **run,
) -> Tensor:
    """Where ``grad_of`` is an input, ``x`` is the output's gradient and the result its own."""
    p = pool_problem(x if grad_of is None else grad_of, kernel, stride, padding, 1, ceil_mode)
    p.count_include_pad, p.divisor = count_include_pad, divisor_override or 0
    return _averages(p, x, grad_of, **run)


def adaptive_avg_pool(x: Tensor, output_size, grad_of=None, **run) -> Tensor:
    """``grad_of`` as of ``avg_pool``."""
    p = PoolProblem()
    library().adaptive_problem(
        (_I64 * 4)(*(x if grad_of is None else grad_of).shape),
        *map(_I64, output_size),
        DTYPES.index(x.dtype),
        ctypes.byref(p),
    )
    return _averages(p, x, grad_of, **run)


def add(
    name: str, a: Tensor, b: Tensor, activation=None, right=True, order="ascending", seed=1
) -> Tensor:
    """``name``: residual_add (the output has a's layout) or activation_grad (b's)."""
    out = empty_like_layout(a.shape, a if name == "residual_add" else b)
    with _run(right, order, seed, False, a=a, b=b, out=out) as buffers:
        poison(buffers["out"].tensor)
        views = (view(buffers[name]) for name in ("a", "b", "out"))
        codes = DTYPES.index(a.dtype), ACTIVATIONS[activation]
        call("add", ctypes.byref(PairJob(*views, *codes, name == "activation_grad")))
        return buffers["out"].tensor.clone()


def add_parts(parts: Tensor, layout: str, dtype, right=True, order="ascending", seed=1) -> Tensor:
    """The sum over the first axis of (parts, K, R, S, C) as a gradient (K, C, R, S)."""
    _, k, r, s, c = parts.shape
    dw = tensor((k, c, r, s), dtype, layout)
    with _run(right, order, seed, False, parts=parts, dw=dw) as b:
        poison(b["dw"].tensor)
        to, splits, code = view(b["dw"]), _I64(len(parts)), DTYPES.index(dtype)
        call("add_parts", _P(b["parts"].pointer), ctypes.byref(to), splits, code)
        return b["dw"].tensor.clone()


def transpose(
    x: Tensor, last: bool, right=True, order="ascending", seed=1, count_banks=False
) -> Tensor:
    """A dense tensor in the other memory format."""
    format = torch.channels_last if last else torch.contiguous_format
    y = torch.empty(x.shape, dtype=x.dtype).contiguous(memory_format=format)
    n, c, h, w = x.shape
    with _run(right, order, seed, count_banks, x=x, y=y) as b:
        poison(b["y"].tensor)
        pointers = (_P(b[name].pointer) for name in ("x", "y"))
        call("transpose", *pointers, _I64(n), _I64(c), _I64(h * w), x.itemsize, last)
        return b["y"].tensor.clone()
