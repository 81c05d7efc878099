"""Random convolutions for the GPU's backends, forward and backward, against float64.

Every dtype and mixed memory formats; which kernels run is left to the planner. Here were found: a
stride phase's sum cut short where stride and dilation share a factor, a plane of one column that
was copied as if it had no gaps, and stores of a stride phase without inputs.
"""

import contextlib
import math
import random

import torch
import torch.nn.functional as F
from conv_cases import LAYOUTS, values

import fastconv
from fastconv.testing.compare import allowed_error, relative_rms
from fastconv.testing.problems import ACTIVATIONS, LEAST, draw

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float32, torch.float64]
GPUS = [(90, 1), (90, 4), (90, 16), (80, 3), (89, 2)]  # architecture, multiprocessors
SHARED = {90: 228 << 10, 80: 164 << 10, 89: 100 << 10}


def drawn(rng: random.Random) -> dict:
    """One of the CPU's problems, or of stems and of whole chunks; what CUDA depends on besides."""
    problem = draw(rng)
    groups = problem["window"][3]
    if groups == 1 and rng.random() < 0.4:
        n, _, h, w = problem["input"]
        channels = rng.choice((rng.randint(1, 4), 8 * rng.randint(1, 12)))
        out = rng.choice((problem["weight"][0], 8 * rng.randint(1, 16)))
        problem["input"] = (n, channels, h, w)
        problem["weight"] = (out, channels, *problem["weight"][2:])
    arch, sms = rng.choice(GPUS)
    return problem | {
        "dtype": rng.choice(DTYPES),
        "gpu": (arch, sms, SHARED[arch]),
        "filled": rng.random() < 0.6,
        "seed": rng.randint(0, 1000),
        "layouts": [rng.choice(list(LAYOUTS)) for _ in range(3)],
        "weights": rng.choice((torch.contiguous_format, torch.channels_last)),
        "wanted": {"x": rng.random() < 0.85, "r": rng.random() < 0.5, "w": True, "b": True},
    }


def check(
    problem: dict, generator: torch.Generator, on: contextlib.AbstractContextManager, device="cpu"
) -> None:
    """Within `on`, which chooses the backend, for operands on the device."""
    dtype, window, activation = problem["dtype"], problem["window"], problem["activation"]
    if dtype == torch.double and activation == "sigmoid":
        activation = "relu"  # of whole numbers, so that the truth is exact

    def random(size) -> torch.Tensor:
        return values(size, generator, dtype)

    x, w = random(problem["input"]), random(problem["weight"])
    size = F.conv2d(x.double(), w.double(), None, *window).shape
    operands = {"x": x, "w": w if dtype == torch.double else w / math.sqrt(w[0].numel())}
    if problem["bias"]:
        operands["b"] = random((len(w),))
    if problem["residual"]:
        operands["r"] = random(size)
    dy = random(size)
    in_format = dict(zip("xrd", (LAYOUTS[name] for name in problem["layouts"]), strict=True))
    in_format |= {"w": lambda t: t.contiguous(memory_format=problem["weights"]), "b": torch.clone}
    named = {
        name: in_format[name](t.to(device)).detach().requires_grad_(problem["wanted"][name])
        for name, t in operands.items()
    }
    leaves = [t for t in named.values() if t.requires_grad]
    with on:
        settings = dict(residual=named.get("r"), activation=activation)
        y = fastconv.conv2d(named["x"], named["w"], named.get("b"), *window, **settings)
        ours = torch.autograd.grad(y, leaves, in_format["d"](dy.to(device)))
    results = [t.cpu() for t in (y.detach(), *ours)]

    def reference(kind: torch.dtype) -> list[torch.Tensor]:
        """torch's, the activation's gradient by our outputs: rounding flips some of a ReLU's."""
        t = {
            name: value.to(kind).requires_grad_(value is not None)
            for name, value in operands.items()
        }
        z = F.conv2d(t["x"], t["w"], t.get("b"), *window)
        z = z + t["r"] if "r" in t else z
        made, grad = results[0].to(kind), dy.to(kind)
        slope = {None: 1, "relu": made > 0, "sigmoid": made * (1 - made)}[activation]
        wanted = [t[name] for name in named if named[name].requires_grad]
        return [ACTIVATIONS[activation](z).detach(), *torch.autograd.grad(z, wanted, grad * slope)]

    names = ["y", *(name for name in named if named[name].requires_grad)]
    truths, theirs = reference(torch.double), reference(dtype)
    for name, result, truth, other in zip(names, results, truths, theirs, strict=True):
        assert result.shape == truth.shape and result.dtype == dtype
        if truth.count_nonzero() < LEAST:  # a relative error of few is large by chance
            scale = float(truth.abs().max()) if truth.numel() else 0.0
            torch.testing.assert_close(result.double(), truth, rtol=0.05, atol=0.05 * scale)
            continue
        assert relative_rms(result, truth) <= allowed_error(other, truth, dtype), (name, problem)
