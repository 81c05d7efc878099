"""Runs the Triton backend from the PTX that Triton makes for a GPU, in the emulator.

Run in a process of its own without TRITON_INTERPRET: ``python triton_ptx.py ARCH SEED COUNT CASE…``
checks COUNT random problems and each CASE of CASES against float64, every access against the
bounds of its tensors, and prints as JSON what ran. Triton's interpreter shows none of it: products
of bfloat16 and in tf32, 32-bit arithmetic, layouts of shared memory, copies under way.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import random
import re
import sys
from collections.abc import Iterator

import torch
import torch.nn.functional as F
import triton_offline
from emulator import configure, library, ptx

KINDS = {"i1": ctypes.c_int8, "i32": ctypes.c_int32, "i64": ctypes.c_int64, "fp32": ctypes.c_float}
HALF = torch.float16, torch.bfloat16


class Launcher:
    """In place of JITFunction.run: compiles as on a GPU, then runs the PTX."""

    def __init__(self, arch: int):
        import triton

        triton_offline.offline(arch)
        configure("random", 1, arch=arch)
        self.compile = triton.runtime.JITFunction.run
        self.kernels: set[str] = set()
        self.products: set[str] = set()  # kinds of instructions of tensor cores

    def run(self, function, *args, grid, warmup, **options):
        kernel = self.compile(function, *args, grid=grid, warmup=True, **options)
        (name,) = ptx.parse(kernel.asm["ptx"])
        self.kernels.add(function.fn.__name__)
        self.products |= set(re.findall(r"(?:wg)?mma\.(?!fence|commit|wait)\S+", kernel.asm["ptx"]))
        named = dict(zip(function.arg_names, args, strict=False)) | options
        values = [
            self._pointer(named[key]) if kind[0] == "*" else KINDS[kind](named[key])
            for key, kind in kernel.src.signature.items()
            if kind != "constexpr"
        ]
        values += [ctypes.c_uint64(0)] * 2  # scratch, of which these kernels have none
        pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        sizes = (ctypes.c_uint32 * 3)(*grid, *[1] * (3 - len(grid)))
        threads, shared = 32 * kernel.metadata.num_warps, kernel.metadata.shared
        launch = library().emulator_ptx_launch
        launch.restype = ctypes.c_char_p
        problem = launch(name.encode(), sizes, threads, shared, pointers)
        library().emulator_dismiss()
        if problem:
            raise RuntimeError(problem.decode())
        return kernel

    @staticmethod
    def _pointer(tensor: torch.Tensor) -> ctypes.c_uint64:
        whole = tensor.untyped_storage()
        at, size = ctypes.c_void_p(whole.data_ptr()), ctypes.c_int64(whole.nbytes())
        library().emulator_admit(at, size, b"of a tensor")
        return ctypes.c_uint64(tensor.data_ptr())


@contextlib.contextmanager
def triton_from_ptx(arch: int, sms: int = 4) -> Iterator[Launcher]:
    """Within it fastconv's ops on CPU tensors run Triton's kernels, compiled for a GPU."""
    import triton
    from torch._library.triton import set_wrap_triton_enabled

    import fastconv

    fastconv.backend("triton")  # registers its ops
    from fastconv.triton import conv, conv_grad, launch, register, sums

    launcher = Launcher(arch)
    triton.runtime.JITFunction.run = lambda *args, **named: launcher.run(*args, **named)
    register._check_device = lambda *_: None
    for module in (conv, conv_grad, sums):
        module.device_of = lambda tensor: launch.Device(arch, sms)
    with set_wrap_triton_enabled(False), fastconv.backend("triton"):
        yield launcher


# --- what is checked besides random convolutions -------------------------------------------------


def poolings(generator: torch.Generator) -> None:
    """Windows, formats and dtypes, with gradients; maxima to the bit."""
    import fastconv
    from fastconv.testing.compare import assert_good

    windows = (3, 2, 1), (2, 2, 0), ((3, 2), (1, 2), (1, 0))
    formats = torch.contiguous_format, torch.channels_last
    for dtype, window, memory in itertools.product((*HALF, torch.float32), windows, formats):
        x = torch.randn(2, 24, 11, 9, generator=generator).to(dtype, memory_format=memory)
        for name in ("max_pool2d", "avg_pool2d"):
            ours, theirs, true = (t.clone().requires_grad_() for t in (x, x, x.double()))
            y = getattr(fastconv, name)(ours, *window)
            their_y, truth = getattr(F, name)(theirs, *window), getattr(F, name)(true, *window)
            dy = torch.randn(y.shape, generator=generator).to(dtype)
            for result, g in ((y, dy), (their_y, dy), (truth, dy.double())):
                result.backward(g)
            if name == "max_pool2d":
                assert torch.equal(y, their_y)
                torch.testing.assert_close(ours.grad.double(), true.grad, rtol=1e-2, atol=1e-2)
            else:
                assert_good(y, their_y, truth, dtype)
                assert_good(ours.grad, theirs.grad, true.grad, dtype)
        y = fastconv.adaptive_avg_pool2d(x, (4, 3))
        size = (4, 3)
        truth = F.adaptive_avg_pool2d(x.double(), size)
        assert_good(y, F.adaptive_avg_pool2d(x, size), truth, dtype)
        assert torch.equal(fastconv.max_pool2d(x, 3, 2), F.max_pool2d(x, 3, 2))


def adds(generator: torch.Generator) -> None:
    import fastconv

    for dtype in (*HALF, torch.float32):
        a, b = (torch.randn(2, 24, 7, 5, generator=generator).to(dtype) for _ in range(2))
        b = b.contiguous(memory_format=torch.channels_last)
        for other in (b, b.contiguous()):
            ours, theirs = a.clone().requires_grad_(), a.clone().requires_grad_()
            y, truth = fastconv.residual_add(ours, other, "relu"), torch.relu(theirs + other)
            assert torch.equal(y, truth)
            y.backward(a), truth.backward(a)
            assert torch.equal(ours.grad, theirs.grad)


def tf32(generator: torch.Generator) -> None:
    """Against operands rounded as the tensor cores' are meant to be, ties away from zero."""
    from fastconv.testing.compare import relative_rms

    def rounded(t: torch.Tensor) -> torch.Tensor:
        return ((t.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32).double()

    op = torch.ops.fastconv_triton
    for channels, size, stride in ((40, 3, 1), (36, 3, 2), (64, 1, 1), (3, 7, 2)):
        pad = size // 2
        x = torch.randn(2, channels, 12, 10, generator=generator)
        x = x.contiguous(memory_format=torch.channels_last)
        w = torch.randn(72, channels, size, size, generator=generator)
        window = (stride, stride, pad, pad, pad, pad, 1, 1, 1)
        y = op.conv2d(x, w, None, None, *window, 0, 1)
        true_x, true_w = (rounded(t).requires_grad_() for t in (x, w))
        truth = F.conv2d(true_x, true_w, None, stride, pad)
        dy = torch.randn(y.shape, generator=generator)
        dx, dw = torch.autograd.grad(truth, (true_x, true_w), rounded(dy))
        assert relative_rms(y, truth.detach()) < 2e-5
        assert relative_rms(op.conv2d_input_grad(dy, w, 12, 10, *window, 1), dx) < 2e-5
        ours = op.conv2d_weight_grad(x, dy, size, size, *window, 1)
        assert relative_rms(ours, dw) < 2e-5, (channels, size, stride)


def every_tile(generator: torch.Generator) -> None:
    """Each tile of each precision, all directions, on sizes that no tile divides."""
    from fastconv.testing.compare import assert_good
    from fastconv.triton import conv, tiles

    dtypes = {"half": HALF, "tf32x3": (torch.float32,), "f64": (torch.float64,)}
    arch, op = conv.device_of(None).arch, torch.ops.fastconv_triton
    choices = tiles.choose_tile, tiles.choose_splits
    for precision, kinds in dtypes.items():
        for (index, _), dtype, size in itertools.product(
            enumerate(tiles.TILES[precision][arch]), kinds, (1, 3)
        ):
            triton_offline.with_tile(conv, str(index), 2)
            pad, window = size // 2, (1, 1, *[size // 2] * 4, 1, 1, 1)
            x = torch.randn(1, 40, 13, 11, generator=generator).to(dtype)
            x = x.contiguous(memory_format=torch.channels_last)
            w = (torch.randn(72, 40, size, size, generator=generator) / 20).to(dtype)
            y = op.conv2d(x, w, None, None, *window, 0, 0)
            dy = torch.randn(y.shape, generator=generator).to(dtype)
            dx = op.conv2d_input_grad(dy, w, 13, 11, *window, 0)
            dw = op.conv2d_weight_grad(x, dy, size, size, *window, 0)

            def results(kind, x=x, w=w, dy=dy, pad=pad):
                a, b = (t.to(kind).requires_grad_() for t in (x, w))
                z = F.conv2d(a, b, None, 1, pad)
                return z.detach(), *torch.autograd.grad(z, (a, b), dy.to(kind))

            for ours, theirs, truth in zip(
                (y, dx, dw), results(dtype), results(torch.double), strict=True
            ):
                assert_good(ours, theirs, truth, dtype)
    tiles.choose_tile, tiles.choose_splits = choices


def networks(generator: torch.Generator) -> None:
    """LeNet whole and a block of each other network, in float16, with every gradient."""
    import fastconv
    from fastconv.cli.emulated import PARTS
    from fastconv.testing.compare import assert_good

    for make, size in PARTS.values():
        module, x = make(fastconv.nn).eval(), torch.randn(size, generator=generator)

        def results(dtype, module=module, x=x):
            net, leaf = module.to(dtype), x.to(dtype).requires_grad_()
            y = net(leaf)
            wanted = (leaf, *net.parameters())
            grads = torch.autograd.grad(y.square().mean(), wanted, allow_unused=True)
            return [y.detach(), *(g for g in grads if g is not None)]

        module.half()  # so that all begin with the same weights
        ours = results(torch.float16)
        with fastconv.backend("cpu"):
            theirs, truth = results(torch.float16), results(torch.float64)
        for mine, other, true in zip(ours, theirs, truth, strict=True):
            # 10 times the CPU's error: ties of ReLU and max pooling fall differently.
            assert_good(mine, other, true, torch.float16, factor=10)


CASES = {f.__name__: f for f in (poolings, adds, tf32, every_tile, networks)}


def main(arch: int, seed: int, count: int, *names: str) -> dict[str, list[str]]:
    from mixed_problems import check, drawn

    torch.use_deterministic_algorithms(True)  # torch.empty then fills with NaN
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    with triton_from_ptx(arch) as launcher:
        for _ in range(count):
            check(drawn(rng), generator, contextlib.nullcontext())
        for name in names:
            CASES[name](generator)
    return {"kernels": sorted(launcher.kernels), "products": sorted(launcher.products)}


if __name__ == "__main__":
    try:
        json.dump(main(*map(int, sys.argv[1:4]), *sys.argv[4:]), sys.stdout)
    except NotImplementedError as error:  # an instruction that the emulator lacks
        sys.exit(f"NotImplementedError: {error}")
