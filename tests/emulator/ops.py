"""The CUDA backend's ops for CPU tensors: ``with fastconv.backend("cuda-emulated")`` after load."""

import ctypes
import functools

import torch

from fastconv.ops import registry

from . import configure, library

NAME = "cuda-emulated"


@functools.cache
def load() -> None:
    """Registers the backend; outputs are poisoned before a kernel writes them."""
    torch.ops.load_library(library()._name)
    registry.NAMESPACES[NAME] = "fastconv_emulated"
    library().emulated_poison(1)
    configure(any_memory=True)


def executed() -> dict[str, bool]:
    """Planner rows of the CUDA backend, and whether each has run in this process."""
    rows, name = {}, ctypes.c_char_p()
    for index in range(1000):
        ran = library().emulated_row(index, ctypes.byref(name))
        if ran < 0:
            break
        if name.value is not None:
            rows[f"cuda {name.value.decode()} forward"] = bool(ran & 1)
    return rows
