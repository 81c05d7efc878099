"""Random convolutions, and how far their results are from what is allowed.

`bench/random_problems.py` runs 100,000 of them, the tests 1,000.
"""

from __future__ import annotations

import math
import random

import torch
import torch.nn.functional as F

from .compare import FACTOR, FACTORS, allowed_error, relative_rms

# Elements that are no ReLU's zeros: fewer may be small by chance, and their relative error large.
LEAST = 64
ACTIVATIONS = {None: lambda t: t, "relu": torch.relu, "sigmoid": torch.sigmoid}


def draw(rng: random.Random) -> dict:
    """One problem that is valid, of at most a few million operations.

    Sizes, layout, stride, padding, dilation, groups, bias, residual and activation.
    """

    def two(low: int, high: int) -> tuple[int, int]:
        return rng.randint(low, high), rng.randint(low, high)

    groups = rng.choice((1, 1, 1, 2, 3))
    taps = rng.choice(((1, 1), (3, 3), (5, 5), (7, 7), two(1, 4)))
    stride, dilation = (rng.choice(((1, 1), (1, 1), (2, 2), two(1, 3))) for _ in range(2))
    padding = tuple(rng.randint(0, t) for t in taps)
    channels, out = (groups * rng.randint(1, rng.choice((8, 40))) for _ in range(2))
    kind = rng.random()
    if kind < 0.1:  # depthwise
        channels = groups = rng.randint(2, 40)
        out = channels * rng.choice((1, 1, 2))
    elif kind < 0.2:  # narrow groups
        groups = rng.randint(2, 12)
        channels = out = groups * rng.choice((2, 4, 8, 16))
    elif kind < 0.6:  # what most networks are made of
        taps, stride, dilation = rng.choice(((1, 1), (3, 3), (3, 3), (5, 5))), (1, 1), (1, 1)
        if rng.random() < 0.25:
            dilation = two(1, 9)
        padding = tuple(d * rng.choice((0, t // 2, t - 1)) for d, t in zip(dilation, taps))  # noqa: B905
        channels, out = (groups * rng.randint(12, 48) for _ in range(2))
    least = [d * (t - 1) + 1 - 2 * p for d, t, p in zip(dilation, taps, padding, strict=True)]
    return {
        "input": (rng.randint(1, 3), channels, *(max(rng.randint(1, 30), edge) for edge in least)),
        "weight": (out, channels // groups, *taps),
        "window": (stride, padding, dilation, groups),
        "layout": rng.choice((torch.contiguous_format, torch.channels_last)),
        "activation": rng.choice((None, None, "relu", "sigmoid")),
        "bias": rng.random() < 0.5,
        "residual": rng.random() < 0.3,
    }


def check(problem: dict, generator: torch.Generator) -> list[tuple[str, float]]:
    """(algorithm and direction, error over what is allowed) of each result, in float32.

    Results of 64 elements or more that are not zero are held to the rule of `compare`; gradients
    where there is no activation, whose own would amplify the forward pass's rounding.
    """
    import fastconv  # which imports this package
    from fastconv.explain import DIRECTIONS

    x, w = (torch.randn(problem[name], generator=generator) for name in ("input", "weight"))
    # Sums of unit variance: most sigmoids of larger ones saturate, and the rest are the error.
    w /= math.sqrt(w[0].numel())
    b = torch.randn(len(w), generator=generator) if problem["bias"] else None
    y = F.conv2d(x, w, None, *problem["window"])
    r = torch.randn(y.shape, generator=generator) if problem["residual"] else None
    dy = torch.randn(y.shape, generator=generator)
    act = ACTIVATIONS[problem["activation"]]

    def run(convolve, dtype):
        named = {
            name: t.to(dtype).clone().requires_grad_()
            for name, t in zip("xwbr", (x, w, b, r), strict=True)
            if t is not None
        }
        out = convolve(named["x"], named["w"], named.get("b"), named.get("r"))
        wanted = () if problem["activation"] else (named["x"], named["w"])
        grads = torch.autograd.grad(out, wanted, dy.to(dtype)) if wanted else ()
        return out.detach(), *grads

    def theirs(x, w, b, r):  # NCHW: torch 2.13 crashes on some 1x1 in channels_last
        y = F.conv2d(x, w, b, *problem["window"])
        return act(y if r is None else y + r)

    def ours(x, w, b, r):
        x = x.contiguous(memory_format=problem["layout"])
        return fastconv.conv2d(
            x, w, b, *problem["window"], residual=r, activation=problem["activation"]
        )

    truths, references = run(theirs, torch.float64), run(theirs, torch.float32)
    results = run(ours, torch.float32)
    found = []
    for direction, result, reference, truth in zip(DIRECTIONS, results, references, truths):  # noqa: B905
        if truth.count_nonzero() < LEAST:
            continue
        name = fastconv.explain(x, w, *problem["window"], direction=direction).algorithm
        allowed = allowed_error(reference, truth, torch.float32, FACTORS.get(name, FACTOR))
        found.append((f"{name} {direction}", relative_rms(result, truth) / allowed))
    return found
