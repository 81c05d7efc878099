"""The command line: help, information, a validation that passes and one that must fail."""

import json
import math
import sys
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import fastconv.nn
from fastconv.cli import info, main, validate
from fastconv.cli.comparison import Row, compare_layer, compare_networks
from fastconv.cli.decisions import Recorder, Replay
from fastconv.ops.sizes import allows_tf32
from fastconv.testing import torch_layers
from fastconv.testing.compare import tf32
from fastconv.testing.layers import LAYERS


def run(*arguments):
    """The exit status of `python -m fastconv ARGUMENTS`."""
    try:
        return main(list(arguments)) or 0
    except SystemExit as exit:
        return exit.code


@pytest.mark.parametrize("command", ["info", "validate", "train", "predict", "tune"])
def test_help(command, capsys):
    assert run(command, "--help") == 0
    assert command in capsys.readouterr().out


def test_info_names_the_instruction_set(capsys):
    assert run("info") == 0
    assert "instruction set in use" in capsys.readouterr().out


def test_validate_passes_and_writes_its_results(tmp_path):
    file = tmp_path / "results.json"
    assert run("validate", "--network", "lenet", "--no-layers", "--json", str(file)) == 0
    assert "lenet" in json.dumps(json.loads(file.read_text()))


def test_validate_fails_on_a_wrong_kernel(monkeypatch):
    right = fastconv.nn.conv2d
    monkeypatch.setattr(fastconv.nn, "conv2d", lambda *a, **k: right(*a, **k) * 1.001)
    assert run("validate", "--network", "lenet", "--no-layers") == 1


def test_tune_keeps_its_choices(tmp_path, capsys):
    file = tmp_path / "choices.json"
    command = ("tune", "--network", "resnet18", "--seconds", "0.001", "--cache", str(file))
    assert run(*command, "--channels-last") == 0
    assert "winograd" in capsys.readouterr().out and len(json.loads(file.read_text())["seconds"])
    fastconv._C.forget_choices()


def test_unknown_network_is_refused(capsys):
    assert run("validate", "--network", "lenet9000") == 2
    assert "lenet9000" in capsys.readouterr().err


def test_validate_compares_float32_without_tf32(monkeypatch):
    """Which torch allows on CUDA by default: its own error would be what is measured."""
    seen = []

    def compare(layer, *_, **__):
        seen.append(allows_tf32())
        return Row("layer", layer.name, "", "float32")

    monkeypatch.setattr(validate, "compare_layer", compare)
    monkeypatch.setattr(validate, "compare_networks", lambda *_, **__: Row("network", "", "", ""))
    with tf32(True):
        run("validate", "--network", "lenet")
        assert allows_tf32()
    assert seen and not any(seen)


@pytest.mark.parametrize("command", ["validate", "train", "predict"])
def test_help_tells_options_and_examples(command, capsys):
    assert run(command, "--help") == 0
    text = capsys.readouterr().out
    assert "examples:" in text and "(default: " in text and "--checkpoint" in text


def test_info_shows_the_environment(monkeypatch, capsys):
    monkeypatch.setenv("FASTCONV_EXAMPLE", "seven")
    assert run("info") == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split() == ["FASTCONV_EXAMPLE", "seven"] for line in lines)
    assert any(line.split() == ["torch", torch.__version__] for line in lines)


def test_info_names_the_gpus(monkeypatch, capsys):
    gpu = SimpleNamespace(name="NVIDIA H200", major=9, minor=0, multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: gpu)
    assert run("info") == 0
    out = capsys.readouterr().out
    assert "NVIDIA H200, compute capability 9.0, 132 multiprocessors" in out
    assert "torch's CUDA" in out


def test_info_aligns_any_keys(monkeypatch, capsys):
    monkeypatch.setattr(
        info, "sections", lambda: {"a": {"x": True, "longer": ["p", "q"]}, "b": {"y": False}}
    )
    assert run("info") == 0
    assert capsys.readouterr().out == "a\n  x       yes\n  longer  p q\nb\n  y       no\n"


# --- endings ------------------------------------------------------------------------------------


def test_a_missing_package_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert run("validate", "--network", "lenet") == 2
    error = capsys.readouterr().err
    assert "pip install -e '.[demo]'" in error and "rich" in error and error.count("\n") == 1


def test_ctrl_c_ends_with_130(monkeypatch, capsys):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(info, "sections", interrupt)
    assert run("info") == 130
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "COMMAND"),
        (["paint"], "paint"),
        (["validate", "--dtype", "int8"], "int8"),
        (["validate", "--device", "abacus"], "--device abacus"),
        (["validate", "--device", "meta"], "must be cpu or cuda"),
        (["validate", "--network", "lenet", "--backend", "abacus"], "abacus"),
        (["validate", "--network", "lenet", "--backend", "cuda"], "takes no tensors of --device"),
        (["validate", "--checkpoint", "missing.pt"], "missing.pt"),
        (["validate", "--network", "lenet", "--json", "no/such/folder.json"], "cannot write"),
        (["predict", "--checkpoint", "missing.pt", "a.png"], "missing.pt"),
        (["predict", "a.png"], "--checkpoint"),
    ],
)
def test_wrong_use_has_status_2(arguments, message, capsys):
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err


# --- validate -----------------------------------------------------------------------------------


def test_json_has_every_row(tmp_path, capsys):
    file = tmp_path / "results.json"
    assert run("validate", "--network", "lenet", "--seed", "3", "--json", str(file)) == 0
    result = json.loads(file.read_text())
    assert result["passed"] is True and result["seed"] == 3 and result["torch"] == torch.__version__
    assert result["GPUs"] and result["device"] == "cpu"
    kinds = [(row["kind"], row["dtype"]) for row in result["rows"]]
    assert kinds == [("network", "float64"), ("network", "float32")] + [("layer", "float32")] * 2
    for row in result["rows"]:
        assert 0 <= row["error"] <= row["allowed"] < 1e-5 and row["failures"] == []
        assert row["parameters"] > 0 and row["tensor"]
    assert result["rows"][1]["fastconv_ms"] > 0 and result["rows"][0]["torch_ms"] is None
    assert "all 4 comparisons passed" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_every_dtype(dtype):
    assert run("validate", "--network", "lenet", "--dtype", dtype) == 0


def test_a_picture_of_ones_own(tmp_path):
    pixels = torch.randint(0, 256, (50, 70, 3), dtype=torch.uint8).numpy()
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for network in ("classic_cnn", "lenet"):
        arguments = ("--network", network, "--no-layers", "--image", str(tmp_path / "a.png"))
        assert run("validate", *arguments) == 0
    (tmp_path / "a.png").write_text("no picture")
    assert run("validate", *arguments) == 2


def test_state_dict_of_one_network(tmp_path, capsys):
    file = tmp_path / "weights.pt"
    torch.save(fastconv.models.lenet().state_dict(), file)
    assert run("validate", "--network", "lenet", "--checkpoint", str(file), "--no-layers") == 0
    assert run("validate", "--checkpoint", str(file)) == 2
    assert "one --network" in capsys.readouterr().err


def wrong(monkeypatch, name, change):
    """fastconv.nn computes with a changed op."""
    right = getattr(fastconv.nn, name)
    monkeypatch.setattr(fastconv.nn, name, lambda *a, **k: change(right(*a, **k)))


@pytest.mark.parametrize("factor", [1 + 1e-5, math.nan])
def test_a_wrong_layer_fails_its_row(monkeypatch, factor, capsys):
    wrong(monkeypatch, "conv2d", lambda y: y * factor)
    assert not compare_layer(LAYERS[0], torch.float32, torch.device("cpu"), timed=False).ok
    assert run("validate", "--network", "lenet") == 1
    assert "4 of 4 comparisons FAILED" in capsys.readouterr().out


def test_a_wrong_gradient_fails(monkeypatch):
    class Scaled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * (1 + 1e-4)

    inputs = torch.rand(2, 3, 32, 32), torch.arange(2)
    assert compare_networks("classic_cnn", *inputs, torch.float32, timed=False).ok
    wrong(monkeypatch, "max_pool2d", lambda y: y if isinstance(y, tuple) else Scaled.apply(y))
    row = compare_networks("classic_cnn", *inputs, torch.float32, timed=False)
    assert row.failures and all(".grad:" in f or " stepped:" in f for f in row.failures)


def test_an_op_that_raises_fails_its_row(monkeypatch, capsys):
    def refuse(*args, **options):
        raise NotImplementedError("not on a Tuesday")

    monkeypatch.setattr(fastconv.nn, "avg_pool2d", refuse)
    assert run("validate", "--network", "lenet", "--no-layers") == 1
    assert "not on a Tuesday" in capsys.readouterr().out


def test_a_row_judges_shapes_dtypes_and_infinities():
    def judged(actual, truth):
        row = Row("layer", "a", "1", "float16")
        row.add("output", actual, truth, [1e-3])
        return row.ok

    truth = torch.tensor([1.0, 1e6, -1e6], dtype=torch.float64)  # float16 ends at 65504
    assert judged(truth.half(), truth)
    assert not judged(-truth.half(), truth)
    assert not judged(torch.tensor([1.0, 65504, -65504]).half(), truth)
    assert not judged(truth.float(), truth)
    assert not judged(truth.half()[:2], truth)
    assert not judged(torch.tensor([math.nan] * 3).half(), torch.tensor([math.nan] * 3).double())
    assert not Row("layer", "nothing was compared", "1", "float16").ok


# --- decisions ----------------------------------------------------------------------------------


def test_both_sides_decide_alike_and_replay_repeats():
    torch.manual_seed(0)
    twin = fastconv.models.nin(num_classes=10, layers=torch_layers).double()
    network = fastconv.models.nin(num_classes=10).double()
    network.load_state_dict(twin.state_dict())
    x = torch.randn(1, 3, 96, 80, dtype=torch.float64)
    with Recorder(0) as first:
        output = twin(x)
    with Recorder(0) as second, second.watching(network):
        network(x)
    assert len(first.decisions) == len(second.decisions) == 15  # 12 ReLUs, 3 max poolings
    assert all(map(torch.equal, first.decisions, second.decisions))
    with Replay(0, first.decisions):
        assert torch.equal(twin(x), output)
    with Replay(0, first.decisions[:5]), pytest.raises(RuntimeError, match="decision"):
        twin(x)


def test_replay_takes_the_other_side_of_a_tie():
    x = torch.tensor([[-1e-9, 2.0]], requires_grad=True)
    with Replay(0, [torch.tensor([[True, False]])]):
        torch.relu(x).sum().backward()
    assert x.grad.tolist() == [[1.0, 0.0]]
