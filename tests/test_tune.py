"""fastconv.tune: the choice is used, results stay right, a file is trusted where it may be."""

import json

import pytest
import torch

import fastconv
from fastconv import _C
from fastconv.nn import cache_size
from fastconv.testing.compare import assert_good

tune_module = __import__("fastconv.tune", fromlist=["tune"])
INPUT, WEIGHT = (2, 16, 9, 11), (24, 16, 3, 3)


@pytest.fixture(autouse=True)
def _forget():
    yield
    _C.forget_choices()


@pytest.fixture
def file(tmp_path):
    return tmp_path / "cache" / "choices.json"


def model(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        fastconv.nn.Conv2d(16, 24, 3, padding=1),
        torch.nn.Dropout(),
        fastconv.nn.Conv2d(24, 20, 1),
        fastconv.nn.Conv2d(20, 8, 3, stride=2),  # only the direct kernel takes it
    ).eval()


def runs(direction="forward"):
    return fastconv.explain(INPUT, WEIGHT, padding=1, direction=direction).algorithm


def faster(monkeypatch, name):
    """Measurements in which one algorithm always wins."""

    def measure(convolution, candidates, seconds, packed):
        return {each: 1e-3 if each == name else 2e-3 for each in candidates}

    monkeypatch.setattr(tune_module, "_measure", measure)


def refuse_to_measure(monkeypatch):
    def measure(*arguments, **keywords):
        raise AssertionError("measured")

    monkeypatch.setattr(tune_module, "_measure", measure)


@pytest.mark.parametrize("backward", [False, True])
def test_the_choice_runs_and_results_stay_right(monkeypatch, file, backward):
    faster(monkeypatch, "direct")
    x = torch.randn(INPUT, requires_grad=True)
    net, truth = model(), model().double()
    y = net(x)
    planned_grads = torch.autograd.grad(y.sum(), (x, net[0].weight))
    with torch.no_grad():
        planned = net[0](x)
    choices = fastconv.tune(net, x.detach().requires_grad_(), backward=backward, cache=file)
    directions = ("forward", "input_grad", "weight_grad") if backward else ("forward",)
    for direction in ("forward", "input_grad", "weight_grad"):
        assert runs(direction) == ("direct" if direction in directions else "winograd")
    assert len(choices) == 2 * len(directions)
    assert all(choice.algorithm == "direct" for choice in choices)
    why = str(fastconv.explain(INPUT, WEIGHT, padding=1))
    assert "fastconv.tune measured another as faster" in why
    with torch.no_grad():
        assert not torch.equal(net[0](x), planned)  # another order of the sums
    assert_good(net(x), y, truth(x.double()), torch.float32)
    grads = torch.autograd.grad(net(x).sum(), (x, net[0].weight))
    truths = torch.autograd.grad(truth(x.double()).sum(), (x, truth[0].weight))
    for grad, before, true in zip(grads, planned_grads, truths, strict=True):
        assert_good(grad, before, true, torch.float32)


def test_it_measures_and_reads_its_file_again(monkeypatch, file):
    net, x = model(), torch.randn(INPUT)
    first = fastconv.tune(net, x, seconds=1e-3, cache=file)
    assert [list(c.seconds) for c in first] == [["winograd", "direct"], ["conv1x1", "direct"]]
    assert all(t > 0 for c in first for t in c.seconds.values())
    assert [p.name for p in file.parent.iterdir()] == [file.name]
    refuse_to_measure(monkeypatch)
    _C.forget_choices()
    assert fastconv.tune(net, x, cache=file) == first
    with pytest.raises(AssertionError, match="measured"):  # another layout is another measurement
        fastconv.tune(net, x.contiguous(memory_format=torch.channels_last), cache=file)


def test_a_small_gain_leaves_it_to_the_planner(monkeypatch, file):
    times = {"winograd": 1e-3, "direct": 0.98e-3, "conv1x1": 1e-3}
    monkeypatch.setattr(
        tune_module, "_measure", lambda c, candidates, *a, **k: {n: times[n] for n in candidates}
    )
    first, _ = fastconv.tune(model(), torch.randn(INPUT), cache=file)
    assert first.algorithm == "winograd" == runs()


def test_packed_weights_are_dropped(monkeypatch, file):
    faster(monkeypatch, "direct")
    net, x = model(), torch.randn(INPUT)
    with torch.no_grad():
        expected = net(x)
        assert cache_size(net) > 0
        fastconv.tune(net, x, cache=file)
        assert cache_size(net) == 0
        torch.testing.assert_close(net(x), expected)


def test_the_model_is_left_as_it_was(file):
    net = torch.nn.Sequential(
        fastconv.nn.Conv2d(16, 24, 3, padding=1), torch.nn.BatchNorm2d(24), torch.nn.Dropout()
    ).train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    x = torch.randn(INPUT)
    state = torch.get_rng_state()
    for backward in (False, True):
        fastconv.tune(net, x, backward=backward, seconds=1e-3, cache=file)
    assert torch.equal(torch.get_rng_state(), state)
    assert net.training and net[0].weight.grad is None
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_functions_are_met_and_torchs_layers_are_not(file):
    w = torch.randn(WEIGHT)
    found = fastconv.tune(
        lambda x: fastconv.conv2d(x, w, padding="same"), torch.randn(INPUT), seconds=0, cache=file
    )
    assert len(found) == 1 and "24x16x3x3" in str(found[0])
    with pytest.raises(ValueError, match=r"fastconv.convert\(model\)"):
        fastconv.tune(torch.nn.Conv2d(16, 24, 3), torch.randn(INPUT), cache=file)


def altered(change):
    """The text of a cache file after a change of its document."""

    def text(document):
        change(document)
        return json.dumps(document)

    return text


CORRUPT = {
    "cut off": lambda document: json.dumps(document)[:-9],
    "not text": lambda document: "\udcff",
    "a list": lambda document: "[]",
    "no times": altered(lambda d: d.update(seconds={"forward": 3})),
    "times that are no numbers": altered(
        lambda d: d.update(seconds={k: {"direct": "fast"} for k in d["seconds"]})
    ),
    "another format": altered(lambda d: d.update(format=2)),
    "another processor": altered(lambda d: d["machine"].update(processor="8086")),
    "another build": altered(lambda d: d["machine"].update(build="0")),
    "another torch": altered(lambda d: d["machine"].update(torch="1.0")),
    "other threads": altered(lambda d: d["machine"].update(threads="77")),
}


@pytest.mark.parametrize("name", CORRUPT)
def test_a_corrupt_or_foreign_file_is_ignored_with_a_warning(monkeypatch, file, name):
    faster(monkeypatch, "direct")
    net, x = model(), torch.randn(INPUT)
    fastconv.tune(net, x, cache=file)
    text = file.read_text()
    file.write_bytes(CORRUPT[name](json.loads(text)).encode("utf-8", "surrogateescape"))
    faster(monkeypatch, "winograd")
    word = name.split()[-1] if "another" in name and "format" not in name else ""
    word = "threads" if name == "other threads" else word
    with pytest.warns(UserWarning, match=f"ignores .*choices.json.*{word}"):
        first, _ = fastconv.tune(net, x, cache=file)
    assert first.algorithm == "winograd" == runs()
    assert json.loads(file.read_text())["machine"] == json.loads(text)["machine"]  # written anew


def test_where_the_file_is(monkeypatch, tmp_path):
    net, x = model(), torch.randn(INPUT)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fastconv.tune(net, x, seconds=0)
    (default,) = (tmp_path / "fastconv").iterdir()
    assert default.name.startswith("tuned-")
    monkeypatch.setenv("FASTCONV_TUNED", str(tmp_path / "named.json"))
    fastconv.tune(net, x, seconds=0)
    assert (tmp_path / "named.json").exists()
    (tmp_path / "folder").mkdir()
    with pytest.warns(UserWarning, match="folder"):  # read and written in vain
        fastconv.tune(net, x, seconds=0, cache=tmp_path / "folder")


def test_an_algorithm_that_refuses_cannot_be_chosen():
    window = (1, 1, 1, 1, 1, 1, 1, 1, 1)
    with pytest.raises(RuntimeError, match="larger than 1x1"):
        _C.choose(INPUT, WEIGHT, window, 0, 0, "conv1x1")
    with pytest.raises(RuntimeError, match="no algorithm is called"):
        _C.choose(INPUT, WEIGHT, window, 0, 0, "fft")
    _C.choose(INPUT, WEIGHT, window, 0, 0, "direct")
    assert runs() == "direct"
    assert fastconv.explain((3, *INPUT[1:]), WEIGHT, padding=1).algorithm == "winograd"
    _C.choose(INPUT, WEIGHT, window, 0, 0, "")
    assert runs() == "winograd"
