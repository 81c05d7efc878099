"""bench/gpu.sh where there is no GPU: the course of its steps, failures, time limits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]

# Stands in for Python on a machine with an H100; $FAIL names the part that fails.
PYTHON = """#!/usr/bin/env bash
echo "$FASTCONV_CUDA_ARCHS $*" >>"$LOG"
case "$*" in
  *get_device_capability*) echo 90 ;;
  *setuptools.__version__*) [ -z "${OLD:-}" ] || { echo "setuptools 65" >&2; exit 1; } ;;
  *"${FAIL:-nothing}"*) exit 3 ;;
  *--json*) echo "{}" >"${@: -1}" ;;
esac
"""
SANITIZER = """#!/usr/bin/env bash
echo "sanitizer $*" >>"$LOG"
while [ "$1" != --log-file ]; do shift; done
echo "ERROR SUMMARY: 0 errors" >"$2"
"""


@pytest.fixture
def script(tmp_path):
    """Runs a copy of gpu.sh with the stand-ins; what it called is in the file "log"."""
    tree = tmp_path / "tree"
    for name, text in {
        "bench/gpu.sh": (ROOT / "bench/gpu.sh").read_text(),
        "csrc/a.cu": "1",
        "setup.py": "",
        "python": PYTHON,
        "cuda/bin/compute-sanitizer": SANITIZER,
    }.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def run(*arguments, **environment):
        stand_ins = {"PYTHON": str(tree / "python"), "CUDA_HOME": str(tree / "cuda")}
        return subprocess.run(
            [tree / "bench/gpu.sh", *arguments],
            env={**os.environ, **stand_ins, "LOG": str(tree / "log"), **environment},
            capture_output=True,
            text=True,
        )

    run.tree = tree
    return run


def test_all_steps_in_order_after_a_build_for_this_gpu(script, tmp_path):
    done = script(tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    log = (script.tree / "log").read_text()
    order = ["90a setup.py build_ext --inplace", "90a -m pytest", "test_gpu.py tests/test_gpu_grad"]
    order += ["90a bench/gpu_layers.py", "90a bench/gpu_pools.py", "backward.json"]
    order += ["90a bench/gpu_networks.py", "test_gpu_train.py", "train64.json", "train.json"]
    order += ["triton.json", "triton_backward.json", "triton_pools.json", "test_triton_gpu.py"]
    order += ["sanitizer --tool memcheck", "sanitizer --tool racecheck"]
    places = [log.index(part) for part in order]
    assert log.rindex("layers.json") > places[-1]  # torch.compile's rows, in the same file
    assert log.splitlines()[-1].endswith(f"bench/gpu_bars.py {tmp_path / 'out'}")
    assert places == sorted(places)
    steps = json.loads((tmp_path / "out/steps.json").read_text())
    assert [step["step"] for step in steps] == [
        *("test", "layers", "backward", "networks", "train", "triton", "sanitize", "compile")
    ]
    assert all(step["status"] == 0 for step in steps)
    assert (tmp_path / "out/layers.json").exists() and "0 errors" in done.stdout


def test_it_is_built_again_only_when_a_source_changed(script, tmp_path):
    for text, builds in (("1", 1), ("1", 1), ("2", 2)):
        (script.tree / "csrc/a.cu").write_text(text)
        assert script(tmp_path / "out", "test").returncode == 0
        assert (script.tree / "log").read_text().count("build_ext") == builds


def test_what_measures_is_given_the_time_that_is_left(script, tmp_path):
    assert script(tmp_path / "out", "backward", "train", LIMIT="100").returncode == 0
    log = (script.tree / "log").read_text()
    seconds = [int(part.split()[0]) for part in log.split("--seconds ")[1:]]
    # All that is left or half of it, where another comes after; a fifth of it for the last row.
    expected = [40, 80, 40, 80]
    assert all(e - 15 <= each <= e for each, e in zip(seconds, expected, strict=True))
    assert {"pools.json", "backward.json", "train.json"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }


def test_the_steps_share_a_total(script, tmp_path):
    steps = ("layers", "networks", "backward")
    assert script(tmp_path / "out", *steps, TOTAL="300", LIMIT="130").returncode == 0
    log = (script.tree / "log").read_text()
    seconds = [int(part.split()[0]) for part in log.split("--seconds ")[1:]]
    expected = [80, 104, 52, 104]  # of 100, then 130, pools half; a fifth for the last row
    assert all(e - 15 <= each <= e for each, e in zip(seconds, expected, strict=True))
    (script.tree / "python").write_text(PYTHON + 'case "$*" in *build_ext*) sleep 60 ;; esac\n')
    (script.tree / "csrc/a.cu").write_text("2")
    assert "build failed" in script(tmp_path / "out", "test", TOTAL="2").stderr


@pytest.mark.parametrize("part", ["test_gpu_train", "gpu_train.py --seconds", "gpu_pools"])
def test_a_part_that_fails_does_not_keep_the_others_of_its_step_from_running(
    script, tmp_path, part
):
    assert script(tmp_path / "out", "backward", "train", FAIL=part).returncode == 1
    log = (script.tree / "log").read_text()
    assert all(
        each in log for each in ("gpu_pools", "gpu_layers", "test_gpu_train", "gpu_train.py")
    )
    steps = json.loads((tmp_path / "out/steps.json").read_text())
    assert sorted(step["status"] for step in steps) == [0, 3]


@pytest.mark.parametrize(
    "part, steps", [("build_ext", None), ("test_gpu.py", [3, 0]), ("gpu_layers", [0, 3])]
)
def test_a_failure_is_the_exit_status_and_the_other_steps_run(script, tmp_path, part, steps):
    done = script(tmp_path / "out", "test", "layers", FAIL=part)
    assert done.returncode == 1
    if steps is None:
        assert (
            "build failed" in done.stderr and "-m pytest" not in (script.tree / "log").read_text()
        )
    else:
        found = json.loads((tmp_path / "out/steps.json").read_text())
        assert [step["status"] for step in found] == steps


def test_a_step_that_hangs_is_stopped(script, tmp_path):
    (script.tree / "python").write_text(PYTHON + 'case "$*" in *test_gpu.py*) sleep 60 ;; esac\n')
    done = script(tmp_path / "out", "test", LIMIT="2")
    assert done.returncode == 1
    assert json.loads((tmp_path / "out/steps.json").read_text())[0]["status"] == 124


def test_after_a_row_that_the_gpu_did_not_survive_another_process_goes_on(script, tmp_path):
    once = 'case "$*" in *gpu_pools*) mkdir "$LOG.lost" 2>/dev/null && exit 75 ;; esac\nexit 0\n'
    (script.tree / "python").write_text(PYTHON + once)
    assert script(tmp_path / "out", "backward").returncode == 0
    assert (script.tree / "log").read_text().count("gpu_pools.py") == 2


def test_tests_that_time_cuts_off_are_told_to_report(script, tmp_path):
    wait = "trap 'echo 3 failed; exit 2' INT\ncase \"$*\" in *test_gpu.py*)"
    wait += " for _ in $(seq 600); do sleep 0.1; done ;; esac\n"
    (script.tree / "python").write_text(PYTHON + wait)
    done = script(tmp_path / "out", "test", LIMIT="20")
    assert done.returncode == 1 and "3 failed" in (tmp_path / "out/test.txt").read_text()
    assert json.loads((tmp_path / "out/steps.json").read_text())[0]["status"] == 124


def test_what_is_missing_is_said_before_the_build(script, tmp_path):
    done = script(tmp_path / "out", "test", OLD="1")
    assert done.returncode == 2 and "setuptools 65" in done.stderr
    assert "build_ext" not in (script.tree / "log").read_text()


def test_a_step_without_time_left_says_so(script, tmp_path):
    (script.tree / "python").write_text(PYTHON + 'case "$*" in *gpu_pools*) sleep 5 ;; esac\n')
    done = script(tmp_path / "out", "backward", LIMIT="2")
    assert done.returncode == 1 and "no time left for" in done.stdout
    assert json.loads((tmp_path / "out/steps.json").read_text())[0]["status"] == 124


def test_help_and_wrong_use(script, tmp_path):
    done = script("--help")
    assert done.returncode == 0 and "usage: bench/gpu.sh OUT" in done.stdout
    assert script().returncode == 2
    done = script(tmp_path / "out", "everything")
    assert done.returncode == 2 and "no step everything" in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is at hand")
def test_without_a_gpu_it_says_so(script, tmp_path):
    done = script(tmp_path / "out", PYTHON=sys.executable)
    assert done.returncode == 2 and "finds no NVIDIA GPU" in done.stderr
