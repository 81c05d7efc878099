"""Max pooling in training on a GPU, forward and backward: fastconv beside torch.

    python bench/gpu_pools.py [--batch 32] [--precision float16] [--filter REGEX] [--json FILE]

The max poolings of the networks, channels_last: "forward" keeps what backward needs (torch an int64
index and the input, fastconv one byte an output), "both" goes through autograd to the input's
gradient. The roofline counts the tensors and fastconv's bytes, each read or written once. A gain
above 1 is faster.
"""

from __future__ import annotations

import re
import sys
from typing import NamedTuple

import torch
import torch.nn.functional as F

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

FORMS = ("forward", "both")


class Pool(NamedTuple):
    """C channels of H x H pixels, and max_pool2d's arguments."""

    channels: int
    size: int
    kernel: int
    stride: int
    padding: int = 0
    ceil_mode: bool = False

    @property
    def window(self) -> tuple:
        return self.kernel, self.stride, self.padding, 1, self.ceil_mode


POOLS = {
    "resnet 3x3/2 64@112": Pool(64, 112, 3, 2, 1),
    "vgg 2x2/2 64@224": Pool(64, 224, 2, 2),
    "vgg 2x2/2 512@14": Pool(512, 14, 2, 2),
    "alexnet 3x3/2 64@55": Pool(64, 55, 3, 2),
    "googlenet 3x3/2 192@56": Pool(192, 56, 3, 2, ceil_mode=True),
    "googlenet 3x3/1 256@28": Pool(256, 28, 3, 1, 1),
}


def call_of(max_pool2d, pool: Pool, form: str):
    """Of (x, dy): y, or dx."""

    def forward(x, dy):
        return max_pool2d(x, *pool.window)

    def both(x, dy):
        return torch.autograd.grad(forward(x, dy), x, dy)[0]

    return {"forward": forward, "both": both}[form]


def operands(pool: Pool, batch: int, dtype: torch.dtype, device: str):
    """x, which needs its gradient, and dy."""
    x = torch.randn(batch, pool.channels, pool.size, pool.size, device=device)
    x = x.to(dtype, memory_format=torch.channels_last).requires_grad_()
    return x, torch.randn_like(F.max_pool2d(x.detach(), *pool.window))


def moved(x: torch.Tensor, y: torch.Tensor, form: str) -> int:
    """Bytes: x to y and indices, then dy and indices to dx."""
    return (2 if form == "both" else 1) * (x.nbytes + y.nbytes + y.numel())


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
        for name in POOLS
        for form in FORMS
        if re.search(options.filter, name)
    ]

    def measure(request: dict) -> dict:
        pool, form = POOLS[request["name"]], request["form"]
        precision = PRECISIONS[request["precision"]]
        first = operands(pool, options.batch, precision.dtype, options.device)
        count = moved(*first, form)
        sets = [first] + [
            operands(pool, options.batch, precision.dtype, options.device)
            for _ in range(input_sets(clock, count) - 1)
        ]
        functions = {
            "torch": call_of(F.max_pool2d, pool, form),
            "fastconv": call_of(fastconv.max_pool2d, pool, form),
        }
        if options.triton:
            functions["triton"] = on_triton(functions["fastconv"])
        calls = {
            name: [lambda call=call, each=each: call(*each) for each in sets]
            for name, call in functions.items()
        }
        found = measured(clock, calls, precision)
        floor = floor_seconds(0, count, request["precision"], results.document["ceilings"])
        return {"floor": floor, **found}

    return run(options, results, requests, measure, line, ("precision", "form"))


if __name__ == "__main__":
    sys.exit(main())
