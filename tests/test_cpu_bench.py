"""The scripts that measure on a CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fastconv import _C

BENCH = Path(__file__).parents[1] / "bench"


@pytest.mark.skipif("avx2" not in _C.cpu_isas().split(), reason="needs AVX2")
@pytest.mark.parametrize("script, rows", [("pools.py", "add.*28"), ("layers.py", "lenet 5x5 6")])
def test_a_file_names_the_instruction_set_it_is_held_to(script, rows, tmp_path):
    out = tmp_path / "out.json"
    options = ["--isa", "avx2", "--filter", rows, "--rounds", "1", "--json", out]
    subprocess.run([sys.executable, BENCH / script, *options], check=True, capture_output=True)
    document = json.loads(out.read_text())
    assert document["isa"] == "avx2" and document["rows"]
