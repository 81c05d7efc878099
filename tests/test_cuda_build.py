"""What nvcc makes of the CUDA kernels: registers and shared memory within the tile table's budget,
nothing spilled, tensor-core and asynchronous-copy instructions where they are meant to be.

Skipped where there is no nvcc.
"""

import os
import re
import subprocess
from pathlib import Path

import nvcc
import pytest
from emulator import kernels
from nvcc import CUDA, find_cuobjdump

from fastconv.explain import DIRECTIONS

ARCHS = ("sm_80", "sm_90a")
SHARED_OF_AN_SM = {"sm_80": 164 << 10, "sm_90a": 228 << 10}
REGISTERS_OF_AN_SM = 64 << 10


def compiled(source: str, arch: str) -> tuple[Path, str]:
    """The cubin of a source and what ptxas said of it."""
    return nvcc.compiled(CUDA / source, f"arch=compute_{arch[3:]},code={arch}", "cubin")


pytestmark = pytest.mark.skipif(nvcc.find_nvcc() is None, reason="no nvcc")


def sources(pattern: str) -> list:
    """Sources times architectures; those of bf16 differ from f16's by one instruction: slow."""
    found = sorted(str(path.relative_to(CUDA)) for path in CUDA.rglob("*.cu"))
    return [
        pytest.param(
            name,
            arch,
            id=f"{Path(name).name}-{arch}",
            marks=[
                pytest.mark.xdist_group(f"{name}-{arch}"),  # compiled once
                *([pytest.mark.slow] if "bf16" in name else []),
            ],
        )
        for name in found
        for arch in ARCHS
        if re.search(pattern, name)
    ]


GEMM = "instances/(conv_implicit_gemm|conv1x1|conv_input_grad|conv_weight_grad)_"


def functions(said: str) -> dict[str, dict[str, int]]:
    """Per mangled name: registers, stack and spilled bytes, as ptxas -v says."""
    found = {}
    for text in said.split("Compiling entry function")[1:]:
        name = re.search(r"'(\w+)'", text)[1]
        spills = r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
        stack, stores, loads = map(int, re.search(spills, text).groups())
        registers = int(re.search(r"Used (\d+) registers", text)[1])
        found[name] = dict(registers=registers, stack=stack, spilled=stores + loads)
    return found


@pytest.mark.parametrize("source, arch", sources(""))
def test_nothing_is_spilled(source, arch):
    for name, used in functions(compiled(source, arch)[1]).items():
        assert used["spilled"] == 0 and used["stack"] == 0, (name, used)


@pytest.mark.parametrize("source, arch", sources(GEMM))
def test_the_budget_of_every_tile(source, arch):
    math = source.rsplit("_", 1)[1].removesuffix(".cu")
    element = 2 if math in ("f16", "bf16") else 4
    direction = next((d for d in DIRECTIONS[1:] if d in source), "forward")
    # Behind the stages: the steps from tap to tap, the ring of pixels.
    extra = {"forward": 0, "input_grad": 32, "weight_grad": 2 * 3 * 64 * 8}[direction]
    seen = set()
    for name, used in functions(compiled(source, arch)[1]).items():
        # GemmConfig<(Math)0, 4, false, (Direction)0>
        found = r"GemmConfigIL\w*4MathE(\d)ELi(\d+)ELb(\d)EL\w*DirectionE(\d)E"
        config = re.search(found, name)
        if config is None:
            continue
        assert kernels.MATHS[int(config[1])] == math
        assert DIRECTIONS[int(config[4])] == direction
        tile = kernels.tiles(math, direction)[int(config[2])]
        seen.add(int(config[2]))
        threads = 32 * (tile.bm // tile.wm) * (tile.bn // tile.wn)
        shared = tile.stages * (tile.bm + tile.bn) * tile.bk * element + extra + 1024
        assert used["registers"] <= tile.registers, f"{tile}: {used}"
        given = -(-used["registers"] // 8) * 8  # registers are given to a warp in units of 256
        assert tile.blocks * threads * given <= REGISTERS_OF_AN_SM, f"{tile}: {used}"
        assert tile.blocks * shared <= SHARED_OF_AN_SM[arch], f"{tile}: {shared} bytes"
    assert seen == set(range(len(kernels.tiles(math, direction))))


def machine_code(source: str, arch: str) -> list[str]:
    """Of each function of a source, its name in the first line."""
    tool = find_cuobjdump()
    path = os.pathsep.join([str(Path(tool).parent), os.environ["PATH"]])  # it calls nvdisasm
    command = [tool, "-sass", str(compiled(source, arch)[0])]
    env = {**os.environ, "PATH": path}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=env)
    return done.stdout.split("Function : ")[1:]


def mma_of(source: str) -> str:
    kind = {"f16": "HMMA.16816.F32 ", "bf16": "HMMA.16816.F32.BF16"}
    return kind.get(source.rsplit("_", 1)[1].removesuffix(".cu"), "HMMA.1688.F32.TF32")


@pytest.mark.skipif(find_cuobjdump() is None, reason="no cuobjdump")
@pytest.mark.parametrize("source, arch", sources(GEMM))
def test_the_machine_code_uses_the_tensor_cores(source, arch):
    wanted = mma_of(source)
    for function in machine_code(source, arch):
        if "GemmConfig" in function.split("\n")[0] and "add_splits" not in function.split("\n")[0]:
            first = function.split("\n")[0]
            across = "conv_input_grad" in source or "conv_weight_grad" in source
            loads = "LDSM.16.MT88.4" if across and "16.cu" in source else "LDSM.16.M88.4"
            stores = "STG.E.64" if "conv_weight_grad" in source else "STG.E.128"
            if "weight_grad" in source and "16.cu" not in source:
                loads = "LDS"  # floats are transposed by reads of 4 bytes
            for instruction in (wanted, "LDGSTS.E.BYPASS", loads, stores):
                assert instruction in function, (first, instruction)


@pytest.mark.skipif(find_cuobjdump() is None, reason="no cuobjdump")
@pytest.mark.parametrize("source, arch", sources("instances/conv_stem"))
def test_stems_use_the_tensor_cores(source, arch):
    """Their operands are read element by element into shared memory, where rows lie unaligned."""
    found = [f for f in machine_code(source, arch) if "StemConfig" in f or "StemGradConfig" in f]
    assert found and all("HMMA.16816.F32" in f or "HMMA.1688.F32.TF32" in f for f in found)
    assert not any("LDL" in f or "STL" in f for f in found)


def test_every_kernel_promises_its_threads_and_blocks():
    """Which bounds its registers: the compiler keeps to it or spills, and nothing is spilled."""
    for path in sorted(CUDA.rglob("*.cuh")):
        kernels_of = re.findall(r"__global__ void\s*(\S+)", path.read_text())
        assert all(first.startswith("__launch_bounds__(") for first in kernels_of), path
