"""bench/thresholds.py: its rules are the planner's, its choice is the least regret, it runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conv_cases import LAYOUTS

import fastconv
from fastconv import _C
from fastconv.testing.compare import assert_good

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "bench"))

import threshold_rules  # noqa: E402
import thresholds  # noqa: E402
from threshold_rules import RULES, Problem  # noqa: E402

FILES = sorted((ROOT / "bench/results").glob("thresholds_*.json"))
NAMES = [rule.name for rule in RULES]
TIMED = [rule for rule in RULES if rule.error_limit is None]
rules = pytest.mark.parametrize("rule", RULES, ids=NAMES)


@pytest.fixture(autouse=True)
def _forget():
    yield
    _C.forget_choices()
    _C.set_winograd_tile(0, 0)


# --- the rules are the source's -----------------------------------------------------------------


def planned(problem, direction):
    """What the planner runs: an algorithm, or for the rules of tiles a tile."""
    convolution = problem.convolution(direction, "NCHW")
    algorithm = convolution.candidates()[0]
    if algorithm != "winograd" or direction != "forward":
        return algorithm, None
    x, w = (torch.zeros(n, dtype=convolution.dtype) for n in convolution[1:3])
    packed = torch.ops.fastconv.conv2d_pack(x, w, *convolution.window)
    size = tuple(packed[3:5].int().tolist())
    names = (name for name, tile in threshold_rules.TILES.items() if tile == size)
    return algorithm, next(names, None)  # 4 taps have a tile of 3 x 3 outputs


@rules
def test_a_rule_chooses_what_the_planner_does(rule):
    for problem, row in thresholds.rows_of(rule):
        algorithm, tile = planned(problem, row["direction"])
        wanted = thresholds.chosen(rule, row, rule.source())
        if wanted not in threshold_rules.TILES:
            assert algorithm == wanted, thresholds.name_of(row)
        elif tile:
            assert tile == wanted, thresholds.name_of(row)


@rules
def test_the_grid_lies_on_both_sides_and_every_side_runs(rule):
    rows = thresholds.rows_of(rule)
    if not rows and rule.rare() and not _C.bf16_dots():
        return  # nothing here that the planner could choose
    sides = {thresholds.chosen(rule, row, rule.source()) for _, row in rows}
    assert sides == (set(rule.contestants) if rule.constant else {rule.contestants[1]})
    for problem, row in rows:
        for name in rule.contestants:
            algorithm = "winograd" if name in threshold_rules.TILES else name
            convolution = problem.convolution(row["direction"], row["layout"])
            convolution.choose(algorithm, measured_rules=False)


def test_every_constant_names_its_rule_in_the_source():
    for rule in RULES:
        text = (ROOT / rule.file).read_text()
        if rule.constant:
            (line,) = [t for t in text.splitlines() if f"int64_t {rule.constant} =" in t]
            assert f'// rule "{rule.name}"' in line
        else:
            names = _C.algorithms(0)
            assert names.index(rule.contestants[1]) < names.index(rule.contestants[0])


def test_a_constant_that_is_gone_is_noticed():
    rule = threshold_rules.Rule("a", "kGone", threshold_rules.PLAN, "", len, ("", ""), (), ())
    with pytest.raises(ValueError, match="plan.cpp has no constant kGone"):
        rule.source()


def test_there_are_results():
    assert FILES


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_results_hold_rows_of_every_rule(file):
    document = json.loads(file.read_text())
    assert document["benchmark"] == "thresholds" and document["fma_gflops"] > 0
    for rule in RULES:
        found = [row for row in document["rows"] if row["rule"] == rule.name]
        if not found and rule.rare() and document["isa"] != "avx512":
            continue
        kind = "seconds" if rule.error_limit is None else "errors"
        assert [tuple(row[kind]) for row in found] == [rule.contestants] * len(found)
        assert {row["constant"] for row in found} == {rule.constant}
        assert {row["direction"] for row in found} == set(rule.directions)
        assert {row["layout"] for row in found} == set(thresholds.LAYOUTS)
        assert len({thresholds.name_of(row) for row in found}) == len(found)
        assert f'rule "{rule.name}"' in thresholds.table(rule, found)


# --- the choice ---------------------------------------------------------------------------------

FROM, OVER = TIMED[0], next(rule for rule in TIMED if rule.above)
ERRORS = next(rule for rule in RULES if rule.error_limit is not None)


def made_up(rule, times):
    """Rows of {number: (seconds of the first, of the second)}."""
    kind = "seconds" if rule.error_limit is None else "errors"
    return [
        {"value": v, kind: dict(zip(rule.contestants, t, strict=True))} for v, t in times.items()
    ]


def test_the_threshold_has_the_least_total_regret():
    # 8: the first is a little faster; 12: the second is twice as fast; 16: a little slower.
    rows = made_up(FROM, {8: (1.0, 1.1), 12: (2.0, 1.0), 16: (1.0, 1.05), 24: (3.0, 1.0)})
    assert thresholds.regrets(FROM, rows, 12) == pytest.approx([1, 1, 1.05, 1])
    assert thresholds.regrets(FROM, rows, 24) == [1, 2, 1, 1]
    assert thresholds.least_regret(FROM, rows, 24) == 12
    assert thresholds.least_regret(FROM, rows, 11) == 11  # the same parting: the source's stays
    assert thresholds.least_regret(FROM, rows, 8) == 12


def test_one_side_may_always_win():
    slow = made_up(FROM, {8: (1.0, 2.0), 12: (1.0, 2.0)})
    assert thresholds.least_regret(FROM, slow, 8) == thresholds.NEVER
    assert thresholds.threshold_text(FROM, slow, thresholds.NEVER) == "always direct"
    fast = made_up(FROM, {8: (2.0, 1.0), 12: (2.0, 1.0)})
    assert thresholds.least_regret(FROM, fast, 12) == 8
    assert thresholds.threshold_text(FROM, fast, 8) == "always winograd"


def test_a_threshold_that_only_larger_numbers_pass():
    rows = made_up(OVER, {69.44: (1.0, 1.5), 75.4: (1.0, 1.2), 79.0: (1.3, 1.0)})
    assert thresholds.chosen(OVER, rows[2], 79) == OVER.contestants[0]
    assert thresholds.regrets(OVER, rows, 76) == [1, 1, 1]
    assert thresholds.least_regret(OVER, rows, 76) == 76
    assert thresholds.least_regret(OVER, rows, 70) == 76  # over 75.4, in whole numbers
    assert thresholds.least_regret(OVER, rows[2:], 80) == 0


def test_a_rule_of_exactness_takes_the_least_number_without_a_bad_error():
    rows = made_up(ERRORS, {49: (1, 9.0), 196: (1, 7.0), 400: (1, 8.5), 512: (1, 7.9)})
    assert thresholds.least_exact(ERRORS, rows, 600) == 512
    assert thresholds.least_exact(ERRORS, rows[:1], 600) == 600


# --- the switches -------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("sizes", [(16, 20, 7, 9), (50, 48, 12, 15, 2, 3, 2)])
@pytest.mark.parametrize("tile", threshold_rules.TILES.values())
def test_every_tile_is_right_in_every_direction(tile, sizes, layout, isa):
    problem = Problem(*sizes)
    x = LAYOUTS[layout](torch.randn(problem.n, problem.c, problem.h, problem.w))
    w = torch.randn(problem.k, problem.c, 3, 3)
    _C.set_winograd_tile(*tile)
    results = []
    for kind, conv2d in (
        ("ours", fastconv.conv2d),
        ("theirs", torch.nn.functional.conv2d),
        ("truth", torch.nn.functional.conv2d),
    ):
        a, b = ((t.double() if kind == "truth" else t).detach().requires_grad_() for t in (x, w))
        y = conv2d(a, b, None, problem.stride, 1)
        dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
        results.append((y, *torch.autograd.grad(y, (a, b), dy)))
    for ours, theirs, truth in zip(*results, strict=True):
        assert_good(ours, theirs, truth, torch.float32, 8.0)
    packed = torch.ops.fastconv.conv2d_pack(x, w, *problem.convolution("forward", "NCHW").window)
    if problem.stride == 1 or tile[0] == tile[1]:
        assert packed[3:5].tolist() == list(tile)


def test_weights_packed_for_another_tile_are_not_read():
    problem = Problem(16, 20, 12, 12)
    x, w = torch.randn(1, 16, 12, 12), torch.randn(20, 16, 3, 3)
    window = problem.convolution("forward", "NCHW").window
    runs = []
    tiles = threshold_rules.TILES.values()
    for tile in tiles:
        _C.set_winograd_tile(*tile)
        packed = torch.ops.fastconv.conv2d_pack(x, w, *window)
        for now in tiles:
            _C.set_winograd_tile(*now)
            runs.append(torch.ops.fastconv.conv2d_packed(x, w, packed, None, None, 12, 12, 0))
    for i in range(3):
        assert torch.equal(runs[i], runs[3 + i]) and torch.equal(runs[i], runs[6 + i])
        assert not torch.equal(runs[i], runs[(i + 1) % 3])


def test_a_tile_that_there_is_not():
    with pytest.raises(RuntimeError, match="got 2 x 4"):
        _C.set_winograd_tile(2, 4)


def test_measured_rules_may_be_passed_over_and_no_others():
    few = Problem(4, 5, 9, 11).convolution("forward", "NCHW")
    with pytest.raises(RuntimeError, match="too few channels"):
        few.choose("winograd")
    x, w = torch.randn(few.input), torch.randn(few.weight)
    direct, truth = (
        fastconv.conv2d(t, u, padding=1) for t, u in ((x, w), (x.double(), w.double()))
    )
    few.choose("winograd", measured_rules=False)
    ours = fastconv.conv2d(x, w, padding=1)
    assert not torch.equal(ours, direct)
    assert_good(ours, direct, truth, torch.float32, 8.0)
    with pytest.raises(RuntimeError, match="neither 3x3 nor 5x5"):
        Problem(64, 64, 9, 9, taps=7).convolution("forward", "NCHW").choose("winograd", False)


# --- the script ---------------------------------------------------------------------------------


def test_a_run_of_small_problems_and_its_tables(tmp_path, capsys):
    file = tmp_path / "thresholds.json"
    asked = (
        "64->64 @4 .*(forward|weight_grad) NCHW|8->8 @14 forward|256->64 @4 forward|16 @7 .*NCHW"
    )
    script = [sys.executable, str(ROOT / "bench/thresholds.py")]
    narrow = ["--isa", "avx2"] if "avx2" in _C.cpu_isas().split() else []
    command = [*script, "--rounds", "1", "--filter", asked, "--json", str(file), *narrow]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    document = json.loads(file.read_text())
    rows = document["rows"]
    if narrow:
        lanes = {row["source"] for row in rows if row["constant"] == "kWinogradChannels"}
        assert document["isa"] == "avx2" and lanes == {8}
    found = {row["rule"] for row in rows}
    assert found == {"winograd channels", "winograd pixels", ERRORS.name, "conv1x1"}
    for row in rows:
        first, second = row.get("seconds", row.get("errors")).values()
        assert first > 0 and second > 0
        assert row["ratio"] == pytest.approx(first / second, rel=2e-3)
    thresholds.show(file)
    tables = [text[text.index('# rule "') :] for text in (run.stdout, capsys.readouterr().out)]
    assert tables[0] == tables[1] and all(f'rule "{name}"' in tables[0] for name in found)


def test_a_filter_that_nothing_matches(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["thresholds.py", "--filter", "no such row"])
    assert thresholds.main() == 1
    assert "no row's name matches 'no such row'" in capsys.readouterr().err


def test_a_row_that_fails_is_named_and_the_others_are_kept(monkeypatch, capsys):
    class Broken:
        def seconds(self, *, sizes, contestants, **where):
            if sizes.h == 14:
                raise thresholds.WorkerError("ended")
            return dict.fromkeys(contestants, 1e-3)

    rows = [row for row in thresholds.rows_of(FROM) if row[0].taps == 3]
    with thresholds.Progress(len(rows), "a") as progress:
        good = thresholds.measure(FROM, rows, Broken(), 1, progress)
    assert len(good) == sum(problem.h != 14 for problem, _ in rows)
    assert "winograd channels: 3x3 4->4 @14 forward NCHW  FAILED  ended" in capsys.readouterr().out
