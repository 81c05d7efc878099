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

    from fastconv.triton import conv, launch, pool

    offline(arch)
    made: list[dict] = []
    run = triton.runtime.JITFunction.run

    def compile_only(self, *args, grid, warmup, **options):
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        made.append(facts(self.fn.__name__, kernel.asm["cubin"], kernel.metadata.shared))
        return kernel

    triton.runtime.JITFunction.run = compile_only
    conv.device_of = lambda tensor: launch.Device(arch, SMS[arch])
    found = []
    with set_wrap_triton_enabled(False):
        for name in names:
            made.clear()
            CASES[name.split(" ")[0]](conv, pool, *name.split(" ")[1:])
            found.append({"case": name, "arch": arch, "made": list(made)})
    return found


# --- cases: their names' words are arguments ----------------------------------------------------


def image(n, c, h, w, dtype, layout=torch.channels_last):
    return torch.empty((n, c, h, w), dtype=DTYPES[dtype], memory_format=layout)


def with_tile(conv, index: str, split: str = "1"):
    """The tile of this place in its table, whatever the problem."""

    def choose(precision, device, *_):
        return conv.tiles.TILES[precision][device.arch][int(index)]

    conv.tiles.choose_tile = choose
    conv.tiles.choose_splits = lambda *_: int(split)


def forward(conv, pool, size, channels, dtype, tf32, tile, fused="plain", split="1"):
    with_tile(conv, tile, split)
    k, stride, pad = int(size), 1, int(size) // 2
    x, c = image(8, int(channels), 28, 28, dtype), int(channels)
    w = torch.empty(c, c, k, k, dtype=x.dtype)
    bias, residual, act = (None, None, 0) if fused == "plain" else (w[:, 0, 0, 0].clone(), x, 1)
    y = torch.empty_like(x)
    conv.conv2d(y, x, w, bias, residual, stride, stride, *[pad] * 4, 1, 1, 1, act, int(tf32))


def input_grad(conv, pool, size, channels, dtype, tf32, tile, stride="2"):
    with_tile(conv, tile)
    k, s, c = int(size), int(stride), int(channels)
    dx, dy = image(8, c, 28, 28, dtype), image(8, c, 28 // s, 28 // s, dtype)
    w = torch.empty(c, c, k, k, dtype=dx.dtype)
    conv.conv2d_input_grad(dx, dy, w, 28, 28, s, s, *[k // 2] * 4, 1, 1, 1, int(tf32))


def weight_grad(conv, pool, size, channels, dtype, tf32, tile, stride="1"):
    with_tile(conv, tile, "4")
    k, s, c = int(size), int(stride), int(channels)
    x, dy = image(8, c, 28, 28, dtype), image(8, c, 28 // s, 28 // s, dtype)
    dw = torch.empty(c, c, k, k, dtype=x.dtype)
    conv.conv2d_weight_grad(dw, x, dy, k, k, s, s, *[k // 2] * 4, 1, 1, 1, int(tf32))


CASES = {"forward": forward, "input_grad": input_grad, "weight_grad": weight_grad}

if __name__ == "__main__":
    json.dump(compile_cases(int(sys.argv[1]), sys.argv[2:]), sys.stdout)
