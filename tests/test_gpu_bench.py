"""The GPU benchmarks where there is no GPU: the script's course, the timing's logic, the tables."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "bench"))

import gpu_common  # noqa: E402
import gpu_layers  # noqa: E402
import gpu_networks  # noqa: E402

# Stands in for Python on a machine with an H100; $FAIL names the part that fails.
PYTHON = """#!/usr/bin/env bash
echo "$FASTCONV_CUDA_ARCHS $*" >>"$LOG"
case "$*" in
  *get_device_capability*) echo 90 ;;
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
    order = ["90a setup.py build_ext --inplace", "90a -m pytest"]
    order += ["test_triton_gpu.py", "90a bench/gpu_layers.py"]
    order += [
        "backward.json",
        "90a bench/gpu_networks.py",
        "sanitizer --tool memcheck",
        "sanitizer --tool racecheck",
    ]
    places = [log.index(part) for part in order]
    assert places == sorted(places)
    steps = json.loads((tmp_path / "out/steps.json").read_text())
    assert [step["step"] for step in steps] == [
        *("test", "triton", "layers", "backward", "networks", "sanitize")
    ]
    assert all(step["status"] == 0 for step in steps)
    assert (tmp_path / "out/layers.json").exists() and "0 errors" in done.stdout


def test_it_is_built_again_only_when_a_source_changed(script, tmp_path):
    for text, builds in (("1", 1), ("1", 1), ("2", 2)):
        (script.tree / "csrc/a.cu").write_text(text)
        assert script(tmp_path / "out", "test").returncode == 0
        assert (script.tree / "log").read_text().count("build_ext") == builds


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
    with pytest.raises(SystemExit, match="no NVIDIA GPU"):
        gpu_layers.main(["--filter", "^lenet"])


class CountingClock:
    """Calls everything once; a call of the n-th contestant takes n seconds, half in a graph."""

    modes = ("eager", "graph")
    name, l2_bytes = "counted", 1 << 20

    def __init__(self):
        self.asked = 0

    def times(self, calls):
        for call in calls:
            call()
        self.asked += 1
        return {"eager": float(self.asked), "graph": self.asked / 2}


@pytest.fixture
def counted(monkeypatch):
    """The benchmarks on the CPU and the clock above, ceilings of 1 everywhere."""
    roof = {"copy": 1.0, **dict.fromkeys(gpu_common.PRECISIONS, 1.0)}
    monkeypatch.setattr(gpu_common, "ceilings", lambda clock, device: roof)
    for module in (gpu_layers, gpu_networks):
        monkeypatch.setattr(module, "clock_for", lambda device: CountingClock())


CPU = ["--device", "cpu", "--batch", "1", "--compile", ""]


def test_layers_in_every_precision_and_form(counted, tmp_path, capsys):
    out = tmp_path / "layers.json"
    assert gpu_layers.main([*CPU, "--filter", "^lenet", "--json", str(out)]) == 0
    document = json.loads(out.read_text())
    rows = document["rows"]
    assert document["complete"] and len(rows) == 2 * 4 * 3
    for row in rows:
        assert not row["errors"]
        names = ["torch", "fastconv"]
        names += ["torch NCHW"] * (row["form"] == "bare" and row["precision"] == "float32")
        assert list(row["seconds"]) == names
        assert row["seconds"]["fastconv"]["graph"] == row["seconds"]["fastconv"]["eager"] / 2
    first = {(row["precision"], row["form"]): row["floor"] for row in rows[::-1]}
    # conv2d 1->6 5x5 of 28x28, padded: 2 * 784 * 6 * 25 operations at 1 a second
    assert first["float16", "bare"] == 2 * 784 * 6 * 25
    assert "geometric" not in capsys.readouterr().err


def test_gradients_of_layers(counted, tmp_path):
    arguments = [*CPU, "--backward", "--filter", "^lenet|resnet18 3x3/2 64->128 @56"]
    arguments += ["--precision", "float32", "--json", str(tmp_path / "a")]
    assert gpu_layers.main(arguments) == 0
    rows = json.loads((tmp_path / "a").read_text())["rows"]
    assert [row["form"] for row in rows] == ["bare", "input_grad", "weight_grad"] * 3
    assert not any(row["errors"] for row in rows)
    assert all({"torch", "fastconv"} <= set(row["seconds"]) for row in rows)
    assert len({row["floor"] for row in rows}) == 3  # a layer's passes move and multiply the same


def test_layers_go_on_where_an_earlier_run_ended(counted, tmp_path, capsys):
    arguments = [*CPU, "--filter", "^lenet", "--precision", "tf32", "--json", str(tmp_path / "a")]
    assert gpu_layers.main([*arguments, "--seconds", "0"]) == 1  # nothing was measured
    assert "INCOMPLETE" in capsys.readouterr().out
    assert gpu_layers.main([*arguments[:-4], "--precision", "tf32", *arguments[-2:]]) == 0
    before = json.loads((tmp_path / "a").read_text())
    assert gpu_layers.main(arguments) == 0
    assert json.loads((tmp_path / "a").read_text()) == before
    assert gpu_layers.main([*arguments, "--batch", "2"]) == 0  # other settings: from the start
    assert json.loads((tmp_path / "a").read_text())["batch"] == 2


def test_torch_compile_is_beside_torchs_and_ours_and_comes_last(counted, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    arguments = [*CPU[:-1], "float16", "--filter", "^lenet.*@28", "--precision", "float16"]
    assert gpu_layers.main([*arguments, "--json", str(tmp_path / "a")]) == 0
    rows = json.loads((tmp_path / "a").read_text())["rows"]
    assert [row["form"] for row in rows[3:]] == ["relu+compile", "residual+compile"]
    assert all(list(row["seconds"]) == ["torch", "fastconv", "compile"] for row in rows[3:])
    assert rows[4]["floor"] == rows[2]["floor"] > rows[1]["floor"] * 0.99


def test_networks(counted, tmp_path):
    out = tmp_path / "networks.json"
    arguments = [*CPU, "--filter", "^lenet", "--precision", "float32", "--json", str(out)]
    assert gpu_networks.main(arguments) == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert list(row["seconds"]) == ["torch", "fastconv"] and not row["errors"]


def test_a_wrong_result_is_not_timed_and_a_raised_error_is_kept():
    one = torch.ones(3)
    calls = {
        "torch": [lambda: one],
        "fastconv": [lambda: one * 1.1],
        "nan": [lambda: one * torch.nan],
        "broken": [lambda: one.view(7)],
        "right": [lambda: one * (1 + 1e-6)],
    }
    precision = gpu_common.PRECISIONS["float32"]
    found = gpu_common.measured(CountingClock(), calls, precision)
    assert list(found["seconds"]) == ["torch", "right"]
    assert "1.0e-01 from torch" in found["errors"]["fastconv"] and "nan" in found["errors"]
    assert found["errors"]["broken"].startswith("RuntimeError")
    calls["torch"] = calls["broken"]  # without torch's result there is nothing to compare with
    found = gpu_common.measured(CountingClock(), calls, precision)
    assert not found["seconds"] and len(found["errors"]) == len(calls)


class PretendedGpu:
    """torch.cuda's names that CudaClock uses; a call of a task takes a second of GPU time."""

    def __init__(self):
        self.seconds, self.capturing = 0.0, None

    def task(self):
        if self.capturing is None:
            self.seconds += 1
        else:
            self.capturing.calls += 1

    def patch(self, monkeypatch):
        gpu = self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                self.at = gpu.seconds

            def elapsed_time(self, end):
                return (end.at - self.at) * 1e3  # milliseconds

        class CUDAGraph:
            calls = 0

            def replay(self):
                gpu.seconds += self.calls / 2  # nothing waits for the host

        class Stream:
            def wait_stream(self, other):
                pass

        @contextlib.contextmanager
        def graph(captured):
            gpu.capturing = captured
            yield
            gpu.capturing = None

        names = dict(Event=Event, CUDAGraph=CUDAGraph, Stream=Stream, graph=graph)
        names.update(stream=contextlib.nullcontext, current_stream=Stream)
        names.update(synchronize=lambda: None)
        properties = SimpleNamespace(L2_cache_size=50 << 20, name="pretended")
        names.update(get_device_properties=lambda: properties)
        for name, value in names.items():
            monkeypatch.setattr(torch.cuda, name, value)


@pytest.mark.parametrize("sets", [1, 3, 6])
def test_the_clock_divides_by_the_calls_it_times(monkeypatch, sets):
    gpu = PretendedGpu()
    gpu.patch(monkeypatch)
    clock = gpu_common.CudaClock()
    called = []
    tasks = [lambda i=i: (called.append(i), gpu.task()) for i in range(sets)]
    assert clock.times(tasks) == {"eager": 1.0, "graph": 0.5}
    assert clock.l2_bytes == 50 << 20
    assert called[:sets] == list(range(sets))  # in turn


def test_summary():
    def row(name, theirs, ours):
        seconds = {"torch": {"graph": theirs}, "fastconv": {"graph": ours}}
        return {"name": name, "precision": "tf32", "floor": 1.0, "seconds": seconds, "errors": {}}

    document = {"rows": [row("a", 4.0, 2.0), row("b", 4.0, 8.0)], "complete": True}
    _, line = gpu_common.summary(document, ("precision",))
    # gains 2 and 0.5, shares of the roofline 1/2 and 1/8, torch's 1/4
    assert line.split() == ["tf32", "graph", "torch", "2", "1.00", "0.50", "25", "(25)", "b"]
    document["rows"][0]["errors"]["cudnn"] = "refused"
    document["complete"] = False
    text = "\n".join(gpu_common.summary(document, ("precision",)))
    assert "not measured: a, cudnn: refused" in text and "INCOMPLETE" in text


def test_switches_are_put_back():
    precision = gpu_common.PRECISIONS["float32"]
    before = torch.backends.cudnn.allow_tf32
    with precision.switched():
        assert not torch.backends.cudnn.allow_tf32
        assert torch.backends.cudnn.conv.fp32_precision != "tf32"  # what fastconv reads
    with gpu_common.PRECISIONS["tf32"].switched():
        assert torch.backends.cudnn.conv.fp32_precision == "tf32"
    assert torch.backends.cudnn.allow_tf32 == before


def test_inputs_pass_the_cache_and_stay_few():
    clock = gpu_common.HostClock()
    assert gpu_common.input_sets(clock, 1 << 19) == 5
    assert gpu_common.input_sets(clock, 1) == gpu_common.MOST_SETS
    assert gpu_common.input_sets(clock, 1 << 30) == 1
    assert gpu_common.HostClock().times([lambda: None])["eager"] > 0
