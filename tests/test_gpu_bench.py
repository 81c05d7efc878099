"""The GPU benchmarks where there is no GPU: the timing's logic, the tables."""

from __future__ import annotations

import contextlib
import json
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
import gpu_pools  # noqa: E402
import gpu_train  # noqa: E402


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is at hand")
@pytest.mark.parametrize("benchmark", [gpu_layers, gpu_networks, gpu_pools, gpu_train])
def test_without_a_gpu_it_says_so(benchmark):
    with pytest.raises(SystemExit, match="no NVIDIA GPU"):
        benchmark.main(["--filter", "^lenet"])


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

    def peak(self, task):
        task()
        return 1000000 * self.asked


@pytest.fixture
def counted(monkeypatch):
    """The benchmarks on the CPU and the clock above, ceilings of 1 everywhere."""
    roof = {"copy": 1.0, **dict.fromkeys(gpu_common.PRECISIONS, 1.0)}
    monkeypatch.setattr(gpu_common, "ceilings", lambda clock, device: roof)
    for module in (gpu_layers, gpu_networks, gpu_pools):
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
    forms = [form for _, form in first][::-1]
    assert forms == [*gpu_layers.FORMS, *sorted(3 * gpu_layers.FORMS)]  # of float16; of the others
    # conv2d 1->6 5x5 of 28x28, padded: 2 * 784 * 6 * 25 operations at 1 a second
    assert first["float16", "bare"] == 2 * 784 * 6 * 25
    assert {row["bound"] for row in rows} == {"products"}
    assert "geometric" not in capsys.readouterr().err


def test_gradients_of_layers(counted, tmp_path):
    arguments = [*CPU, "--backward", "--filter", "^lenet|resnet18 3x3/2 64->128 @56"]
    arguments += ["--precision", "float32", "--json", str(tmp_path / "a")]
    assert gpu_layers.main(arguments) == 0
    rows = json.loads((tmp_path / "a").read_text())["rows"]
    assert [row["form"] for row in rows] == [
        form for form in ("input_grad", "weight_grad", "bare") for _ in range(3)
    ]
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
    assert all(p.is_meta for net in gpu_networks.pair_of("lenet", "meta") for p in net.parameters())


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_training_steps(counted, tmp_path, capsys, precision):
    out = tmp_path / "train.json"
    arguments = [*CPU, "--filter", "^lenet", "--precision", precision, "--json", str(out)]
    assert gpu_train.main(arguments) == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert list(row["seconds"]) == ["torch", "fastconv"] and not row["errors"]
    assert row["peak"] == {"torch": 2000000, "fastconv": 2000000}
    assert "MB: torch 2, fastconv 2" in capsys.readouterr().out


def test_a_training_step_is_one(monkeypatch):
    """The parameters that SGD makes of the gradients; float16's are scaled and unscaled again."""
    ours, twin = gpu_networks.pair_of("lenet", "cpu")
    x, labels = torch.randn(3, 1, 28, 28), torch.arange(3)
    step = gpu_train.Step(ours, torch.float16, "cpu")
    optimizer = torch.optim.SGD(twin.train().requires_grad_().parameters(), 1e-3, momentum=0.9)
    start = [p.detach().clone() for p in twin.parameters()]
    for _ in range(2):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(twin(x), labels)
        loss.backward()
        optimizer.step()
        assert step(x, labels).item() == pytest.approx(loss.item(), rel=1e-2)
    for mine, other, before in zip(ours.parameters(), twin.parameters(), start, strict=True):
        assert (mine - other).norm() < 0.02 * (other - before).norm()


def test_a_training_step_of_a_wrong_network_is_not_timed(counted, tmp_path, monkeypatch):
    right = gpu_networks.pair_of

    def wrong(*which):
        ours, twin = right(*which)
        with torch.no_grad():
            ours[0].weight.mul_(3)
        return ours, twin

    monkeypatch.setattr(gpu_networks, "pair_of", wrong)
    out = tmp_path / "train.json"
    arguments = [*CPU, "--filter", "^lenet", "--precision", "float32", "--json", str(out)]
    assert gpu_train.main(arguments) == 1
    (row,) = json.loads(out.read_text())["rows"]
    assert list(row["seconds"]) == list(row["peak"]) == ["torch"] and "fastconv" in row["errors"]


def test_poolings_and_adds(counted, tmp_path):
    out = tmp_path / "pools.json"
    options = [*CPU[:4], "--precision", "float16", "--filter", "512@14|2048@7", "--json", str(out)]
    assert gpu_pools.main(options) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [row["form"] for row in rows] == [form for form in gpu_pools.FORMS for _ in range(3)]
    assert not any(row["errors"] for row in rows)
    floors = [row["floor"] for row in rows]  # bytes, at one byte a second
    # 14x14 to 7x7, two bytes an element and one an index; 7x7 to one pixel; two inputs, one output
    index, pool, average, added = 512 * 49, 512 * 2 * (196 + 49), 2048 * 2 * 50, 2048 * 98
    assert floors[:3] == [pool, average, 3 * added]
    assert floors[3:6] == [pool + index, average, 3 * added]
    assert floors[6:] == [2 * (pool + index), 2 * average, 6 * added]


def test_triton_is_timed_beside_them(counted, tmp_path, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(gpu_pools, "CASES", {"add": gpu_pools.add(16, 3)})
    out = tmp_path / "pools.json"
    options = [*CPU[:4], "--precision", "float32", "--json", str(out)]
    assert gpu_pools.main([*options, "--triton"]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert all(list(row["seconds"]) == ["torch", "fastconv", "triton"] for row in rows), rows


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
    """torch.cuda's names that CudaClock uses; a call of a task takes `each` seconds of GPU time."""

    def __init__(self, each=1.0):
        self.seconds, self.capturing, self.each, self.graphs = 0.0, None, each, []

    def task(self):
        if self.capturing is None:
            self.seconds += self.each
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
                gpu.seconds += gpu.each * self.calls / 2  # nothing waits for the host

        class Stream:
            def wait_stream(self, other):
                pass

        @contextlib.contextmanager
        def graph(captured):
            gpu.capturing = captured
            gpu.graphs.append(captured)
            yield
            gpu.capturing = None

        names = dict(Event=Event, CUDAGraph=CUDAGraph, Stream=Stream, graph=graph)
        self.stream = Stream()
        names.update(stream=contextlib.nullcontext, current_stream=lambda: gpu.stream)
        names.update(set_stream=lambda stream: setattr(gpu, "stream", stream))
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
    assert [graph.calls for graph in gpu.graphs] == [sets]


def test_a_capture_that_fails_leaves_the_stream_as_it_was(monkeypatch):
    gpu = PretendedGpu()
    gpu.patch(monkeypatch)
    before = gpu.stream

    @contextlib.contextmanager
    def graph(captured):  # as torch's, which stays in the stream of captures where one fails
        gpu.stream = object()
        raise RuntimeError("not permitted when stream is capturing")
        yield

    monkeypatch.setattr(torch.cuda, "graph", graph)
    with pytest.raises(RuntimeError, match="capturing"):
        gpu_common.CudaClock().times([gpu.task])
    assert gpu.stream is before


def test_the_copy_is_measured_when_the_clocks_are_up():
    measured = []

    class Clock:
        def times(self, calls):
            measured.append(calls[0]().dtype)
            return {"eager": 1.0}

    found = gpu_common.ceilings(Clock(), "cpu")
    assert found["copy"] == 2 << 20 and found["float16"] == 2 * 128**3
    assert measured[-1] == torch.uint8 and torch.uint8 not in measured[:-1]


def test_a_row_that_the_gpu_does_not_survive_ends_the_process_and_the_next_goes_on(
    counted, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "layers.json"
    arguments = [*CPU, "--filter", "^lenet", "--precision", "float16", "--json", str(out)]
    make, made = gpu_layers.operands, []

    def operands(*which):
        made.append(which)
        if len(made) == 2:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return make(*which)

    monkeypatch.setattr(gpu_layers, "operands", operands)
    monkeypatch.setattr(gpu_layers, "input_sets", lambda *_: 1)
    monkeypatch.setattr(gpu_common, "takes_work", lambda device: len(made) != 2)
    monkeypatch.setattr(gpu_common.os, "_exit", lambda status: sys.exit(status))
    with pytest.raises(SystemExit) as ended:
        gpu_layers.main(arguments)
    assert ended.value.code == gpu_common.LOST
    rows = json.loads(out.read_text())["rows"]
    assert len(rows) == 2 and "illegal memory" in rows[1]["errors"]["fastconv"]
    assert gpu_layers.main(arguments) == 1  # as one row failed
    assert len(json.loads(out.read_text())["rows"]) == 6
    assert "FAILED" in capsys.readouterr().out


def test_results_are_of_the_sources_and_others_are_kept(counted, tmp_path, monkeypatch):
    for name in ("csrc/cuda/a.cu", "setup.py", "fastconv/triton/a.py", "bench/gpu_common.py"):
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_text("1")
    monkeypatch.setattr(gpu_common, "__file__", str(tmp_path / "tree/bench/gpu_common.py"))
    out = tmp_path / "layers.json"
    arguments = [*CPU, "--filter", "^lenet.*@28", "--precision", "tf32", "--json", str(out)]
    assert gpu_layers.main(arguments) == 0
    before = json.loads(out.read_text())
    (tmp_path / "tree/fastconv/_C.so").write_text("built again")
    assert gpu_layers.main(arguments) == 0
    assert json.loads(out.read_text()) == before
    (tmp_path / "tree/csrc/cuda/a.cu").write_text("2")
    assert gpu_layers.main([*arguments, "--seconds", "0"]) == 1
    assert json.loads((tmp_path / "layers.earlier.json").read_text()) == before


@pytest.mark.parametrize("sets, calls", [(1, 100), (7, 105), (2000, 2000)])
def test_short_calls_are_captured_often_enough_to_be_timed(monkeypatch, sets, calls):
    gpu = PretendedGpu(each=1e-5)
    gpu.patch(monkeypatch)
    found = gpu_common.CudaClock().times([gpu.task] * sets)
    assert found["eager"] == pytest.approx(1e-5) and found["graph"] == pytest.approx(5e-6)
    assert gpu.graphs[-1].calls == calls


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
    assert gpu_common.input_sets(clock, 1 << 19, most=2) == 2
    assert gpu_common.HostClock().times([lambda: None])["eager"] > 0
