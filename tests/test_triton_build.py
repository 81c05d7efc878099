"""What Triton's compiler makes of the kernels for sm_80 and sm_90: nothing spilled, asynchronous
copies and tensor cores in the loops, registers and shared memory within each tile's budget, whole
rows of 16 bytes in the kernels bound by memory.

Compiled in other processes (`triton_offline.py`), as this one interprets.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

from fastconv.triton import tiles  # noqa: E402

ARCHS = (80, 90)
MATHS = {"f16": "half", "bf16": "half", "tf32": "tf32", "f32": "tf32x3", "f64": "f64"}
INSTRUCTIONS = {
    80: {"f16": "HMMA.16816.F32", "bf16": "HMMA.16816.F32.BF16", "tf32": "HMMA.1688.F32.TF32",
         "f32": "HMMA.1688.F32.TF32", "f64": "DMMA"},
    90: {"f16": "HGMMA", "bf16": "HGMMA", "tf32": "HGMMA", "f32": "HGMMA", "f64": "DMMA"},
}  # fmt: skip
KERNELS = ("forward 3", "forward 1", "input_grad 3", "weight_grad 3")


def gemm_cases() -> dict[str, str]:
    """Case -> math; every tile by every kernel."""
    return {
        f"{kernel} {math} {index}": math
        for math, precision in MATHS.items()
        for index in range(len(tiles.TILES[precision][80]))
        for kernel in KERNELS
    }


GEMMS = gemm_cases()
# Beside them: the epilogue with everything in it, split sums, stems, channels that 16 does not
# divide, and odd ones, which the torch side pads.
OTHERS = {
    "forward 3 f16 1 128 fused": "f16",
    "split 1 f16 0": "f16",
    "split 1 f16 2": "f16",
    "split 3 f16 1": "f16",
    "stem f16 1": "f16",
    "planar f16 0 fused": "f16",
    "planar tf32 0": "tf32",
    "planar f32 0": "f32",
    "planar f64 0": "f64",
    "forward 3 f16 3 24": "f16",
    "forward 3 f16 2 33": "f16",
}
MEMORY = tuple(
    f"{kernels} {dtype}"
    for dtype in ("f16", "bf16", "f32")
    for kernels in ("depthwise", "pools", "adds")
)
# What is not a tile's kernel: taps that a word of 32 bits, and one of 64, has no bit for; odd and
# grouped channels; planes; windows at once and in parts, kinds of index; more than 2^31 pixels.
ANY = (
    "problem f16 2,16,23,21,24,9,8,1,2,4,3,1,1,1",
    "problem f16 2,16,23,21,24,7,7,2,2,3,3,1,1,1",
    "problem bf16 2,13,15,14,11,3,5,2,1,1,2,1,2,1",
    "problem f32 2,12,15,14,12,3,3,2,1,1,1,1,1,4",
    "problem f64 2,8,9,8,8,1,1,1,1,0,0,1,1,1",
    "window f16 2,16,23,21,3,3,2,2,1,1,1,1",
    "window f64 2,5,9,8,2,3,1,2,0,1,2,1",
    "window bf16 2,16,23,21,11,8,3,2,1,1,1,1",
    "sizes f16",
    "wide f16",
    "wide f64",
)
QUICK = {"forward 3 f16 0", "forward 1 f16 0", "input_grad 3 f16 1", "weight_grad 3 f16 0"}
QUICK |= {"forward 3 tf32 0", "forward 3 f32 0", *MEMORY[:2], *ANY}
QUICK |= {name for name, math in OTHERS.items() if math == "f16"}
EVERY = [*GEMMS, *OTHERS, *MEMORY, *ANY]


@functools.cache
def compiled(arch: int, quick: bool) -> dict[str, list[dict]]:
    """Case -> the kernels its launches compiled to; made once for each state of the sources."""
    names = [name for name in EVERY if (name in QUICK) == quick]
    script = Path(__file__).with_name("triton_offline.py")
    digest = hashlib.sha256(" ".join([triton.__version__, str(arch), *names]).encode())
    for source in [script, *sorted(Path(tiles.__file__).parent.glob("*.py"))]:
        digest.update(source.read_bytes())
    folder = Path(__file__).parent.parent / "build" / "triton"
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{arch}-{'quick' if quick else 'slow'}"
    made = folder / f"{stem}-{digest.hexdigest()[:16]}.json"
    with open(folder / f"{stem}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            for old in folder.glob(f"{stem}-*.json"):
                old.unlink()
            made.write_text(compile_in_a_process(script, arch, names))
    return {found["case"]: found["made"] for found in json.loads(made.read_text())}


def child_environment() -> dict[str, str]:
    """Of a process that does not interpret."""
    kept = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return {**kept, "PYTHONPATH": os.pathsep.join(sys.path)}


def compile_in_a_process(script: Path, arch: int, names: list[str]) -> str:
    command = [sys.executable, str(script), str(arch), *names]
    done = subprocess.run(command, capture_output=True, text=True, env=child_environment())
    assert done.returncode == 0, done.stderr
    return done.stdout


def cases(names) -> list:
    """Cases times architectures, one worker for each; those that are not QUICK are slow."""
    return [
        pytest.param(
            name,
            arch,
            id=f"{name}-sm_{arch}",
            marks=[
                pytest.mark.xdist_group(f"triton-{arch}-{name in QUICK}"),
                *(() if name in QUICK else (pytest.mark.slow,)),
            ],
        )
        for name in names
        for arch in ARCHS
    ]


def spilled(counts: dict[str, int]) -> int:
    return sum(n for name, n in counts.items() if name.startswith(("LDL", "STL")))


def having(counts: dict[str, int], name: str) -> bool:
    return any(found.startswith(name) for found in counts)


@pytest.mark.parametrize("case, arch", cases([*GEMMS, *OTHERS, *MEMORY]))
def test_nothing_is_spilled(case, arch):
    """Nothing in a loop; beside it at most four words, by which ptxas fits a block more (Triton 3.6
    and 3.9 spill two in some kernels, 3.8 none)."""
    for kernel in compiled(arch, case in QUICK)[case]:
        assert spilled(kernel["loop"]) == 0 and kernel["local"] <= 16, kernel


@pytest.mark.parametrize("case, arch", cases(ANY))
def test_next_to_nothing_is_spilled_elsewhere(case, arch):
    """In the loop of products at most two words, by which ptxas fits a block more on sm_80; beside
    it sixteen of the epilogue that reads and writes odd channels one by one (Triton 3.8 spills ten,
    3.9 twelve, 3.6 fourteen)."""
    for kernel in compiled(arch, case in QUICK)[case]:
        assert kernel["local"] <= 64, kernel
        multiplies = any("MMA" in name for name in kernel["loop"])
        assert not multiplies or kernel["local"] <= 8 or spilled(kernel["loop"]) == 0, kernel


@pytest.mark.parametrize("case, arch", cases([*GEMMS, *OTHERS]))
def test_products_of_a_step_follow_each_other(case, arch):
    """On sm_90 a step's wgmma are one group, or one for each of tf32x3's three products: where
    ptxas must wait for each, there are as many groups as products."""
    groups = 3 if {**GEMMS, **OTHERS}[case] == "f32" else 1
    for kernel in compiled(arch, case in QUICK)[case]:
        assert kernel["loop"].get("WARPGROUP.ARRIVE", 0) <= groups, kernel


@pytest.mark.parametrize("case, arch", cases([*GEMMS, *OTHERS]))
def test_tensor_cores_and_asynchronous_copies_in_the_loop(case, arch):
    math = {**GEMMS, **OTHERS}[case]
    products = [k for k in compiled(arch, case in QUICK)[case] if k["kernel"] != "add_splits"]
    assert products
    for kernel in products:
        assert having(kernel["loop"], INSTRUCTIONS[arch][math]), kernel
        assert having(kernel["loop"], "LDGSTS"), kernel
        assert not having(kernel["loop"], "LDG.E"), kernel


@pytest.mark.parametrize("case, arch", cases(GEMMS))
def test_the_budget_of_every_tile(case, arch):
    _, _, math, index = case.split()
    tile = tiles.TILES[MATHS[math]][arch][int(index)]
    for kernel in compiled(arch, case in QUICK)[case]:
        if kernel["kernel"] != "add_splits":
            assert kernel["registers"] <= tile.registers, (tile, kernel)
            assert kernel["shared"] <= tile.shared << 10, (tile, kernel)


@pytest.mark.parametrize("case, arch", cases(["sizes f16"]))
def test_one_compilation_serves_every_size(case, arch):
    made = {}
    for kernel in compiled(arch, case in QUICK)[case]:
        made.setdefault(kernel["kernel"], set()).add(kernel["hash"])
    # Forward and input gradient; two shapes of a weight gradient's step, for 8 and more columns.
    wanted = {"conv_implicit_gemm": 2, "conv_weight_grad": 2, "avg_pool": 1}
    assert {name: len(made[name]) for name in wanted} == wanted


@pytest.mark.parametrize("case, arch", cases(MEMORY))
def test_kernels_bound_by_memory_read_rows_of_16_bytes(case, arch):
    for kernel in compiled(arch, case in QUICK)[case]:
        if kernel["kernel"] in ("add_strided", "max_pool_gather"):  # scattered by nature
            continue
        assert having(kernel["code"], "LDG.E.128"), kernel
        # Five blocks of a multiprocessor: 20 warps, each with 9 loads and more of 512 bytes under
        # way, are three times the bytes that an H100 needs. Four where 18 loads are, of the nine
        # windows that cover an input at stride 1.
        most = 112 if kernel["kernel"] == "max_pool_grad" else 96
        assert kernel["registers"] <= most, kernel


@pytest.mark.parametrize("case, arch", cases(["pools f16", "pools bf16", "depthwise f16"]))
def test_instructions_of_16_bytes(case, arch):
    """An H100 copies 16 bytes in the time of 280 instructions (computed: 3.35 TB/s, read and
    written, by 132 multiprocessors of 128 lanes at 1.755 GHz)."""
    # A maximum of 3x3 windows, two apart, and its index are 88 bytes: as much as 780 copy.
    most = {"max_pool": 780, "max_pool_grad_patches": 170, "conv_depthwise": 500}
    for kernel in compiled(arch, case in QUICK)[case]:
        stores = kernel["code"].get("STG.E.128", 0)
        if kernel["kernel"] in most:
            loop = 2 * sum(kernel["loop"].values()) if kernel["kernel"] == "conv_depthwise" else 0
            done = sum(kernel["code"].values()) + loop  # a row of three taps each time
            assert done / stores <= most[kernel["kernel"]], kernel


def test_every_tile_fits_the_gpus_of_its_table():
    """Registers and shared memory of two blocks on a multiprocessor; sm_86 and sm_89 run the table
    of sm_80 with 99 KiB a block."""
    for tables in tiles.TILES.values():
        for arch, table in tables.items():
            for tile in table:
                assert tile.shared <= (99 if arch == 80 else 113)
                assert 2 * 32 * tile.warps * tile.registers <= 64 << 10
