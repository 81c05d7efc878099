"""What the benchmarks share: their options, the four columns, the machine, progress, results."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import math
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch

from fastconv.files import replace_file
from fastconv.testing.timing import Worker, ask_in_turn, pin, quartile, serve

LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
ENGINES = ("torch", "fastconv")
COLUMNS = tuple(f"{engine} {layout}" for engine in ENGINES for layout in LAYOUTS)
TITLES = ("torch NCHW", "torch cl", "fastconv NCHW", "fastconv cl")
DTYPES = ("float32", "float64", "bfloat16", "float16")
SETTINGS = ("threads", "batch", "dtype", "rounds")
# What holds fastconv, oneDNN, ATen and MKL to an instruction set.
SWITCHES = {
    "avx2": {
        "FASTCONV_ISA": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    }
}


def parser(description: str | None, sizes: bool = True) -> argparse.ArgumentParser:
    """The options that every benchmark has; without ``sizes`` its rows set batch and dtype."""
    options = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--threads", type=int, default=1, help="default 1, on the last core")
    if sizes:
        options.add_argument("--batch", type=int, default=1)
        options.add_argument("--dtype", choices=DTYPES, default="float32")
    options.add_argument(
        "--filter", metavar="REGEX", default="", help="only rows whose name matches"
    )
    options.add_argument("--rounds", type=int, default=3, help="times that each row is measured")
    options.add_argument(
        "--isa", choices=SWITCHES, help="hold both engines to it; default: the processor's"
    )
    options.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    options.add_argument("--worker", choices=ENGINES, help=argparse.SUPPRESS)
    return options


def work(options: argparse.Namespace, build, seconds: float = 0.1) -> None:
    """What ``--worker ENGINE`` does: ``build(engine, request)`` makes the callables to be timed."""
    pin(options.threads)
    torch.manual_seed(0)
    # NOTE glibc gives large blocks back to the system, to be page-faulted in by every call, until
    # the first of that size is freed. Freeing one just under its limit, 32 MiB, makes both engines
    # start as a process that has run a while, and rows independent of their order.
    torch.empty(31 << 20, dtype=torch.uint8)
    serve(lambda request: build(options.worker, request), seconds)


@contextlib.contextmanager
def start_workers(
    script: str, threads: int, engines: Iterable[str] = ENGINES
) -> Iterator[dict[str, Worker]]:
    """One process for each engine, running ``script``."""
    with contextlib.ExitStack() as stack:
        command = [sys.executable, script, "--threads", str(threads), "--worker"]
        yield {engine: stack.enter_context(Worker([*command, engine])) for engine in engines}


def measure(
    script: str,
    options: argparse.Namespace,
    settings: dict,
    requests: list[dict],
    heading: str,
    line: Callable[[dict, float], str],
) -> tuple[list[dict], int]:
    """Times every request in the four columns and prints the table, one ``line(row, peak)`` each.

    A row is its request with "seconds" by column and the FMA peak in the same rounds. Returns the
    rows that were measured in full, which ``--json`` saves too, and the exit status: 1 if there is
    none or another failed.
    """
    settings = {"isa": hold_isa(options), **settings}
    settings |= {key: getattr(options, key) for key in SETTINGS}
    good: list[dict] = []
    with (
        start_workers(script, options.threads) as workers,
        Progress(len(requests), Path(script).stem) as progress,
    ):
        peak = workers["fastconv"].fma_peak() * options.threads
        head = document_head(script, settings, peak, progress)
        head["copy_gbytes"] = workers["fastconv"].copy_bandwidth()
        progress.row(heading)
        for request in requests:
            columns = {
                column: {
                    **request,
                    "layout": column.split()[1],
                    "batch": options.batch,
                    "dtype": options.dtype,
                }
                for column in COLUMNS
            }
            peaks: list[float] = []  # a shared machine's clock changes within a run
            seconds = ask_in_turn(
                workers,
                columns,
                options.rounds,
                before=lambda peaks=peaks: peaks.append(workers["fastconv"].fma_peak()),
            )
            peak = options.threads / quartile([1 / peak for peak in peaks])
            failures = [f"{column}: {t}" for column, t in seconds.items() if isinstance(t, str)]
            if failures:
                progress.row(f"{request['name']}  FAILED  {'; '.join(failures)}")
            else:
                good.append({**request, "fma_gflops": peak, "seconds": seconds})
                progress.row(line(good[-1], peak))
            progress.advance()
    if options.json:
        save(options.json, {**head, "rows": good})
    return good, 0 if good and len(good) == len(requests) else 1


def hold_isa(options: argparse.Namespace) -> str:
    """Obeys ``--isa`` in this process and its workers; the name of fastconv's instruction set."""
    from fastconv import _C

    os.environ.update(SWITCHES.get(options.isa, {}))
    if options.isa:  # a script's imports may have chosen before
        _C.set_cpu_isa(options.isa)
    return _C.cpu_isa()


def document_head(script: str, settings: dict, peak: float, progress: Progress) -> dict:
    """The head of a results file; prints it too."""
    for key, value in {**machine(), **settings, "FMA peak": f"{peak:.1f} GFLOP/s"}.items():
        progress.row(f"# {key}: {value}")
    return {"benchmark": Path(script).stem, **machine(), **settings, "fma_gflops": peak}


def processor() -> str:
    """The processor's name; family and model tell apart those that a host calls the same."""
    with contextlib.suppress(OSError, KeyError), open("/proc/cpuinfo") as lines:
        first = (line.split(":", 1) for line in lines.read().split("\n\n")[0].splitlines())
        of = {key.strip(): value.strip() for key, value in first}
        return f"{of['model name']} (family {of['cpu family']}, model {of['model']})"
    return platform.processor() or platform.machine()


def machine() -> dict[str, str]:
    """Processor, versions and date, for the head of a table and the results file."""
    import fastconv

    return {
        "processor": f"{processor()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "fastconv": fastconv.__version__,
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
    }


def gains(seconds: dict[str, float]) -> tuple[float, float]:
    """Torch's time over fastconv's: better layout to better layout, and NCHW to NCHW."""
    torch_times, times = (
        [seconds[f"{engine} {layout}"] for layout in LAYOUTS] for engine in ENGINES
    )
    return min(torch_times) / min(times), torch_times[0] / times[0]


def geometric_mean(values: Iterable[float]) -> float:
    """exp(mean(log x)); NaN of nothing."""
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms)) if logarithms else math.nan


def save(path: Path, document: dict, row_lines: bool = False) -> None:
    """Writes JSON, each row on one line if asked; readers see the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**document, "rows": []} if row_lines else document, indent=1) + "\n"
    if row_lines:
        rows = ",\n  ".join(map(json.dumps, document["rows"]))
        text = text.replace('"rows": []', f'"rows": [\n  {rows}\n ]')
    replace_file(path, lambda file: file.write(text.encode()))


class Progress:
    """A bar on stderr (rich's if installed; nothing where stderr is a file) and rows on stdout."""

    def __init__(self, total: int, title: str):
        self.total, self.title, self.done = total, title, 0
        self.shown = sys.stderr.isatty()
        self.bar = None
        with contextlib.suppress(ImportError):
            from rich.console import Console
            from rich.progress import Progress as Bar

            self.bar = Bar(console=Console(stderr=True), transient=True, redirect_stdout=False)
            self.task = self.bar.add_task(title, total=total)

    def __enter__(self) -> Progress:
        if self.shown and self.bar:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.shown and self.bar:
            self.bar.stop()

    def advance(self) -> None:
        """One more step is done."""
        self.done += 1
        if self.bar:
            self.bar.advance(self.task)
        elif self.shown:
            end = "" if self.done < self.total else "\n"
            print(f"\r{self.title} {self.done}/{self.total}", end=end, file=sys.stderr, flush=True)

    def row(self, text: str) -> None:
        """Prints a line above the bar."""
        if self.shown and self.bar and sys.stdout.isatty():
            self.bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            clear = "\r\033[K" if self.shown and sys.stdout.isatty() else ""
            print(clear + text, flush=True)
