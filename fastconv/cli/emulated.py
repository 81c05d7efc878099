"""`validate --backend cuda-emulated`: the CUDA kernels on the CPU, in the emulator of the tests.

Forward and backward, on LeNet whole and a block of each other network: a whole one takes hours
there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor, nn

import fastconv
from fastconv.models import alexnet, lenet, nin, vgg16
from fastconv.models.googlenet import Inception
from fastconv.models.resnet import BasicBlock, Bottleneck
from fastconv.testing import torch_layers

from .checkpoint import first_line
from .common import CommandError
from .comparison import Results, Row, compare_steps, dtype_name, size_name

NAME = "cuda-emulated"


def _downsampled(layers) -> nn.Module:
    """A bottleneck that halves the image."""
    planes = 32 * Bottleneck.expansion
    shortcut = nn.Sequential(
        layers.Conv2d(64, planes, 1, stride=2, bias=False), nn.BatchNorm2d(planes)
    )
    return Bottleneck(64, 32, stride=2, downsample=shortcut, namespace=layers)


def _cut(network: Callable[..., nn.Module], part: Callable[[nn.Module], nn.Module]):
    """A builder of a part of a network; the rest of its parameters is never made."""

    def build(layers) -> nn.Module:
        with torch.device("meta"):
            found = part(network(layers=layers))
        found = found.to_empty(device="cpu")
        for module in found.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        return found

    return build


# What is compared: a builder that takes a namespace of layers, and the size of the input. The
# first word is the network's.
PARTS: dict[str, tuple[Callable[..., nn.Module], tuple[int, int, int, int]]] = {
    "lenet": (lambda layers: lenet(layers=layers), (2, 1, 28, 28)),
    "alexnet features[:3]": (_cut(alexnet, lambda net: net.features[:3]), (1, 3, 47, 39)),
    "vgg features[:5]": (_cut(vgg16, lambda net: net.features[:5]), (1, 3, 14, 10)),
    "nin block": (_cut(nin, lambda net: net[2]), (1, 96, 7, 6)),
    "googlenet Inception": (
        lambda layers: Inception(192, 64, 96, 128, 16, 32, 32, namespace=layers),
        (1, 192, 7, 6),
    ),
    "resnet BasicBlock": (lambda layers: BasicBlock(64, 64, namespace=layers), (1, 64, 9, 7)),
    "resnet Bottleneck": (_downsampled, (1, 64, 9, 7)),
}


def find_emulator() -> Callable[[], AbstractContextManager[list[str]]]:
    """The tests' context manager; it compiles the emulator where that was not done.

    Raises:
        CommandError: the tests are not there, as in an installed wheel.
    """
    tests = Path(fastconv.__file__).resolve().parents[1] / "tests"
    if not (tests / "emulator" / "ops.py").exists():
        raise CommandError(
            f"--backend {NAME} needs the emulator of the tests, and {tests / 'emulator'} is not "
            "there: run it in a source tree (pip install -e .)"
        )
    if str(tests) not in sys.path:
        sys.path.append(str(tests))
    from emulator.ops import emulated_cuda

    return emulated_cuda


def forward(part: nn.Module, x: Tensor, dy: Tensor) -> tuple[Results, Tensor]:
    """The output in training mode, and again to differentiate."""
    output = part.train()(x)
    return {"output": output.detach()}, output


def both_ways(part: nn.Module, x: Tensor, dy: Tensor) -> Results:
    """Output, and the gradients of the input and of every parameter."""
    x = x.detach().requires_grad_()
    results, output = forward(part, x, dy)
    names, parameters = zip(*part.named_parameters(), strict=True)
    grads = torch.autograd.grad(output, (x, *parameters), dy)
    return {**results, **{f"{n}.grad": g for n, g in zip(("input", *names), grads, strict=True)}}


def compare_part(
    title: str,
    dtype: torch.dtype,
    seed: int,
    emulated,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Row:
    """The part in training mode: fastconv's layers in the emulator beside torch's and float64.

    Whatever is raised becomes the row's failure.
    """
    builder, size = PARTS[title]
    row = Row("part", title, size_name(torch.Size(size)), dtype_name(dtype))
    launched: list[str] = []

    def own_step(*arguments) -> Results:
        with emulated() as log:
            results = both_ways(*arguments)
        launched.extend(log)
        return results

    try:
        torch.manual_seed(seed)
        twin, ours = (
            builder(layers).to(dtype=dtype, memory_format=memory_format)
            for layers in (torch_layers, fastconv.nn)
        )
        row.parameters = sum(p.numel() for p in twin.parameters())
        x = torch.randn(size).to(dtype, memory_format=memory_format)
        with torch.no_grad():
            dy = torch.randn_like(twin(x))
        networks = (twin, ours, builder(torch_layers).double())
        compare_steps(row, networks, (x, dy), seed, both_ways, forward, own_step)
        if not launched:
            row.failures.append("no kernel ran in the emulator")
    except Exception as error:  # a kernel that refuses is one row that fails
        row.failures.append(f"{type(error).__name__}: {first_line(error)}")
    return row


def tasks(
    networks: list[str] | None, dtype: torch.dtype, seed: int
) -> list[tuple[str, Callable[[], Row]]]:
    """As validate.tasks, for the networks named, or all six.

    Raises:
        CommandError: no emulator, or a network that has no part here.
    """
    emulated = find_emulator()
    titles = [t for t in PARTS if networks is None or _is_of(t, networks)]
    if not titles:
        raise CommandError(f"--backend {NAME} has no part of {', '.join(networks or [])}")
    return [
        (title, lambda title=title: compare_part(title, dtype, seed, emulated)) for title in titles
    ]


def _is_of(title: str, networks: list[str]) -> bool:
    return any(name.startswith(title.split()[0]) for name in networks)
