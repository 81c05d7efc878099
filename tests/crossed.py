"""Parameters of a test of every backend, in fewer combinations where it is slow."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest


def crossed(names: str, first: Iterable, second: Iterable, third: Iterable):
    """Marks a test that uses the fixture `backend` and takes three parameters.

    On the CPU and in CUDA's emulator every combination; in Triton's interpreter, at tenths of a
    second each, every pair: the third's values take turns over the others'.
    """
    axes = [list(axis) for axis in (first, second, third)]
    turns = len(axes[2])
    assert turns <= min(map(len, axes))  # or a pair would be missing
    chosen = [(name, *values) for name in ("cpu", "cuda") for values in itertools.product(*axes)]
    for (i, a), (j, b) in itertools.product(*map(enumerate, axes[:2])):
        chosen.append(("triton", a, b, axes[2][(i + j) % turns]))
    return pytest.mark.parametrize(f"backend, {names}", chosen, indirect=["backend"], ids=str)
