"""Algorithms chosen by measuring: `fastconv.tune`, and the file that keeps its choices."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from . import _C, packing
from .backend import BACKENDS
from .explain import DIRECTIONS, cpu_info
from .files import replace_file
from .ops.sizes import DTYPES
from .testing.timing import low_quartile

FORMAT = 1
MARGIN = 0.97  # of the planner's time: a smaller gain may be noise, and the planner's stays
_RAW = {
    getattr(torch.ops.fastconv, f"{name}_raw").default: direction
    for name, direction in (
        ("conv2d", "forward"),
        ("conv2d_input_grad", "input_grad"),
        ("conv2d_weight_grad", "weight_grad"),
        ("conv2d_weight_bias_grad", "weight_grad"),
    )
}


class Convolution(NamedTuple):
    """One problem of the planner, and the layout that it was met in."""

    direction: str
    input: tuple[int, ...]  # N C H W
    weight: tuple[int, ...]  # K C/groups R S
    window: tuple[int, ...]  # stride, the four paddings, dilation, groups
    dtype: torch.dtype
    channels_last: bool

    @classmethod
    def of(cls, direction: str, args: tuple) -> Convolution:
        """Of the arguments of its raw op."""
        first, second = args[:2]
        window = args[4:13]
        input, weight = tuple(first.shape), tuple(second.shape)
        if direction == "input_grad":  # grad, weight, height, width
            input = (input[0], weight[1] * window[8], *args[2:4])
        elif direction == "weight_grad":  # input, grad, kernel_h, kernel_w
            weight = (weight[1], input[1] // window[8], *args[2:4])
        last = first.is_contiguous(memory_format=torch.channels_last)
        return cls(
            direction, input, weight, window, first.dtype, last and not first.is_contiguous()
        )

    def __str__(self) -> str:
        by = ["x".join(map(str, n)) for n in (self.input, self.weight, self.window[:2])]
        pads, dilation = ",".join(map(str, self.window[2:6])), "x".join(map(str, self.window[6:8]))
        text = f"{self.direction} {by[0]} by {by[1]} stride {by[2]} padding {pads}"
        text += f" dilation {dilation} groups {self.window[8]} {str(self.dtype)[6:]}"
        return text + " channels_last" * self.channels_last

    def choose(self, algorithm: str, measured_rules: bool = True) -> None:
        """Makes the algorithm run it; "" leaves it to the planner.

        Without ``measured_rules`` it may be one that the planner refuses as slower or less exact.
        """
        code = DIRECTIONS.index(self.direction), DTYPES.index(self.dtype)
        _C.choose(self.input, self.weight, self.window, *code, algorithm, measured_rules)

    def candidates(self) -> list[str]:
        """The algorithms that take it, the planner's own first; forgets a choice made before."""
        self.choose("")
        codes = DIRECTIONS.index(self.direction), BACKENDS.index("cpu"), DTYPES.index(self.dtype)
        rows = _C.explain(self.input, self.weight, self.window, *codes, False)
        return [name for name, refusal in rows if not refusal]

    def call(self, packed: bool) -> Callable[[], Tensor]:
        """It on random operands; with weights packed for the algorithm chosen at this moment."""
        (n, _, h, w), (k, _, r, s) = self.input, self.weight
        p, q = _C.conv_output_size(self.input, self.weight, self.window)

        def tensor(*size: int, like_input: bool = True) -> Tensor:
            last = self.channels_last and like_input
            made = torch.randn(size).to(self.dtype)
            return made.contiguous(memory_format=torch.channels_last) if last else made

        x, weight = tensor(*self.input), tensor(*self.weight, like_input=False)
        ops, numbers = torch.ops.fastconv, self.window
        if self.direction == "input_grad":
            dy = tensor(n, k, p, q)
            return lambda: ops.conv2d_input_grad_raw(dy, weight, h, w, *numbers, 0)
        if self.direction == "weight_grad":
            dy = tensor(n, k, p, q)
            return lambda: ops.conv2d_weight_grad_raw(x, dy, r, s, *numbers, 0)
        if not packed:
            return lambda: ops.conv2d_raw(x, weight, None, None, *numbers, 0, 0)
        kept = ops.conv2d_pack(x, weight, *numbers)
        return lambda: ops.conv2d_packed(x, weight, kept, None, None, p, q, 0)


@dataclass(frozen=True)
class Choice:
    """What was measured of a convolution: seconds of each algorithm, the planner's first."""

    convolution: str
    algorithm: str
    seconds: dict[str, float]

    def __str__(self) -> str:
        times = ", ".join(f"{name} {1e3 * t:.4g} ms" for name, t in self.seconds.items())
        return f"{self.convolution}: {self.algorithm} ({times})"


def tune(
    model: Callable[..., Any],
    *example: Any,
    backward: bool = False,
    seconds: float = 0.2,
    cache: str | os.PathLike | None = None,
    progress: bool = True,
) -> list[Choice]:
    """Measures which algorithm runs each convolution of a model fastest here, on the CPU.

    The model is run once on the example. Every convolution it made for which the planner has more
    than one algorithm is timed with each of them, unless the cache file knows the answer; the
    fastest then runs that problem in this process (the planner's own where nothing is 3 % faster).
    Call it when the program starts, before other threads run the model.

    Args:
        model: a module or function that calls fastconv's convolutions; `fastconv.convert` makes
            such a module.
        example: its arguments, of the sizes, dtypes and layout that will be used.
        backward: tune for training: forward with weights packed in every call, and both gradients.
            The model is run in train mode, as a copy. Otherwise for inference: packed weights are
            kept, as a layer in eval mode keeps them.
        seconds: spent on each convolution.
        cache: the file of choices. By default the one that FASTCONV_TUNED names, else one of this
            machine and build in the user's cache folder. Choices of another machine, build, torch
            or number of threads are ignored with a warning, and so is a file that cannot be read.
        progress: a bar on stderr, where that is a terminal and rich is installed.

    Returns:
        The choices, in the order in which the model met the convolutions.

    Raises:
        ValueError: the model ran no convolution of fastconv's on the CPU.
    """
    machine = _machine()
    path = Path(cache) if cache is not None else _default_file(machine)
    known = _read(path, machine)
    choices, fresh = [], False
    met = _convolutions(model, example, backward)
    for convolution in _track(met, progress):
        candidates = convolution.candidates()
        if len(candidates) < 2:
            continue
        key = f"{convolution}{'' if backward else ' inference'}"
        times = known.get(key)
        if times is None or list(times) != candidates:
            times, fresh = _measure(convolution, candidates, seconds, packed=not backward), True
            known[key] = times
        planned, best = candidates[0], min(times, key=times.get)
        name = best if times[best] < MARGIN * times[planned] else planned
        convolution.choose(name if name != planned else "")
        choices.append(Choice(str(convolution), name, times))
    packing.forget()
    if fresh:
        _write(path, machine, known)
    return choices


class _Recorder(TorchDispatchMode):
    """The convolutions that ran on the CPU within it, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.met: dict[Convolution, None] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in _RAW and args[0].device.type == "cpu" and args[0].numel():
            self.met[Convolution.of(_RAW[func], args)] = None
        return func(*args, **(kwargs or {}))


def _convolutions(model: Callable, example: tuple, backward: bool) -> list[Convolution]:
    """Those of one run, whose effects on the model and the random state are undone."""
    if isinstance(model, torch.nn.Module) and (backward or model.training):
        model = copy.deepcopy(model).train(backward)
    with torch.random.fork_rng(devices=[]), torch.set_grad_enabled(backward), _Recorder() as found:
        outputs = tree_leaves(model(*example))
        if backward:
            sums = [t.float().sum() for t in outputs if isinstance(t, Tensor) and t.requires_grad]
            if sums:
                sum(sums).backward()
    if not found.met:
        raise ValueError(
            "tune: the model ran no convolution of fastconv's on the CPU; fastconv.convert(model) "
            "makes torch.nn's layers fastconv's"
        )
    return list(found.met)


def _measure(
    convolution: Convolution, candidates: list[str], seconds: float, packed: bool
) -> dict[str, float]:
    """Seconds of each candidate, interleaved."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        tasks = {}
        for name in candidates:
            convolution.choose(name)
            tasks[name] = convolution.call(packed)
        return low_quartile(tasks, 1000, seconds, before=convolution.choose)


def _track(convolutions: list[Convolution], progress: bool) -> Iterator[Convolution]:
    try:
        from rich.console import Console
        from rich.progress import track
    except ImportError:
        return iter(convolutions)
    console = Console(stderr=True)
    hidden = not (progress and console.is_terminal)
    return iter(track(convolutions, "tuning", console=console, disable=hidden, transient=True))


# --- the file -----------------------------------------------------------------------------------


def _machine() -> dict[str, str]:
    """What the choices depend on."""
    from . import __version__

    build = hashlib.sha256(Path(_C.__file__).read_bytes()).hexdigest()[:16]
    return {"fastconv": __version__, "build": build, "torch": torch.__version__, **cpu_info()}


def _default_file(machine: dict[str, str]) -> Path:
    if named := os.environ.get("FASTCONV_TUNED"):
        return Path(named)
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.sha256(json.dumps(machine, sort_keys=True).encode()).hexdigest()[:12]
    return folder / "fastconv" / f"tuned-{digest}.json"


def _read(path: Path, machine: dict[str, str]) -> dict[str, dict[str, float]]:
    """The measurements in the file; none, with a warning, where it is not this machine's."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        return _ignored(path, f"it cannot be read ({error})")
    try:
        document = json.loads(text)
        form, theirs, seconds = (document[name] for name in ("format", "machine", "seconds"))
        good = form == FORMAT and all(
            isinstance(t, float) and t > 0 for times in seconds.values() for t in times.values()
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        good = False
    if not good:
        return _ignored(path, "it does not hold choices of this format")
    if theirs != machine:
        names = [n for n in machine if not isinstance(theirs, dict) or theirs.get(n) != machine[n]]
        return _ignored(path, f"it was written with another {', '.join(names) or 'machine'}")
    return seconds


def _ignored(path: Path, reason: str) -> dict:
    warnings.warn(f"fastconv.tune ignores {path}: {reason}", stacklevel=4)
    return {}


def _write(path: Path, machine: dict[str, str], seconds: dict[str, dict[str, float]]) -> None:
    text = json.dumps({"format": FORMAT, "machine": machine, "seconds": seconds}, indent=1) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda file: file.write(text.encode()))
    except OSError as error:
        warnings.warn(f"fastconv.tune cannot keep its choices in {path}: {error}", stacklevel=3)
