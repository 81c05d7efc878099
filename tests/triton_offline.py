"""Compiles the Triton kernels for a GPU that is not there, and reads the machine code.

Run in a process of its own without TRITON_INTERPRET: ``python triton_offline.py ARCH CASE…`` runs
the torch side of each case with every launch replaced by a compilation, so that the JIT specialises
as it would on a GPU, and prints one JSON list of what was compiled.
"""

from __future__ import annotations

import collections
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32, "f64": torch.float64}
SMS = {80: 108, 90: 132}


def offline(arch: int) -> None:
    """Makes Triton's driver one of a GPU of this compute capability, without a GPU."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.driver import DriverBase

    class Offline(DriverBase):
        def __init__(self):
            pass

        @classmethod
        def is_active(cls):
            return True

        def map_python_to_cpp_type(self, ty):
            return ty

        def get_current_target(self):
            return GPUTarget("cuda", arch, 32)

        def get_active_torch_device(self):
            return torch.device("cpu")

        def get_benchmarker(self):
            return None

        def get_current_device(self):
            return 0

        def get_current_stream(self, device):
            return 0

    triton.runtime.driver.set_active(Offline())


def tool(name: str) -> str:
    import triton

    return str(Path(triton.__file__).parent / "backends/nvidia/bin" / name)


def disassemble(cubin: bytes) -> tuple[str, str]:
    """The machine code, and what it uses."""
    path = os.pathsep.join([str(Path(tool("cuobjdump")).parent), os.environ["PATH"]])
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return tuple(
            subprocess.run(
                [tool("cuobjdump"), option, file.name],
                check=True, capture_output=True, text=True, env={**os.environ, "PATH": path},
            ).stdout
            for option in ("-sass", "-res-usage")
        )  # fmt: skip


def inner_loop(code: list[tuple[int, str]]) -> list[str]:
    """The instructions of the shortest loop that multiplies matrices, else of the shortest."""
    loops = []
    for at, text in code:
        jump = re.search(r"\bBRA(?:\.\w+)* .*?0x([0-9a-f]+)", text)
        if jump and int(jump[1], 16) < at:
            loops.append([t for a, t in code if int(jump[1], 16) <= a <= at])
    loops.sort(key=len)
    return next((x for x in loops if any("MMA" in t for t in x)), loops[0] if loops else [])


def facts(kernel: str, cubin: bytes, shared: int) -> dict:
    """Registers, shared memory, bytes of local memory, and counts of instructions by place."""
    sass, usage = disassemble(cubin)
    code = [(int(a, 16), t) for a, t in re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", sass)]

    def counts(texts):
        names = (re.search(r"^(?:@!?U?P\w+ )?(\w+(?:\.\w+)*)", t.strip()) for t in texts)
        return dict(collections.Counter(m[1] for m in names if m))

    return {
        "kernel": kernel,
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),
        "local": int(re.search(r"LOCAL:(\d+)", usage)[1])
        + int(re.search(r"STACK:(\d+)", usage)[1]),
        "shared": shared,
        "code": counts(t for _, t in code),
        "loop": counts(inner_loop(code)),
    }


def compile_cases(arch: int, names: list[str]) -> list[dict]:
    """What the launches of the named cases compile to."""
    import triton
    from torch._library.triton import set_wrap_triton_enabled

    from fastconv.triton import conv, conv_grad, launch, pool, sums

    offline(arch)
    made: list[dict] = []
    run = triton.runtime.JITFunction.run

    def compile_only(self, *args, grid, warmup, **options):
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        name, shared = self.fn.__name__, kernel.metadata.shared
        made.append({"hash": kernel.hash, **facts(name, kernel.asm["cubin"], shared)})
        return kernel

    triton.runtime.JITFunction.run = compile_only
    for module in (conv, conv_grad, sums):
        module.device_of = lambda tensor: launch.Device(arch, SMS[arch])
    for name in ("weight_grad", "weight_bias_grad", "bias_grad"):
        setattr(conv, f"conv2d_{name}", getattr(conv_grad, f"conv2d_{name}"))
    conv.activation_bias_grad = conv_grad.activation_bias_grad
    found = []
    with set_wrap_triton_enabled(False):
        original = conv.tiles.choose_tile, conv.tiles.choose_splits
        for name in names:
            made.clear()
            conv.tiles.choose_tile, conv.tiles.choose_splits = original
            CASES[name.split(" ")[0]](conv, pool, *name.split(" ")[1:])
            found.append({"case": name, "arch": arch, "made": list(made)})
    return found


# --- cases: their names' words are arguments ----------------------------------------------------


def image(channels, dtype, size=28):
    """A batch in channels_last."""
    return torch.empty(
        (8, int(channels), size, size),
        dtype=DTYPES[dtype],
        memory_format=torch.channels_last,
    )


def with_tile(conv, index: str, split: int = 1) -> None:
    """Chooses the tile of this place in its table, whatever the problem."""
    conv.tiles.choose_tile = lambda precision, device, *_, **__: conv.tiles.TILES[precision][
        device.arch
    ][int(index)]
    conv.tiles.choose_splits = lambda *_, **__: split


def arithmetic(word: str) -> tuple[str, int]:
    """The dtype and the precision code of f16, bf16, tf32, f32, f64."""
    return ("f32", 1) if word == "tf32" else (word, 0)


def forward(conv, pool, size, math, tile, channels="128", fused=None):
    with_tile(conv, tile)
    (dtype, code), k, c = arithmetic(math), int(size), int(channels)
    x, w = image(c, dtype), torch.empty(c, c, k, k, dtype=DTYPES[dtype])
    bias, residual, act = (w[:, 0, 0, 0].clone(), x, 1) if fused else (None, None, 0)
    window = (1, 1, *[k // 2] * 4, 1, 1, 1)
    conv.conv2d(torch.empty_like(x), x, w, bias, residual, *window, act, code)


def planar(conv, pool, math, tile, fused=None):
    """1x1 of NCHW tensors, forward and input gradient."""
    with_tile(conv, tile)
    dtype, code = arithmetic(math)
    x, w = image(128, dtype).contiguous(), torch.empty(128, 128, 1, 1, dtype=DTYPES[dtype])
    residual, act = (x, 1) if fused else (None, 0)
    window = (1, 1, 0, 0, 0, 0, 1, 1, 1)
    conv.conv2d(torch.empty_like(x), x, w, None, residual, *window, act, code)
    conv.conv2d_input_grad(torch.empty_like(x), x, w, 28, 28, *window, code)


def split(conv, pool, size, math, tile, channels="1024"):
    """Partial sums, and the kernel that adds them."""
    (dtype, code), k, c = arithmetic(math), int(size), int(channels)
    with_tile(conv, tile, 4)
    x, w = image(c, dtype, 7), torch.empty(c, c, k, k, dtype=DTYPES[dtype])
    window = (1, 1, *[k // 2] * 4, 1, 1, 1)
    conv.conv2d(torch.empty_like(x), x, w, None, x, *window, 1, code)


def stem(conv, pool, math, tile):
    with_tile(conv, tile)
    dtype, code = arithmetic(math)
    x, y, w = image(3, dtype, 56), image(64, dtype), torch.empty(64, 3, 7, 7, dtype=DTYPES[dtype])
    window = (2, 2, 3, 3, 3, 3, 1, 1, 1)
    conv.conv2d(y, x, w, None, None, *window, 1, code)
    with_tile(conv, tile, 4)
    conv.conv2d_weight_grad(torch.empty_like(w), x, y, 7, 7, *window, code)


def input_grad(conv, pool, size, math, tile, stride="2", channels="128"):
    with_tile(conv, tile)
    (dtype, code), k, s, c = arithmetic(math), int(size), int(stride), int(channels)
    dx, dy = image(c, dtype), image(c, dtype, 28 // s)
    w = torch.empty(c, c, k, k, dtype=dx.dtype)
    conv.conv2d_input_grad(dx, dy, w, 28, 28, s, s, *[k // 2] * 4, 1, 1, 1, code)


def weight_grad(conv, pool, size, math, tile, stride="1", channels="128"):
    with_tile(conv, tile, 4)
    (dtype, code), k, s, c = arithmetic(math), int(size), int(stride), int(channels)
    x, dy = image(c, dtype), image(c, dtype, 28 // s)
    dw = torch.empty(c, c, k, k, dtype=x.dtype)
    conv.conv2d_weight_grad(dw, x, dy, k, k, s, s, *[k // 2] * 4, 1, 1, 1, code)


def depthwise(conv, pool, math, channels="64"):
    c = int(channels)
    x, w = image(c, math), torch.empty(c, 1, 3, 3, dtype=DTYPES[math])
    window = (1, 1, 1, 1, 1, 1, 1, 1, c)
    conv.conv2d(torch.empty_like(x), x, w, None, None, *window, 1, 0)
    conv.conv2d_input_grad(torch.empty_like(x), x, w, 28, 28, *window, 0)
    conv.conv2d_weight_grad(torch.empty_like(w), x, x, 3, 3, *window, 0)
    conv.conv2d_bias_grad(w[:, 0, 0, 0].clone(), x)
    conv.activation_bias_grad((torch.empty_like(x), w[:, 0, 0, 0].clone()), x, x, 1)


def pools(conv, pool, math, channels="64"):
    x, y = image(channels, math), image(channels, math, 14)
    window = (3, 3, 2, 2, 1, 1)
    pool.max_pool2d(y, x, *window, 1, 1, 0)
    index = torch.empty_like(y, dtype=torch.uint8)
    pool.max_pool2d_window((y, index), x, *window, 1, 1, 0)
    pool.max_pool2d_grad(x, y, index, 28, 28, *window, 1, 1)
    pool.max_pool2d_grad(y, y, index, 14, 14, 3, 3, *[1] * 6)
    pool.max_pool2d_gather(y, x, index, 28, 28, *window, 1, 1)
    pool.avg_pool2d(y, x, *window, 0, 1, 0)
    pool.avg_pool2d_grad(x, y, 28, 28, *window, 0, 1, 0)
    pool.adaptive_avg_pool2d(image(channels, math, 1), x, 1, 1)


def adds(conv, pool, math, channels="64"):
    from fastconv.triton import add

    x = image(channels, math)
    add.residual_add(x, x, x, 1)
    add.residual_add(x, x, x.contiguous(), 1)
    add.activation_grad(x, x, x, 2)


def problem(conv, pool, dtype, numbers):
    """Every direction of a problem "n,c,h,w,k,r,s,sh,sw,ph,pw,dh,dw,g", small and odd."""
    n, c, h, w, k, r, s, *window, groups = map(int, numbers.split(","))
    sh, sw, ph, pw, dh, dw = window
    x, dtype = torch.empty(n, c, h, w, dtype=DTYPES[dtype]), DTYPES[dtype]
    weight = torch.empty(k, c // groups, r, s, dtype=dtype)
    p, q = (h + 2 * ph - dh * (r - 1) - 1) // sh + 1, (w + 2 * pw - dw * (s - 1) - 1) // sw + 1
    y, settings = torch.empty(n, k, p, q, dtype=dtype), (sh, sw, ph, pw, ph, pw, dh, dw, groups)
    conv.conv2d(y, x, weight, weight[:, 0, 0, 0], y.clone(), *settings, 2, 0)
    conv.conv2d_input_grad(x, y, weight, h, w, *settings, 0)
    conv.conv2d_weight_grad(weight, x, y, r, s, *settings, 0)
    conv.conv2d_bias_grad(weight[:, 0, 0, 0], y)
    conv.activation_bias_grad((y.clone(), weight[:, 0, 0, 0]), y, y, 2)


def window(conv, pool, dtype, numbers):
    """Every pooling of a problem "n,c,h,w,kh,kw,sh,sw,ph,pw,dh,dw", small and odd."""
    n, c, h, w, *settings = map(int, numbers.split(","))
    kh, kw, sh, sw, ph, pw, dh, dw = settings
    p, q = (h + 2 * ph - dh * (kh - 1) - 1) // sh + 1, (w + 2 * pw - dw * (kw - 1) - 1) // sw + 1
    x, y = (torch.empty(n, c, *size, dtype=DTYPES[dtype]) for size in ((h, w), (p, q)))
    pool.max_pool2d(y, x, *settings, 0)
    for kind in (torch.uint8, torch.int32, torch.int64):
        index = torch.empty_like(y, dtype=kind)
        pool.max_pool2d_window((y, index), x, *settings, 0)
        pool.max_pool2d_grad(x, y, index, h, w, *settings)
        pool.max_pool2d_gather(y, x, index, h, w, *settings)
    if dh == dw == 1:
        for rule in ((0, 1, 0), (0, 0, 0), (0, 1, 3)):
            pool.avg_pool2d(y, x, *settings[:6], *rule)
            pool.avg_pool2d_grad(x, y, h, w, *settings[:6], *rule)
    pool.adaptive_avg_pool2d(y, x, p, q)
    pool.adaptive_avg_pool2d_grad(x, y, h, w)


def sizes(conv, pool, dtype):
    """Layers that differ in sizes alone."""
    for channels, size, tile in ((64, 28, "2"), (192, 15, "2"), (448, 31, "2")):
        with_tile(conv, tile, 2)
        x, pad = image(channels, dtype, size), (1, 1, 1, 1)
        w, half = torch.empty(channels, channels, 3, 3, dtype=DTYPES[dtype]), (size + 1) // 2
        y, window = image(channels, dtype, half), (2, 2, *pad, 1, 1, 1)
        conv.conv2d(y, x, w, None, None, *window, 1, 0)
        conv.conv2d_input_grad(x, y, w, size, size, *window, 0)
        conv.conv2d_weight_grad(w, x, y, 3, 3, *window, 0)
        pool.avg_pool2d(y, x, 3, 3, 2, 2, 1, 1, 0, 1, 0)


def wide(conv, pool, dtype):
    """Views over one value of more pixels than 32 bits count."""
    side, pooled, same = 66000, (2, 3, 1, 2, 1, 1), (1, 1, 0, 0, 0, 0, 1, 1, 1)
    one, w = torch.empty(1, dtype=DTYPES[dtype]), torch.empty(3, 2, 1, 3, dtype=DTYPES[dtype])
    x, y = one.expand(1, 2, side, side), one.expand(1, 3, side, side - 2)
    conv.conv2d(y, x, w, None, y, *same, 1, 0)
    conv.conv2d_input_grad(x, y, w, side, side, *same, 0)
    conv.conv2d_weight_grad(w, x, y, 1, 3, *same, 0)
    conv.conv2d_bias_grad(w[:, 0, 0, 0].clone(), y)
    y = one.expand(1, 2, side + 1, side // 2)
    for kind in (torch.uint8, torch.int64):
        index = torch.empty(1, dtype=kind).expand_as(y)
        pool.max_pool2d_window((y, index), x, *pooled, 1, 1, 0)
        pool.max_pool2d_grad(x, y, index, side, side, *pooled, 1, 1)
    pool.max_pool2d_gather(y, x, index, side, side, *pooled, 1, 1)
    pool.avg_pool2d(y, x, *pooled, 0, 1, 0)
    pool.avg_pool2d_grad(x, y, side, side, *pooled, 0, 1, 0)
    pool.adaptive_avg_pool2d(y, x, *y.shape[2:])


CASES = {
    function.__name__: function
    for function in (
        forward, planar, split, stem, input_grad, weight_grad, depthwise, pools, adds, problem,
        window, wide, sizes,
    )
}  # fmt: skip

if __name__ == "__main__":
    json.dump(compile_cases(int(sys.argv[1]), sys.argv[2:]), sys.stdout)
