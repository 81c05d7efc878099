"""Timing on a machine that is never quiet.

Three habits: what is compared is interleaved, so that noise hits all of it; a time is the low
quartile of many samples, each long enough for the clock; and beside every table stands what the
processor can do at that moment (``fma_peak``).

Engines that would disturb each other (thread pools, caches of packed weights) run in processes of
their own: ``serve`` is the loop of such a process and ``Worker`` its handle. They speak lines of
JSON over pipes: a request is an object that the worker's ``build`` turns into a callable (kept for
the next request of the same text), the answer is {"seconds": low quartile} or {"error": text}; the
line "fma" asks for {"gflops": FMA peak}, "copy" for {"gbytes": bandwidth of a copy}. Where
``build`` makes a ``Contest``, whose tasks do not disturb each other, they are timed in turn and
"seconds" holds those of each by its name.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

Task = Callable[[], Any]
SAMPLE_SECONDS = 2e-3  # a sample: long against the clock's resolution and a loop's overhead


class Contest(NamedTuple):
    """Tasks that one request compares; ``before`` is called with a name before its samples."""

    tasks: Mapping[str, Task]
    before: Callable[[str], Any]


def quartile(values: Sequence[float]) -> float:
    """The low quartile: a quarter of the values lie below it."""
    return sorted(values)[len(values) // 4]


def low_quartile(
    tasks: Mapping[str, Task] | Sequence[Task],
    rounds: int = 20,
    seconds: float | None = None,
    before: Callable[[Any], Any] = lambda name: None,
) -> Any:
    """Seconds a call of each task takes: a dict for a mapping, a list for a sequence.

    Every round takes one sample of each task in turn; a sample repeats the task until it lasts
    about ``SAMPLE_SECONDS``. With ``seconds``, rounds stop once that time is spent (at least three
    are made). ``before`` is called with a task's name or number before each of its samples.
    """
    names = list(tasks) if isinstance(tasks, Mapping) else list(range(len(tasks)))
    if not names:
        raise ValueError("low_quartile: tasks is empty")
    if rounds < 1:
        raise ValueError(f"low_quartile: rounds is {rounds}, expected at least 1")
    repeats = {}
    for name in names:
        before(name)
        repeats[name] = _repeats(tasks[name])  # type: ignore[index]
    samples: dict[Any, list[float]] = {name: [] for name in names}
    start = time.perf_counter()
    for done in range(rounds):
        if seconds is not None and done >= 3 and time.perf_counter() - start > seconds:
            break
        for name in names:
            before(name)
            samples[name].append(_sample(tasks[name], repeats[name]))  # type: ignore[index]
    result = {name: quartile(samples[name]) for name in names}
    return result if isinstance(tasks, Mapping) else list(result.values())


def _sample(task: Task, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        task()
    return (time.perf_counter() - start) / repeats


def _repeats(task: Task) -> int:
    """How often a task goes into a sample; the calls made to find out warm it up."""
    task()
    repeats = 1
    while (elapsed := _sample(task, repeats) * repeats) < SAMPLE_SECONDS / 2:
        repeats *= 2
    return max(1, round(repeats * SAMPLE_SECONDS / elapsed))


def fma_peak(seconds: float = 0.05) -> float:
    """GFLOP/s (two for each FMA) of one thread that does nothing but FMAs: the roof of a kernel."""
    from fastconv import _C

    return _C.fma_peak_gflops(seconds)


def copy_bandwidth(megabytes: int = 64) -> float:
    """GB/s, read and written, of a copy that no cache holds: the slope of a roofline."""
    import torch

    source = torch.zeros(megabytes << 20, dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2 * source.numel() / low_quartile([lambda: target.copy_(source)], 10)[0] / 1e9


def pin(threads: int) -> None:
    """torch on that many threads; a single one stays on the last core this process may use."""
    import torch

    if threads == 1 and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(threads)


def serve(build: Callable[[dict], Task | Contest], seconds: float = 0.1) -> None:
    """Answers requests on stdin until it closes; what the engine prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    built: dict[str, Task | Contest] = {}
    for line in sys.stdin:
        try:
            if line.strip() == "fma":
                answer = {"gflops": fma_peak()}
            elif line.strip() == "copy":
                answer = {"gbytes": copy_bandwidth()}
            else:
                if line not in built:
                    while len(built) >= 2:  # both layouts of a row
                        del built[next(iter(built))]
                    built[line] = build(json.loads(line))
                made = built[line]
                if isinstance(made, Contest):
                    times = low_quartile(made.tasks, 1000, seconds, made.before)
                else:
                    times = low_quartile([made], 1000, seconds)[0]
                answer = {"seconds": times}
        except Exception as error:  # the table shows it and goes on
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


class WorkerError(RuntimeError):
    """A worker could not do what it was asked for."""


class Worker:
    """A process that runs ``serve``; used as a context manager."""

    def __init__(self, command: Sequence[str]):
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()  # type: ignore[union-attr]
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.process.stdout.close()  # type: ignore[union-attr]

    def seconds(self, **request: Any) -> Any:
        """The time of what ``build(request)`` makes, or those of a ``Contest`` by name.

        WorkerError with the worker's message.
        """
        return self._ask(json.dumps(request), "seconds")

    def fma_peak(self) -> float:
        """``fma_peak`` measured where the engine runs."""
        return self._ask("fma", "gflops")

    def copy_bandwidth(self) -> float:
        """``copy_bandwidth`` measured where the engine runs."""
        return self._ask("copy", "gbytes")

    def _ask(self, line: str, key: str) -> Any:
        try:
            print(line, file=self.process.stdin, flush=True)
            answer = json.loads(self.process.stdout.readline())  # type: ignore[union-attr]
        except (BrokenPipeError, json.JSONDecodeError):
            status = self.process.wait()
            raise WorkerError(f"the worker ended with status {status} at {line}") from None
        if key not in answer:
            raise WorkerError(answer["error"])
        return answer[key]


def ask_in_turn(
    workers: Mapping[str, Worker],
    requests: Mapping[str, dict],
    rounds: int,
    before: Callable[[], Any] = lambda: None,
) -> dict:
    """Low quartile over rounds of each column; a column "engine layout" asks the engine's worker.

    ``before`` is called before each round. Returns seconds, or the message of a column that failed.
    """
    answers: dict[str, list[float]] = {column: [] for column in requests}
    failed: dict[str, str] = {}
    for _ in range(rounds):
        before()
        for column, request in requests.items():
            if column in failed:
                continue
            try:
                answers[column].append(workers[column.split()[0]].seconds(**request))
            except WorkerError as error:
                failed[column] = str(error)
    return {column: failed.get(column) or quartile(answers[column]) for column in requests}
