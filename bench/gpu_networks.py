"""Whole networks on a GPU, eval forward: fastconv's layers beside torch's.

    python bench/gpu_networks.py [--batch 32] [--precision float16] [--filter REGEX] [--json FILE]

The same weights in both, channels_last, 224x224 pictures (LeNet 28x28); torch eager and, in the
precisions of --compile, torch.compile; eager and as CUDA graphs. A gain above 1 is faster.
"""

from __future__ import annotations

import argparse
import re
import sys

import torch

from fastconv import models
from fastconv.testing import torch_layers
from gpu_common import (
    PRECISIONS,
    Precision,
    Results,
    clock_for,
    head_of,
    input_sets,
    measured,
    parser,
    run,
)

NAMES = (*models.SIX, "resnet50")


def pair_of(name: str, device: str) -> tuple[torch.nn.Module, torch.nn.Module]:
    """fastconv's network and torch's with the same weights, drawn on the device: on the CPU that
    takes seconds for VGG 16."""
    with torch.device(device):
        ours = models.NETWORKS[name]().eval().requires_grad_(False)
        twin = models.NETWORKS[name](layers=torch_layers).eval().requires_grad_(False)
    twin.load_state_dict(ours.state_dict())
    return ours, twin


def measure(clock, request: dict, precision: Precision, batch: int, device: str, compiled: bool):
    """A row's times."""
    name = request["name"]
    size = (batch, *models.input_size(name))
    moved = precision.dtype.itemsize * torch.Size(size).numel()
    ours, twin = (
        module.to(device, precision.dtype, memory_format=torch.channels_last)
        for module in pair_of(name, device)
    )
    inputs = [
        torch.randn(size, device=device).to(precision.dtype, memory_format=torch.channels_last)
        for _ in range(input_sets(clock, moved, most=2))
    ]
    networks = {"torch": twin, "fastconv": ours}
    if compiled:
        torch._dynamo.reset()
        networks["compile"] = torch.compile(twin, dynamic=False)
    calls = {
        key: [lambda network=network, x=x: network(x) for x in inputs]
        for key, network in networks.items()
    }
    with precision.switched(), torch.no_grad():
        return measured(clock, calls, precision)


def line(row: dict) -> str:
    """One aligned row: milliseconds of each in both modes."""
    times = [
        f"{key} {mode} {value * 1e3:.3f}"
        for key, modes in row["seconds"].items()
        for mode, value in modes.items()
    ]
    errors = [f"{key} FAILED {error}" for key, error in row["errors"].items()]
    return f"{row['name']:10} {row['precision']:9} ms: {'; '.join([*times, *errors])}"


def benchmark(name: str, options: argparse.Namespace, measure, line) -> int:
    """Every network in every precision, by `measure` as above; the exit status."""
    clock = clock_for(options.device)
    results = Results(options.json, head_of(name, clock, options), ("name", "precision"))
    compiled_too = options.compile.split(",")  # which take long, so they come last
    requests = [
        {"name": network, "precision": precision}
        for precision in sorted(options.precision or PRECISIONS, key=compiled_too.__contains__)
        for network in NAMES
        if re.search(options.filter, network)
    ]

    def one(request: dict) -> dict:
        precision = request["precision"]
        compiled = precision in compiled_too
        settings = PRECISIONS[precision], options.batch, options.device, compiled
        return measure(clock, request, *settings)

    return run(options, results, requests, one, line, ("precision",))


def main(arguments: list[str] | None = None) -> int:
    options = parser(__doc__, batch=32).parse_args(arguments)
    return benchmark("gpu_networks", options, measure, line)


if __name__ == "__main__":
    sys.exit(main())
