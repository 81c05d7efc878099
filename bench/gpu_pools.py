"""Pooling and residual add on a GPU, alone and with gradients: fastconv beside torch.

    python bench/gpu_pools.py [--batch 32] [--precision float16] [--filter REGEX] [--json FILE]

Those of the networks, channels_last: "inference", "forward" as in training (of a max pooling torch
keeps an int64 index and the input, fastconv one byte an output), "both" through autograd to the
inputs' gradients. The roofline counts the tensors and fastconv's bytes of indices, each read or
written once, at the speed of a copy. A gain above 1 is faster.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import fastconv
from gpu_common import (
    PRECISIONS,
    Results,
    clock_for,
    floor_seconds,
    head_of,
    input_sets,
    measured,
    parser,
    run,
)
from gpu_layers import line, on_triton

FORMS = ("inference", "forward", "both")


class Case(NamedTuple):
    """An op of `inputs` tensors of C channels of H x H pixels."""

    channels: int
    size: int
    ours: Callable[..., Tensor]
    theirs: Callable[..., Tensor]
    inputs: int = 1
    kept: str = ""  # for its gradient: "index", a byte an output, or "output"


def pooling(name: str, channels: int, size: int, *window, kept: str = "") -> Case:
    ours, theirs = getattr(fastconv, name), getattr(F, name)
    return Case(channels, size, lambda x: ours(x, *window), lambda x: theirs(x, *window), kept=kept)


def max_pooling(*case) -> Case:
    return pooling("max_pool2d", *case, kept="index")


def add(channels: int, size: int) -> Case:
    return Case(
        channels,
        size,
        lambda x, r: fastconv.residual_add(x, r, "relu"),
        lambda x, r: F.relu(x + r, inplace=True),
        inputs=2,
        kept="output",
    )


CASES = {
    "resnet max 3x3/2 64@112": max_pooling(64, 112, 3, 2, 1),
    "vgg max 2x2/2 64@224": max_pooling(64, 224, 2, 2),
    "vgg max 2x2/2 512@14": max_pooling(512, 14, 2, 2),
    "alexnet max 3x3/2 64@55": max_pooling(64, 55, 3, 2),
    "googlenet max 3x3/2 192@56": max_pooling(192, 56, 3, 2, 0, 1, True),  # ceil_mode
    "googlenet max 3x3/1 256@28": max_pooling(256, 28, 3, 1, 1),
    "average 2x2/2 64@112": pooling("avg_pool2d", 64, 112, 2, 2),
    "resnet global average 2048@7": pooling("adaptive_avg_pool2d", 2048, 7, 1),
    "nin global average 1000@5": pooling("adaptive_avg_pool2d", 1000, 5, 1),
    "resnet add + ReLU 256@56": add(256, 56),
    "resnet add + ReLU 2048@7": add(2048, 7),
}
Operands = tuple[list[Tensor], Tensor]  # inputs, which need their gradients, and dy


def call_of(function: Callable[..., Tensor], form: str) -> Callable[[Operands], Tensor]:
    def inference(operands: Operands) -> Tensor:
        with torch.no_grad():
            return function(*operands[0])

    def forward(operands: Operands) -> Tensor:
        return function(*operands[0]).detach()

    def both(operands: Operands) -> Tensor:
        inputs, dy = operands
        return torch.autograd.grad(function(*inputs), inputs, dy)[0]

    return {"inference": inference, "forward": forward, "both": both}[form]


def operands(case: Case, batch: int, dtype: torch.dtype, device: str) -> Operands:
    def random() -> Tensor:
        x = torch.randn(batch, case.channels, case.size, case.size, device=device)
        return x.to(dtype, memory_format=torch.channels_last).requires_grad_()

    inputs = [random() for _ in range(case.inputs)]
    with torch.no_grad():
        return inputs, torch.randn_like(case.theirs(*inputs))


def moved(case: Case, inputs: list[Tensor], y: Tensor, form: str) -> int:
    """Bytes: x to y and what is kept; then dy and that to dx, one for both inputs of an add."""
    kept = {"index": y.numel(), "output": y.nbytes}.get(case.kept, 0)
    there = sum(x.nbytes for x in inputs) + y.nbytes
    if case.kept == "index" and form != "inference":
        there += kept
    back = y.nbytes + kept + inputs[0].nbytes
    return there + back if form == "both" else there


def main(arguments: list[str] | None = None) -> int:
    options = parser(__doc__, batch=32, compiled=None)
    options.add_argument("--triton", action="store_true", help="time fastconv's Triton kernels too")
    options = options.parse_args(arguments)
    clock = clock_for(options.device)
    results = Results(
        options.json, head_of("gpu_pools", clock, options), ("name", "precision", "form")
    )
    requests = [
        {"name": name, "precision": precision, "form": form}
        for precision in options.precision or PRECISIONS
        for form in FORMS
        for name in CASES
        if re.search(options.filter, name)
    ]

    def measure(request: dict) -> dict:
        case, form = CASES[request["name"]], request["form"]
        precision = PRECISIONS[request["precision"]]

        def fresh() -> Operands:
            return operands(case, options.batch, precision.dtype, options.device)

        sets = [fresh()]
        count = moved(case, *sets[0], form)
        sets += [fresh() for _ in range(input_sets(clock, count) - 1)]
        functions = {"torch": call_of(case.theirs, form), "fastconv": call_of(case.ours, form)}
        if options.triton:
            functions["triton"] = on_triton(functions["fastconv"])
        calls = {
            name: [lambda call=call, each=each: call(each) for each in sets]
            for name, call in functions.items()
        }
        floor = floor_seconds(0, count, request["precision"], results.document["ceilings"])
        return {"floor": floor, **measured(clock, calls, precision)}

    return run(options, results, requests, measure, line, ("precision", "form"))


if __name__ == "__main__":
    sys.exit(main())
