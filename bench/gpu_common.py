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
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from common import machine
from fastconv.testing.compare import tf32
from fastconv.testing.timing import low_quartile
from gpu_results import Results, summary

Task = Callable[[], object]
REPLAYS = 9
LEAST = 5e-4  # seconds of a replay: some microseconds of it are the launch and the events
MOST_CALLS = 1024  # in a graph
MOST_SETS = 256  # of inputs
LOST = 75  # exit status of a process whose GPU takes no more work; another may go on


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
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph):
                for _ in range(turns):
                    turn()
        finally:  # NOTE a capture that failed leaves torch's stream of captures the current one
            torch.cuda.set_stream(stream)
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
    """Bytes a second of a copy (read and written), FLOP/s of a square matmul by precision.

    The copy comes last, as an idle GPU's clocks are low.
    """
    small, found = device == "cpu", {}
    n = 128 if small else 8192
    for name, precision in PRECISIONS.items():
        with precision.switched():
            a, b = (torch.randn(n, n, device=device, dtype=precision.dtype) for _ in range(2))
            found[name] = 2 * n**3 / min(clock.times([lambda a=a, b=b: a @ b]).values())
    source = torch.empty(1 << (20 if small else 30), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = min(clock.times([functools.partial(target.copy_, source)]).values())
    return {"copy": 2 * source.numel() / best, **found}


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
            errors[name] = in_words(error)
    return {"seconds": seconds, "errors": errors}


def in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def takes_work(device: str) -> bool:
    """Whether the device still runs this process's kernels: not after one that, say, wrote where
    there is no memory."""
    try:
        if device == "cuda":
            torch.cuda.synchronize()
    except Exception:
        return False
    return True


def digest_of_sources() -> str:
    """Of all that is measured. NOTE not of the module: nvcc never makes the same object twice."""
    digest, root = hashlib.sha256(), Path(__file__).parents[1]
    found = [root / "setup.py", *root.glob("csrc/**/*"), *root.glob("fastconv/**/*.py")]
    for path in sorted(found):
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def head_of(benchmark: str, clock, options: argparse.Namespace) -> dict:
    """Device, versions, sources and settings, for the head of a results file."""
    return {
        "benchmark": benchmark,
        "device": clock.name,
        **machine(),
        "cudnn": torch.backends.cudnn.version(),
        "cuda": torch.version.cuda,
        "sources": digest_of_sources(),
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
        f"{document['fastconv']} ({document['sources']}); {document['date']}",
        f"# ceilings: copy {roof['copy'] / 1e12:.2f} TB/s; matmul TFLOP/s {rates}",
    ]


def run(
    options: argparse.Namespace,
    results: Results,
    requests: Sequence[dict],
    measure: Callable[[dict], dict],
    line: Callable[[dict], str],
    groups: Sequence[str],
) -> int:
    """Measures what is not in the results yet until time is up; prints a line each, then the
    summary. Returns the exit status: 1 where fastconv itself failed somewhere or nothing ran. Ends
    the program with status LOST after a row that the GPU did not survive."""
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
        try:
            row = measure(request)
        except Exception as error:  # before anything was timed
            row = {"seconds": {}, "errors": {"fastconv": in_words(error)}}
        results.add({**request, **row})
        print(line(results.document["rows"][-1]), flush=True)
        if not takes_work(options.device):
            print("the GPU takes no more work from this process; the same command goes on")
            sys.stdout.flush()
            os._exit(LOST)  # an exit would free graphs, which may abort
    results.finish(complete)
    print("\n".join(summary(results.document, groups)))
    rows = results.document["rows"]
    return 0 if rows and not any("fastconv" in row["errors"] for row in rows) else 1
