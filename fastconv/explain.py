"""What runs for a problem and why; what was built; what the processor offers."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from . import _C
from .backend import BACKENDS, has_triton
from .gpus import GPUS, Estimate, Gpu, conv_work, estimate, gpu_of
from .ops.sizes import DTYPES, allows_tf32, conv_padding, conv_shape, pair
from .triton import problem as triton

DIRECTIONS = ("forward", "input_grad", "weight_grad")


@dataclass(frozen=True)
class Candidate:
    """A row of the planner's table: `refusal` is None where the row takes the problem."""

    algorithm: str
    refusal: str | None


@dataclass(frozen=True)
class Explanation:
    """The planner's answer; `str()` is a table."""

    problem: str
    candidates: tuple[Candidate, ...]
    estimate: Estimate | None = None

    @property
    def algorithm(self) -> str | None:
        """The algorithm that runs: the first that does not refuse. None where all do."""
        return next((c.algorithm for c in self.candidates if c.refusal is None), None)

    def __str__(self) -> str:
        lines = [self.problem]
        chosen = self.algorithm
        for c in self.candidates:
            mark = "->" if c.algorithm == chosen else "  "
            reason = "runs" if c.algorithm == chosen else c.refusal or "would run; comes later"
            lines.append(f" {mark} {c.algorithm:<14} {reason}")
        if self.estimate:
            lines.append(f"    {self.estimate}")
        return "\n".join(lines)


def _sizes(value: torch.Tensor | Sequence[int], name: str) -> list[int]:
    sizes = list(value.shape) if isinstance(value, torch.Tensor) else list(value)
    if name == "input" and len(sizes) == 3:
        sizes = [1, *sizes]
    if len(sizes) != 4:
        raise ValueError(f"{name} must be a tensor or have 4 sizes, got {sizes}")
    return sizes


def _device(gpu: str | None, input: torch.Tensor | Sequence[int]) -> tuple[str, Gpu | None]:
    """Whom the estimate is for, by name; None where that GPU's rates are not known."""
    if gpu is None and isinstance(input, torch.Tensor) and input.is_cuda:
        properties = torch.cuda.get_device_properties(input.device)
        return properties.name, gpu_of(properties)
    name = gpu or "H100"
    return name, GPUS[name]


def explain(
    input: torch.Tensor | Sequence[int],
    weight: torch.Tensor | Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    direction: str = "forward",
    backend: str | None = None,
    dtype: torch.dtype | None = None,
    gpu: str | None = None,
) -> Explanation:
    """Which algorithm runs for a convolution, and why each other one refused.

    Args:
        input, weight: tensors or their sizes, (N, C, H, W) and (K, C / groups, R, S).
        direction: "forward", "input_grad" or "weight_grad".
        backend: "cpu", "cuda" or "triton"; by default that of the input's device.
        dtype: by default the input's, float32 for sizes. On a GPU, torch's switches say whether
            float32 is multiplied in tf32.
        gpu: of backend "cuda": which of fastconv.gpus.GPUS the waves, bound and expected
            share of the roofline are computed for; by default the CUDA tensor's own, of which
            there is no estimate where its bandwidth is not known, and else an H100.

    Raises:
        ValueError: an unknown direction, backend or GPU, a dtype that has no kernels.
        RuntimeError: sizes that do not fit.

    >>> print(explain((1, 64, 56, 48), (64, 64, 1, 1)))  # doctest: +SKIP
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"direction must be one of {', '.join(DIRECTIONS)}, got {direction!r}")
    of_tensor = isinstance(input, torch.Tensor)
    backend = backend or (input.device.type if of_tensor else "cpu")
    dtype = dtype or (input.dtype if of_tensor else torch.float32)
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(map(str, DTYPES))}, got {dtype}")
    if gpu is not None and gpu not in GPUS:
        raise ValueError(f"gpu must be one of {', '.join(GPUS)}, got {gpu!r}")
    x, w = _sizes(input, "input"), _sizes(weight, "weight")
    stride, dilation = pair(stride, "stride"), pair(dilation, "dilation")
    pads = conv_padding(padding, (w[2], w[3]), stride, dilation)
    window = [*stride, *pads, *dilation, groups]
    if backend == "triton":
        shape = conv_shape(x, w, window)
        p = triton.ConvProblem(*x, w[0], *w[2:], *shape[2:], *window, dtype, int(allows_tf32()))
        rows = [(name, refuse(p, direction)) for name, refuse in triton.ROWS.items()]
    else:
        places = DIRECTIONS.index(direction), BACKENDS.index(backend), DTYPES.index(dtype)
        rows = _C.explain(x, w, window, *places, allows_tf32())
    computed = None
    name, device = _device(gpu, input) if backend == "cuda" else ("", None)
    if device and dtype != torch.float64:
        # Both gradients multiply and move what the forward pass does.
        work = conv_work(x, w, conv_shape(x, w, window), dtype.itemsize)
        codes = DIRECTIONS.index(direction), DTYPES.index(dtype)
        tile = _C.cuda_tile(x, w, window, *codes, allows_tf32(), device.facts())
        computed = estimate(name, device, work, dtype, allows_tf32(), *tile)
    return Explanation(
        f"conv2d {direction} on {backend}, {dtype}: input {x}, weight {w}, stride {stride}, "
        f"padding {pads}, dilation {dilation}, groups {groups}",
        tuple(Candidate(name, refusal or None) for name, refusal in rows),
        computed,
    )


def build_info() -> dict[str, str]:
    """What this build holds."""
    return {
        "C++ compiler": _C.compiler,
        "CPU instruction sets": _C.cpu_isas(),
        "algorithms (CPU)": " ".join(_C.algorithms(0)),
        "algorithms (CUDA)": " ".join(_C.algorithms(1)),
        "CUDA": "yes" if _C.cuda else "no: built without a CUDA toolkit (nvcc)",
        "algorithms (Triton)": " ".join(triton.ROWS),
        "Triton": "yes" if has_triton() else "no: the package triton is not installed",
    }


def cpu_info() -> dict[str, str]:
    """The processor, and what fastconv uses of it."""
    return {
        "processor": processor_name(),
        "instruction set in use": _C.cpu_isa() + " and bfloat16 dots" * _C.bf16_dots(),
        "threads": str(torch.get_num_threads()),
    }


def processor_name() -> str:
    """The processor's model name, or the machine type where the system does not tell."""
    try:
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
