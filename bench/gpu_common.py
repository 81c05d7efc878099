"""What the GPU benchmarks share: precisions, clocks, ceilings, and results kept as they come.

A time is the median of replays of a CUDA graph that holds several calls, and the same of eager
calls, between CUDA events; the calls take turns over input sets larger than the L2 cache. torch
runs channels_last with cudnn.benchmark. `--device cpu` shows that a benchmark runs, no more.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from common import geometric_mean, machine, save
from fastconv.testing.compare import tf32
from fastconv.testing.timing import low_quartile

Task = Callable[[], object]
REPLAYS = 9
LEAST = 5e-4  # seconds of a replay: some microseconds of it are the launch and the events
MOST_CALLS = 1024  # in a graph
MOST_SETS = 256  # of inputs


@dataclass(frozen=True)
class Precision:
    """A dtype, and whether float32 may be multiplied in tf32: torch and fastconv read one switch.

    `agreement`: the relative distance of two right results, far from what a wrong one has.
    """

    dtype: torch.dtype
    tf32: bool
    agreement: float

    def switched(self) -> contextlib.AbstractContextManager[None]:
        return tf32(self.tf32)


PRECISIONS = {
    "float16": Precision(torch.float16, False, 4e-3),
    "tf32": Precision(torch.float32, True, 4e-3),
    "float32": Precision(torch.float32, False, 1e-4),
    "bfloat16": Precision(torch.bfloat16, False, 3e-2),
}


class HostClock:
    """Seconds of calls on the CPU."""

    modes = ("eager",)
    l2_bytes = 1 << 20
    name = "cpu"

    def times(self, calls: Sequence[Task]) -> dict[str, float]:
        return {"eager": low_quartile([calls[0]], 3)[0]}

    def peak(self, task: Task) -> int | None:
        """Bytes that a call takes at its peak beside what is there; None: not counted."""
        return None


class CudaClock:
    """Seconds of calls on the current CUDA device, host time between them included in "eager"."""

    modes = ("eager", "graph")

    def __init__(self) -> None:
        properties = torch.cuda.get_device_properties()
        self.l2_bytes = properties.L2_cache_size
        self.name = properties.name

    def times(self, calls: Sequence[Task]) -> dict[str, float]:
        def turn() -> None:
            for call in calls:
                call()

        turn()  # cudnn.benchmark, autotuning and compilation, in the default stream
        torch.cuda.synchronize()
        found = {"eager": self._median(turn) / len(calls)}
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            turn()
        torch.cuda.current_stream().wait_stream(side)
        seconds = self._replay(turn, 1)
        turns = min(math.ceil(LEAST / seconds), max(1, MOST_CALLS // len(calls)))
        if turns > 1:
            seconds = self._replay(turn, turns) / turns
        found["graph"] = seconds / len(calls)
        return found

    def _replay(self, turn: Task, turns: int) -> float:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(turns):
                turn()
        graph.replay()
        return self._median(graph.replay)

    def peak(self, task: Task) -> int:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        task()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    @staticmethod
    def _median(task: Task) -> float:
        samples = []
        for _ in range(REPLAYS):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            task()
            end.record()
            samples.append((start, end))
        torch.cuda.synchronize()
        return statistics.median(start.elapsed_time(end) for start, end in samples) * 1e-3


def input_sets(clock, bytes_each: int, most: int = MOST_SETS) -> int:
    """How many sets of inputs pass two and a half times the L2 cache."""
    return max(1, min(most, math.ceil(2.5 * clock.l2_bytes / max(bytes_each, 1))))


def clock_for(device: str):
    """The device's clock. Ends the program where there is no GPU."""
    if device == "cpu":
        return HostClock()
    if not torch.cuda.is_available():
        sys.exit(f"no NVIDIA GPU that torch {torch.__version__} can use; --device cpu is a dry run")
    from fastconv import _C

    if not _C.cuda:
        sys.exit("fastconv was built without CUDA: bench/gpu.sh builds it")
    torch.backends.cudnn.benchmark = True
    return CudaClock()


def ceilings(clock, device: str) -> dict[str, float]:
    """Bytes a second of a copy (read and written), FLOP/s of a square matmul by precision."""
    small = device == "cpu"
    source = torch.empty(1 << (20 if small else 30), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = min(clock.times([functools.partial(target.copy_, source)]).values())
    found = {"copy": 2 * source.numel() / best}
    n = 128 if small else 8192
    for name, precision in PRECISIONS.items():
        with precision.switched():
            a, b = (torch.randn(n, n, device=device, dtype=precision.dtype) for _ in range(2))
            found[name] = 2 * n**3 / min(clock.times([lambda a=a, b=b: a @ b]).values())
    return found


def floor_seconds(operations: int, moved: int, precision: str, roof: Mapping[str, float]) -> float:
    """The roofline: the longer of the operations and the bytes at the measured ceilings."""
    return max(operations / roof[precision], moved / roof["copy"])


def disagreement(
    ours: torch.Tensor, theirs: torch.Tensor | None, precision: Precision
) -> str | None:
    """In words, if two results are further apart than rounding explains; NaN is."""
    if theirs is None:
        return "torch has no result to compare with"
    distance = torch.linalg.vector_norm(ours.float() - theirs.float())
    relative = (distance / torch.linalg.vector_norm(theirs.float())).item()
    return None if relative <= precision.agreement else f"{relative:.1e} from torch's result"


def measured(clock, contestants: Mapping[str, Sequence[Task]], precision: Precision) -> dict:
    """{"seconds": by contestant and mode, "errors": by contestant}; "torch" comes first.

    A contestant whose first result is not torch's has an error and no time.
    """
    seconds: dict[str, dict[str, float]] = {}
    errors: dict[str, str] = {}
    truth = None
    for name, calls in contestants.items():
        try:
            result = calls[0]()
            if name == "torch":
                truth = result.clone()
            complaint = disagreement(result, truth, precision)
            if complaint is None:
                seconds[name] = clock.times(calls)
            else:
                errors[name] = complaint
        except Exception as error:  # the row says so, and the table goes on
            errors[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return {"seconds": seconds, "errors": errors}


class Results:
    """A results file, written after each row. Rows that an earlier run of the same build, device
    and settings left there are kept, so that a run which time cut off can go on."""

    def __init__(self, path: Path | None, head: dict, keys: Sequence[str]):
        self.path, self.keys = path, keys
        self.document = {**head, "complete": False, "rows": []}
        if path and path.exists():
            before = json.loads(path.read_text())
            same = all(before.get(k) == v for k, v in head.items() if k not in ("date", "ceilings"))
            if same:
                self.document = {**before, "complete": False}

    def has(self, **row) -> bool:
        return any(
            all(known[key] == row[key] for key in self.keys) for known in self.document["rows"]
        )

    def add(self, row: dict) -> None:
        self.document["rows"].append(row)
        self.save()

    def finish(self, complete: bool) -> None:
        self.document["complete"] = complete
        self.save()

    def save(self) -> None:
        if self.path:
            save(self.path, self.document)


def head_of(benchmark: str, clock, options: argparse.Namespace) -> dict:
    """Device, versions, build and settings, for the head of a results file."""
    from fastconv import _C

    return {
        "benchmark": benchmark,
        "device": clock.name,
        **machine(),
        "cudnn": torch.backends.cudnn.version(),
        "cuda": torch.version.cuda,
        "build": hashlib.sha256(Path(_C.__file__).read_bytes()).hexdigest()[:16],
        "batch": options.batch,
        "ceilings": ceilings(clock, options.device),
    }


def parser(
    description: str | None, batch: int, compiled: str | None = "float16"
) -> argparse.ArgumentParser:
    """The options of a GPU benchmark; `compiled`: the default of --compile, None: there is none."""
    options = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--batch", type=int, default=batch, help=f"default {batch}")
    options.add_argument(
        "--precision",
        action="append",
        choices=PRECISIONS,
        help=f"may be given more than once; by default all, in turn: {', '.join(PRECISIONS)}",
    )
    options.add_argument("--filter", metavar="REGEX", default="", help="only rows of such names")
    if compiled is not None:
        options.add_argument(
            "--compile",
            metavar="PRECISIONS",
            default=compiled,
            help='in which torch.compile is timed too, "" for none: it takes most of the time '
            f"(default {compiled or 'none'})",
        )
    options.add_argument("--seconds", type=float, default=480, help="stops then (default 480)")
    options.add_argument(
        "--json", type=Path, metavar="FILE", help="results; an earlier run goes on"
    )
    options.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    return options


def head_lines(document: dict) -> list[str]:
    """What was measured, where, and the ceilings of its roofline."""
    roof = document["ceilings"]
    rates = ", ".join(f"{p} {roof[p] / 1e12:.1f}" for p in PRECISIONS)
    return [
        f"# {document['benchmark']} on {document['device']}, batch {document['batch']}; torch "
        f"{document['torch']}, cuDNN {document['cudnn']}, CUDA {document['cuda']}, fastconv "
        f"{document['fastconv']} ({document['build']}); {document['date']}",
        f"# ceilings: copy {roof['copy'] / 1e12:.2f} TB/s; matmul TFLOP/s {rates}",
    ]


def summary(document: dict, groups: Sequence[str]) -> list[str]:
    """For each group of rows and mode: gain over each rival (geometric mean, worst row), and the
    share of the roofline, where rows have a floor, of fastconv's and of the rival's kernels;
    then the same of fastconv's Triton kernels over torch, where they were timed."""
    rows = document["rows"]
    lines = [
        f"{'':28}{'mode':7}{'over':>18}{'rows':>6}{'gain':>8}{'worst':>8}  "
        f"{'roofline % (torch)':20}worst row"
    ]
    for group in dict.fromkeys(tuple(row[key] for key in groups) for row in rows):
        mine = [row for row in rows if tuple(row[key] for key in groups) == group]
        rivals = dict.fromkeys(n for row in mine for n in row["seconds"] if n != "fastconv")
        modes = dict.fromkeys(m for row in mine for s in row["seconds"].values() for m in s)
        for mode in modes:
            pairs = [("fastconv", rival) for rival in rivals]
            pairs += [("triton", rival) for rival in rivals if rival.startswith("torch")]
            for ours, rival in pairs:
                line = _against(mine, ours, rival, mode)
                if line:
                    over = rival if ours == "fastconv" else f"{rival} ({ours})"
                    lines.append(f"{' '.join(group):28}{mode:7}{over:>18}{line}")
    errors = [(row["name"], n, e) for row in rows for n, e in row["errors"].items()]
    for name, contestant, error in errors[:8]:
        lines.append(f"not measured: {name}, {contestant}: {error}")
    if len(errors) > 8:
        lines.append(f"not measured: {len(errors) - 8} more")
    if not document["complete"]:
        lines.append("INCOMPLETE: time was up; the same command goes on where this run ended")
    return lines


def _against(rows: list[dict], ours: str, rival: str, mode: str) -> str | None:
    both = [
        (row["seconds"][rival][mode] / row["seconds"][ours][mode], row)
        for row in rows
        if mode in row["seconds"].get(rival, {}) and mode in row["seconds"].get(ours, {})
    ]
    if not both:
        return None
    worst, row = min(both, key=lambda pair: pair[0])
    shares = [
        100 * geometric_mean(row["floor"] / row["seconds"][name][mode] for _, row in both)
        for name in (ours, rival)
        if all(row.get("floor") for _, row in both)
    ]
    share = f"{shares[0]:.0f} ({shares[1]:.0f})" if shares else ""
    gain = geometric_mean(gain for gain, _ in both)
    return f"{len(both):6} {gain:7.2f} {worst:7.2f}  {share:20}{row['name']}"


def run(
    options: argparse.Namespace,
    results: Results,
    requests: Sequence[dict],
    measure: Callable[[dict], dict],
    line: Callable[[dict], str],
    groups: Sequence[str],
) -> int:
    """Measures what is not in the results yet until time is up; prints a line each, then the
    summary. Returns the exit status: 1 where fastconv itself failed somewhere or nothing ran."""
    end = time.monotonic() + options.seconds
    for text in head_lines(results.document):
        print(text, flush=True)
    complete = True
    for request in requests:
        if results.has(**request):
            continue
        if time.monotonic() > end:
            complete = False
            break
        results.add({**request, **measure(request)})
        print(line(results.document["rows"][-1]), flush=True)
    results.finish(complete)
    print("\n".join(summary(results.document, groups)))
    rows = results.document["rows"]
    return 0 if rows and not any("fastconv" in row["errors"] for row in rows) else 1
