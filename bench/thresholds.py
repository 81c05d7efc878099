"""Both sides of every measured rule of the planner, and what its threshold ought to be.

    python bench/thresholds.py [--filter REGEX] [--rounds 3] [--json FILE]
    python bench/thresholds.py --show bench/results/thresholds_zen4.json

The rules and their problems are in threshold_rules.py. Each problem is run by both algorithms (or
forms of Winograd), in turn in one process, whatever the planner would say. A row holds the number
that the rule compares, microseconds of each, the ratio of the first to the second, `*` at the one
that the source's threshold chooses, and `!` where the other was more than 3 % faster.

At the foot of a table stand thresholds: the source's and the one of least regret, which is the mean
over the rows of (time of the chosen / time of the faster); for all rows, then for each direction
and layout. A rule of exactness has errors for times, each the largest of one seed a round, and no
mean: its threshold is the least from which no error is over the limit.

A whole run takes three to four minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import torch

from common import LAYOUTS, Progress, document_head, hold_isa, parser, save, start_workers, work
from fastconv import _C
from fastconv.testing.compare import relative_rms
from fastconv.testing.timing import Contest, Worker, WorkerError, quartile
from threshold_rules import RULES, TILES, Problem, Rule

SECONDS = 0.05  # of both contestants together, in each round
NEVER = math.inf
NOTABLE = 1.03  # a regret beyond a quiet machine's noise


# --- measuring ----------------------------------------------------------------------------------


def contest(problem: Problem, direction: str, layout: str, names: Iterable[str]) -> Contest:
    """The problem by each algorithm or tile."""
    convolution = problem.convolution(direction, layout)

    def choose(name: str) -> None:
        convolution.choose("winograd" if name in TILES else name, measured_rules=False)
        _C.set_winograd_tile(*TILES.get(name, (0, 0)))

    tasks = {}
    for name in names:
        choose(name)
        tasks[name] = convolution.call(packed=direction == "forward")
    return Contest(tasks, choose)


def build(engine: str, request: dict) -> Contest:
    return contest(
        Problem(*request["sizes"]), request["direction"], request["layout"], request["contestants"]
    )


def weight_grad_errors(
    problem: Problem, layout: str, names: Iterable[str], seed: int
) -> dict[str, float]:
    """Relative rms errors of weight gradients, over torch's own."""
    torch.manual_seed(seed)
    convolution = problem.convolution("weight_grad", layout)
    x = torch.randn(convolution.input).to(memory_format=LAYOUTS[layout])
    p, q = _C.conv_output_size(convolution.input, convolution.weight, convolution.window)
    dy = torch.randn(problem.n, problem.k, p, q).to(memory_format=LAYOUTS[layout])
    where = (problem.stride, problem.taps // 2, 1, problem.groups)
    truth, theirs = (
        torch.nn.grad.conv2d_weight(a, convolution.weight, b, *where)
        for a, b in ((x.double(), dy.double()), (x, dy))
    )
    errors, taps = {}, (problem.taps, problem.taps)
    for name in names:
        convolution.choose(name, measured_rules=False)
        ours = torch.ops.fastconv.conv2d_weight_grad_raw(x, dy, *taps, *convolution.window, 0)
        errors[name] = relative_rms(ours, truth) / relative_rms(theirs, truth)
    convolution.choose("")
    return errors


def rows_of(rule: Rule) -> list[tuple[Problem, dict]]:
    """The problems of a rule and their rows, not measured yet, by growing number."""
    head = {"rule": rule.name, "constant": rule.constant, "source": rule.source()}
    rows = []
    for problem in sorted(filter(rule.fits, rule.problems), key=rule.of):
        for direction in rule.directions:
            for layout in LAYOUTS:
                where = {"problem": str(problem), "direction": direction, "layout": layout}
                rows.append((problem, {**head, **where, "value": round(rule.of(problem), 4)}))
    return rows


def name_of(row: dict) -> str:
    return f"{row['rule']}: {row['problem']} {row['direction']} {row['layout']}"


def ask(rule: Rule, problem: Problem, row: dict, worker: Worker, seed: int) -> dict[str, float]:
    """Seconds of each contestant; of a rule of exactness its errors."""
    if rule.error_limit is not None:
        return weight_grad_errors(problem, row["layout"], rule.contestants, seed)
    where = {"direction": row["direction"], "layout": row["layout"]}
    return worker.seconds(sizes=problem, contestants=rule.contestants, **where)


def measure(
    rule: Rule, rows: list[tuple[Problem, dict]], worker: Worker, rounds: int, progress: Progress
) -> list[dict]:
    """The rows that did not fail, with "seconds" or "errors" and the ratio of first to second.

    A round is one turn over all rows, so that a busy moment hits one round of some. Of times a row
    keeps the low quartile, of errors the largest.
    """
    kind, of = ("seconds", quartile) if rule.error_limit is None else ("errors", max)
    found: list[list[dict]] = [[] for _ in rows]
    failed: dict[int, str] = {}
    for turn in range(rounds):
        for i, (problem, row) in enumerate(rows):
            if i not in failed:
                try:
                    found[i].append(ask(rule, problem, row, worker, turn))
                except WorkerError as error:
                    failed[i] = f"{name_of(row)}  FAILED  {error}"
            progress.advance()
    for message in failed.values():
        progress.row(message)
    good = []
    for i, (_, row) in enumerate(rows):
        if i not in failed:
            values = {n: float(f"{of([f[n] for f in found[i]]):.4g}") for n in rule.contestants}
            first, second = values.values()
            good.append({**row, kind: values, "ratio": float(f"{first / second:.4g}")})
    return good


# --- thresholds ---------------------------------------------------------------------------------


def chosen(rule: Rule, row: dict, threshold: float) -> str:
    """The contestant that a threshold chooses."""
    value = row["value"]
    over = value > threshold if rule.above else value >= threshold
    return rule.contestants[over]


def regrets(rule: Rule, rows: list[dict], threshold: float) -> list[float]:
    """Time of the chosen over that of the faster, of each row."""
    return [
        row["seconds"][chosen(rule, row, threshold)] / min(row["seconds"].values()) for row in rows
    ]


def candidates(rule: Rule, rows: list[dict], source: int) -> list[float]:
    """A threshold for every way of parting the rows, and the source's."""
    values = {row["value"] for row in rows}
    if rule.above:  # in whole numbers: over the least value or below it, up to every one
        found = {float(math.ceil(value)) for value in values} | {0.0}
    else:
        found = {*values, NEVER}
    return sorted(found | {float(source)})


def least_regret(rule: Rule, rows: list[dict], source: int) -> float:
    """The threshold of least total regret: the source's where it is one of several."""
    totals = {t: sum(regrets(rule, rows, t)) for t in candidates(rule, rows, source)}
    least = min(totals.values()) * (1 + 1e-9)
    return source if totals[source] <= least else min(t for t in totals if totals[t] <= least)


def least_exact(rule: Rule, rows: list[dict], source: int) -> float:
    """The least threshold from which no error of the second contestant is over the limit."""
    exact = {
        t: all(
            row["errors"][rule.contestants[1]] <= rule.error_limit
            for row in rows
            if chosen(rule, row, t) == rule.contestants[1]
        )
        for t in candidates(rule, rows, source)
    }
    return min(t for t in exact if exact[t])


# --- tables -------------------------------------------------------------------------------------


def threshold_text(rule: Rule, rows: list[dict], threshold: float) -> str:
    picked = {chosen(rule, row, threshold) for row in rows}
    return f"{threshold:g}" if len(picked) > 1 else f"always {picked.pop()}"


def heading(rule: Rule) -> str:
    what = f"{rule.contestants[1]} wherever it can"
    if rule.constant:
        sign = ">" if rule.above else ">="
        what = f"{rule.contestants[1]} where {rule.number} {sign} {rule.constant}"
    unit = "error / torch's" if rule.error_limit is not None else "µs"
    columns = "".join(f"{name:>12}" for name in rule.contestants)
    return (
        f'\n# rule "{rule.name}", {rule.file}: {what}\n{unit:46}{"number":>8}{columns}{"ratio":>8}'
    )


def line(rule: Rule, row: dict) -> str:
    picked = chosen(rule, row, row["source"])
    layout = {"NCHW": "NCHW", "channels_last": "cl"}[row["layout"]]
    head = f"{row['problem']:29}{row['direction']:12}{layout:5}{row['value']:8g}"
    if "errors" in row:
        bad = picked == rule.contestants[1] and row["errors"][picked] > rule.error_limit
        values, digits = row["errors"], 2
    else:
        bad = row["seconds"][picked] > NOTABLE * min(row["seconds"].values())
        values, digits = {name: t * 1e6 for name, t in row["seconds"].items()}, 1
    cells = "".join(
        f"{values[name]:11.{digits}f}{'*' if name == picked else ' '}" for name in rule.contestants
    )
    return f"{head}{cells}{row['ratio']:8.2f}{' !' if bad else ''}"


def foot(rule: Rule, rows: list[dict]) -> str:
    """The source's threshold and what it ought to be by these rows."""
    source = rows[0]["source"]
    name = f"{rule.constant} = {source}" if rule.constant else "the order of rows"
    if rule.error_limit is not None:
        ought = least_exact(rule, rows, source)
        kept = [r for r in rows if chosen(rule, r, source) == rule.contestants[1]]
        worst = max((row["errors"][rule.contestants[1]] for row in kept), default=math.nan)
        return (
            f"-> {name}: largest error {worst:.2f}, allowed {rule.error_limit:g}; "
            f"ought to be {threshold_text(rule, rows, ought)}"
        )
    parts = {"all": rows}
    for key in ("direction", "layout"):
        for each in dict.fromkeys(row[key] for row in rows):
            parts[each] = [row for row in rows if row[key] == each]
    lines = [f"-> {name}; mean and worst regret of the source's threshold, and of the least:"]
    for label, part in parts.items():
        ought = least_regret(rule, part, source)
        texts = []
        for threshold in (source, ought):
            found = regrets(rule, part, threshold)
            text = threshold_text(rule, part, threshold)
            texts.append(f"{text:>17}  {sum(found) / len(found):.3f} {max(found):.2f}")
        lines.append(f"   {label:16}{texts[0]}   ought{texts[1]}")
    return "\n".join(lines)


def table(rule: Rule, rows: list[dict]) -> str:
    return "\n".join([heading(rule), *(line(rule, row) for row in rows), foot(rule, rows)])


def show(path: Path) -> None:
    """The tables of a results file."""
    document = json.loads(path.read_text())
    for key, value in document.items():
        if key != "rows":
            print(f"# {key}: {value}")
    for rule in RULES:
        rows = [row for row in document["rows"] if row["rule"] == rule.name]
        if rows:
            print(table(rule, rows))


def run(options: argparse.Namespace) -> int:
    """Measures what the options ask for; 1 if a row failed or there was none."""
    isa = hold_isa(options)  # before the rules ask for its lanes
    settings = {"isa": isa, "threads": options.threads, "rounds": options.rounds}
    todo = {
        rule: [(p, row) for p, row in rows_of(rule) if re.search(options.filter, name_of(row))]
        for rule in RULES
    }
    asked = sum(map(len, todo.values()))
    if not asked:
        print(f"no row's name matches {options.filter!r}", file=sys.stderr)
        return 1
    torch.set_num_threads(options.threads)
    done: list[dict] = []
    with (
        start_workers(__file__, options.threads, ["fastconv"]) as workers,
        Progress(asked * options.rounds, Path(__file__).stem) as progress,
    ):
        worker = workers["fastconv"]
        head = document_head(__file__, settings, worker.fma_peak() * options.threads, progress)
        for rule, rows in todo.items():
            found = measure(rule, rows, worker, options.rounds, progress)
            if found:
                progress.row(table(rule, found))
            done += found
    if options.json:
        save(options.json, {**head, "rows": done}, row_lines=True)
    return 0 if done and len(done) == asked else 1


def main() -> int:
    options = parser(__doc__, sizes=False)
    options.add_argument("--show", type=Path, metavar="FILE", help="print a results file's tables")
    options = options.parse_args()
    if options.worker:
        work(options, build, SECONDS)
    elif options.show:
        show(options.show)
    else:
        return run(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
