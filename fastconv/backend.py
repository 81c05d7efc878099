"""The choice of a backend, for one thread."""

from __future__ import annotations

import importlib.util
import sys
import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from . import _C

BACKENDS = ("cpu", "cuda", "triton")  # the first two in the order of csrc/plan.h
# Backend -> the namespace of torch.ops that holds its raw ops, where it is not the device's own.
NAMESPACES: dict[str, str] = {}


class _Choice(threading.local):
    name: str | None = None  # read by csrc/eager.cpp too


_choice = _Choice()


class _Traced(types.ModuleType):
    """The choice as an attribute of a module: every torch.compile reads those, and compiles again
    when one has another value. Of a `threading.local` torch 2.11 reads the class's attribute."""

    @property
    def name(self) -> str | None:
        return _choice.name

    @name.setter
    def name(self, value: str | None) -> None:
        _choice.name = value


_traced = _Traced("choice")
_is_dynamo_compiling = torch.compiler.is_dynamo_compiling


def current_backend() -> str | None:
    """The backend that `backend` chose in this thread, or None: the one of the tensor's device."""
    return _traced.name if _is_dynamo_compiling() else _choice.name


@contextmanager
def chosen(name: str | None) -> Iterator[None]:
    """Within it the backend is `name`, which is not checked: for a backward pass in its thread."""
    before = current_backend()
    _traced.name = name
    try:
        yield
    finally:
        _traced.name = before


def has_triton() -> bool:
    """Whether the package triton is installed."""
    if "triton" in sys.modules:
        return sys.modules["triton"] is not None
    return importlib.util.find_spec("triton") is not None


def load_triton() -> None:
    """Registers the Triton backend.

    Raises:
        NotImplementedError: the package triton is not installed.
    """
    if "triton" in NAMESPACES:
        return
    if not has_triton():
        raise NotImplementedError(
            "fastconv's triton backend needs the package triton, which is not installed"
        )
    from .triton.register import register

    register()


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Within it, ops of this thread run on the named backend, and so do their gradients.

    Args:
        name: "cpu" or "cuda", whose tensors must be on that device; "triton" for tensors of CUDA,
            or of the CPU where TRITON_INTERPRET=1 was set before Triton was imported.

    Raises:
        ValueError: an unknown name. NotImplementedError: a backend this build does not have.
        RuntimeError: by an op within it, for a tensor of another device.
    """
    if name not in BACKENDS and name not in NAMESPACES:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {name!r}")
    if name == "triton":
        load_triton()
    built = name == "cpu" or name in NAMESPACES or (name == "cuda" and _C.cuda)
    if not built:
        raise NotImplementedError(f"fastconv was built without the {name} backend")
    with chosen(name):
        yield
