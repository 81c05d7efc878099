"""`validate --backend cuda-emulated`: the CUDA kernels on the CPU, in the emulator of the tests.

Forward only, on LeNet whole and a block of each other network: a whole one takes hours there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import nn

import fastconv
from fastconv.models import alexnet, lenet, nin, vgg16
from fastconv.models.googlenet import Inception
from fastconv.models.resnet import BasicBlock, Bottleneck
from fastconv.testing import torch_layers

from .checkpoint import first_line
from .common import CommandError
from .comparison import NETWORK_FACTOR, Row, allowed_errors, dtype_name, size_name

NAME = "cuda-emulated"


def _downsampled(layers) -> nn.Module:
    """A bottleneck that halves the image."""
    planes = 32 * Bottleneck.expansion
    shortcut = nn.Sequential(
        layers.Conv2d(64, planes, 1, stride=2, bias=False), nn.BatchNorm2d(planes)
    )
    return Bottleneck(64, 32, stride=2, downsample=shortcut, namespace=layers)


# What is compared: a builder that takes a namespace of layers, and the size of the input. The
# first word is the network's.
PARTS: dict[str, tuple[Callable[..., nn.Module], tuple[int, int, int, int]]] = {
    "lenet": (lambda layers: lenet(layers=layers), (2, 1, 28, 28)),
    "alexnet features[:3]": (lambda layers: alexnet(layers=layers).features[:3], (1, 3, 47, 39)),
    "vgg features[:5]": (lambda layers: vgg16(layers=layers).features[:5], (1, 3, 14, 10)),
    "nin block": (lambda layers: nin(layers=layers)[2], (1, 96, 7, 6)),
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


def compare_part(title: str, dtype: torch.dtype, seed: int, emulated) -> Row:
    """The part in eval mode: fastconv's layers in the emulator beside torch's and float64."""
    builder, size = PARTS[title]
    row = Row("part", title, size_name(torch.Size(size)), dtype_name(dtype))
    try:
        torch.manual_seed(seed)
        twin, ours = (builder(layers).eval() for layers in (torch_layers, fastconv.nn))
        ours.load_state_dict(twin.state_dict())
        row.parameters = sum(p.numel() for p in twin.parameters())
        x = torch.randn(size).to(dtype)
        with torch.no_grad():
            theirs = twin.to(dtype)(x)
            ours = ours.to(dtype)
            with emulated() as log:
                output = ours(x)
            truth = twin.double()(x.double())
        if not log:
            row.failures.append("no kernel ran in the emulator")
        row.add("output", output, truth, allowed_errors(theirs, truth, dtype, NETWORK_FACTOR))
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
