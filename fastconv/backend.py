"""The choice of a backend, for one thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

BACKENDS = ("cpu", "cuda", "triton")
_BUILT = ("cpu",)
_choice = threading.local()


def current_backend() -> str | None:
    """The backend that `backend` chose in this thread, or None: the one of the tensor's device."""
    return getattr(_choice, "name", None)


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Within it, ops of this thread run on the named backend.

    Args:
        name: "cpu"; "cuda" and "triton" are not built yet.

    Raises:
        ValueError: an unknown name. NotImplementedError: a backend this build does not have.
    """
    if name not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {name!r}")
    if name not in _BUILT:
        raise NotImplementedError(f"fastconv was built without the {name} backend")
    before = current_backend()
    _choice.name = name
    try:
        yield
    finally:
        _choice.name = before
