"""The Triton backend executed from the PTX that Triton makes for sm_80 and sm_90."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from test_triton_build import child_environment

triton = pytest.importorskip("triton")

SCRIPT = Path(__file__).with_name("triton_ptx.py")


def executed(*arguments) -> dict[str, list[str]]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=child_environment())
    last = done.stderr.strip().rsplit("\n", 1)[-1]
    if last.startswith("NotImplementedError"):
        pytest.skip(f"PTX of Triton {triton.__version__}: {last}")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# sm_80's copies and products are what most kernels share; sm_90 multiplies by warpgroups.
@pytest.mark.parametrize("arch, instruction", [(80, "mma.sync"), (90, "wgmma")])
def test_what_every_network_is_made_of(arch, instruction):
    ran = executed(arch, 0, 4, "poolings", "adds", "tf32")
    assert any(p.startswith(instruction) for p in ran["products"])
    assert any("tf32" in p for p in ran["products"])
    kernels = {"add_dense", "add_strided", "avg_pool", "avg_pool_grad", "conv1x1", "conv_bias_grad"}
    kernels |= {"conv_implicit_gemm", "conv_weight_grad", "max_pool", "max_pool_grad_patches"}
    assert kernels <= set(ran["kernels"])


@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("case", ["every_tile", "networks"])
def test_more(case, arch):
    executed(arch, 1, 0, case)


@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("seed", range(2, 6))
def test_random_problems(seed, arch):
    executed(arch, seed, 20)
