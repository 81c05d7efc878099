"""The CUDA backend for CPU tensors: torch side, planner, launchers and kernels, emulated."""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Iterator

import torch

import fastconv
from fastconv.explain import DIRECTIONS
from fastconv.ops import registry

from . import configure, library, take_log

NAME = "emulated cuda"
# (arch, streaming multiprocessors, bytes of shared memory of each). Four multiprocessors, so that
# small problems fill it and large tiles are chosen too.
SMALL_H100 = (90, 4, 228 << 10)

# Gradients that a row of the planner refuses for every problem.
REFUSED = {("stem", "input_grad")}


@functools.cache
def _load() -> None:
    torch.ops.load_library(library()._name)
    registry.NAMESPACES[NAME] = "fastconv_emulated"
    library().emulated_poison(1)


@contextlib.contextmanager
def emulated_cuda(
    gpu: tuple[int, int, int] = SMALL_H100,
    order: str = "random",
    seed: int = 1,
    least_filled: int = 0,
) -> Iterator[list[str]]:
    """Within it fastconv's ops on CPU tensors run as on the GPU described, outputs poisoned.

    `least_filled`: products from which channels are filled up to whole chunks; 0: as on a GPU.
    Yields the names of the kernels launched, which stand in it after the block.
    """
    _load()
    library().emulated_gpu(*gpu)
    library().emulated_filling(ctypes.c_double(least_filled))
    configure(order, seed, arch=gpu[0], any_memory=True)
    take_log()
    log: list[str] = []
    try:
        with fastconv.backend(NAME):
            yield log
    finally:
        log += take_log()
        library().emulated_filling(ctypes.c_double(0))
        configure()


def executed() -> list[tuple[str, bool]]:
    """Planner rows of the CUDA backend by direction, and whether each has run in this process."""
    rows, name = [], ctypes.c_char_p()
    for index in range(1000):
        ran = library().emulated_row(index, ctypes.byref(name))
        if ran < 0:
            break
        if name.value is not None:
            row = name.value.decode()
            rows += [
                (f"cuda {row} {d}", bool(ran >> i & 1))
                for i, d in enumerate(DIRECTIONS)
                if (row, d) not in REFUSED
            ]
    return rows
