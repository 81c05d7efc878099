"""What results files of the GPU's kernels say: the summary, and the bars."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import conftest
import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "bench"))

import gpu_bars  # noqa: E402
import gpu_results  # noqa: E402


def row(name, form, torchs, ours, precision="float16", mode="graph", **errors):
    seconds = {"torch": {mode: torchs}, **({} if errors else {"fastconv": {mode: ours}})}
    place = {"name": name, "precision": precision, "form": form}
    return {**place, "floor": 1.0, "seconds": seconds, "errors": errors}


def lines(tmp_path, stem, *rows, complete=True):
    (tmp_path / f"{stem}.json").write_text(json.dumps({"rows": rows, "complete": complete}))
    gpu_bars.main([str(tmp_path)])
    return {text[:40].strip(): text[40:].split() for text in gpu_bars.table(tmp_path)}


def test_gradients_of_strided_layers_and_stems_have_bars_of_their_own(tmp_path):
    stem, strided = "googlenet 7x7/2 3->64 @224", "resnet18 3x3/2 64->128 @56"
    found = lines(
        tmp_path,
        "backward",
        row(stem, "weight_grad", 1.0, 0.5),
        row(stem, "input_grad", 1.0, 4.0),
        row(strided, "weight_grad", 1.0, 2.0),
        row(strided, "input_grad", 9.0, 3.0),
    )
    assert found["strided input gradient"][:6] == ["2.00", "3.00", "reached", "1", "of", "1"]
    assert found["stems' weight gradient"][:3] == ["2.00", "2.00", "reached"]
    assert found["weight gradient"][:3] == ["0.85", "1.00", "reached"]
    # 2, 1/4, 1/2 and 3: a geometric mean of 0.93, and one row of four under a half
    assert found["gradients, each layer"][1:6] == ["0.93", "MISSED", "3", "of", "4"]
    assert found["gradients, each layer"][6:] == ["worst", "0.25", *stem.split()]
    assert found["bare, float16"] == ["0.90", "not", "measured"]


def test_a_row_where_ours_failed_is_not_left_out(tmp_path):
    name = "resnet18 3x3/2 64->128 @56"
    rows = row(name, "bare", 1.0, 0.5), row(name, "bare", 1.0, 0.5, fastconv="refused")
    found = lines(tmp_path, "layers", *rows, complete=False)["bare, float16"]
    assert found[1:6] == ["0.00", "MISSED", "1", "of", "2"] and found[-1] == "(incomplete)"


def test_bars_of_what_bounds_a_layer(tmp_path):
    name, other = "googlenet 1x1 64->64 @56", "vgg16 3x3 512->512 @14"
    assert {name, other} <= gpu_bars.LAYER.keys()
    free, bound = ({"bound": word} for word in ("memory", "products"))
    rows = [
        row(name, "bare", 1.0, 1.25) | free,
        row(other, "bare", 1.0, 9.0) | free,
        row(name, "bare", 1.0, 9.0) | bound,
        row(other, "bare", 2.8, 2.0, "float32") | bound,
        row(name, "bare", 1.0, 9.0, "float32") | free,
    ]
    for each in rows:
        each["seconds"]["torch NCHW"] = {"graph": 2.7}
    found = lines(tmp_path, "layers", *rows)
    assert found["1x1 bound by memory, of a copy"][1:6] == ["0.80", "MISSED", "0", "of", "1"]
    assert found["float32 bound by products, best layout"][1:6] == [
        *("1.35", "reached", "1", "of", "1"),
    ]


def test_poolings_and_steps(tmp_path):
    found = lines(
        tmp_path,
        "pools",
        row("resnet max 3x3/2 64@112", "both", 4.0, 2.0),
        row("resnet add + ReLU 256@56", "both", 4.0, 1.0),
    )
    assert found["max pooling, forward + backward"][1] == "2.00"
    assert found["poolings and adds, both, of a copy"][1:4] == ["0.71", "MISSED", "1"]
    step = {**row("resnet50", "", 1.1, 1.0, mode="eager"), "form": None}
    found = lines(tmp_path, "train64", step)
    assert found["step of ResNet-50, batch 64, eager"][1:3] == ["1.10", "reached"]
    assert found["step of ResNet-50, batch 64, graph"][1:] == ["not", "measured"]


def test_every_bar_is_of_a_file_that_the_script_writes():
    written = re.findall(r"bench \d \w+ (\w+)", (ROOT / "bench/gpu.sh").read_text())
    assert {bar.stem for bar in gpu_bars.BARS} <= set(written)


def test_summary():
    def row(name, theirs, ours):
        seconds = {"torch": {"graph": theirs}, "fastconv": {"graph": ours}}
        return {"name": name, "precision": "tf32", "floor": 1.0, "seconds": seconds, "errors": {}}

    document = {"rows": [row("a", 4.0, 2.0), row("b", 4.0, 8.0)], "complete": True}
    _, line = gpu_results.summary(document, ("precision",))
    # gains 2 and 0.5, shares of the roofline 1/2 and 1/8, torch's 1/4
    assert line.split() == ["tf32", "graph", "torch", "2", "1.00", "0.50", "25", "(25)", "b"]
    document["rows"][0]["seconds"]["triton"] = {"graph": 8.0}
    lines = gpu_results.summary(document, ("precision",))
    assert lines[-1].split()[2:6] == ["torch", "(triton)", "1", "0.50"]
    document["rows"][0]["errors"]["cudnn"] = "refused"
    document["complete"] = False
    text = "\n".join(gpu_results.summary(document, ("precision",)))
    assert "not measured: a, cudnn: refused" in text and "INCOMPLETE" in text


@pytest.mark.parametrize("broken", [False, True])
def test_a_worker_whose_gpu_takes_no_more_work_ends(monkeypatch, broken):
    def synchronize():
        if broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    ended = []
    monkeypatch.setattr(conftest.os, "_exit", ended.append)
    conftest.pytest_runtest_teardown(SimpleNamespace(config=SimpleNamespace()))
    assert not ended  # not in the process of all tests
    conftest.pytest_runtest_teardown(SimpleNamespace(config=SimpleNamespace(workerinput={})))
    assert ended == [1] * broken
