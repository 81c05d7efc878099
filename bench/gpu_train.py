"""Whole training steps on a GPU: fastconv's layers beside torch's, with peak memory.

    python bench/gpu_train.py [--batch 32] [--precision float16] [--filter REGEX] [--json FILE]

Forward, loss, backward and SGD with momentum from the same weights, channels_last, 224x224 pictures
(LeNet 28x28); torch eager and, in the precisions of --compile, torch.compile; eager and as CUDA
graphs of whole steps. In half types parameters are float32, the forward pass is autocast, and
float16 has a gradient scaler. Only the first loss is compared: gradients of whole networks differ
by more than rounding (tests/test_gpu_train.py judges them). Memory is what a step takes beside
parameters, momentum and pictures. A gain above 1 is faster.
"""

from __future__ import annotations

import copy
import sys

import torch

import gpu_networks
from fastconv import models
from fastconv.cli.networks import heads_of, loss_of
from gpu_common import Precision, input_sets, measured, parser


class Step:
    """A step of SGD on a batch that is handed in; returns the loss.

    `forward` is the network, or what torch.compile made of it.
    """

    def __init__(self, network: torch.nn.Module, dtype: torch.dtype, device: str) -> None:
        self.network = network.train().requires_grad_()
        self.network.to(device, memory_format=torch.channels_last)
        self.forward, self.device = self.network, device
        self.amp = None if dtype == torch.float32 else dtype
        # Fused, so that it takes the scaler's results on the device and nothing waits.
        self.optimizer = torch.optim.SGD(network.parameters(), 1e-3, momentum=0.9, fused=True)
        self.scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)
        self.made = 0

    def __call__(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if self.made == 0:
            torch.manual_seed(0)  # each network's first dropout draws the same mask
        self.made += 1
        self.optimizer.zero_grad()
        with torch.autocast(self.device, self.amp, enabled=self.amp is not None):
            heads = heads_of(self.forward(x))
        loss = loss_of([head.float() for head in heads], labels)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()


def measure(clock, request: dict, precision: Precision, batch: int, device: str, compiled: bool):
    """A row's times, and bytes at the peak of each contestant."""
    name, dtype = request["name"], precision.dtype
    size = (batch, *models.input_size(name))
    sets = [
        torch.randn(size, device=device).to(memory_format=torch.channels_last)
        for _ in range(input_sets(clock, 4 * torch.Size(size).numel(), most=2))
    ]
    labels = torch.arange(batch, device=device) % 10
    ours, twin = gpu_networks.pair_of(name, device)
    networks = {"torch": twin, "fastconv": ours}
    if compiled:
        torch._dynamo.reset()
        networks["compile"] = copy.deepcopy(twin)
    steps = {key: Step(network, dtype, device) for key, network in networks.items()}
    if compiled:
        steps["compile"].forward = torch.compile(steps["compile"].network, dynamic=False)
    calls = {
        key: [lambda step=step, x=x: step(x, labels) for x in sets] for key, step in steps.items()
    }
    with precision.switched():
        found = measured(clock, calls, precision)
        peak = {key: peak_of(clock, steps[key], calls[key][0]) for key in found["seconds"]}
    return {**found, "peak": peak}


def peak_of(clock, step: Step, call) -> int | None:
    step.optimizer.zero_grad()
    return clock.peak(call)


def line(row: dict) -> str:
    """One aligned row: milliseconds of each in both modes, then megabytes at the peak."""
    peaks = [f"{name} {size / 1e6:.0f}" for name, size in row.get("peak", {}).items() if size]
    return gpu_networks.line(row) + (f"; MB: {', '.join(peaks)}" if peaks else "")


def main(arguments: list[str] | None = None) -> int:
    options = parser(__doc__, batch=32, compiled="").parse_args(arguments)
    return gpu_networks.benchmark("gpu_train", options, measure, line)


if __name__ == "__main__":
    sys.exit(main())
