"""Memory of large results on the CPU, kept for the next ones.

The C library gives blocks of more than 32 MiB back to the system as soon as they are freed, and the
system clears each anew: writing 205 MiB takes 8 ms, getting them first 30 more. Results of that
size of fastconv's operations therefore stay mapped when they are freed. The system may take their
pages at any time (``MADV_FREE``), so they are never the reason for it to run out of memory, though
until then they count as the process's. Needs torch 2.11; the storage of such a result cannot be
resized (``Tensor.resize_`` to more elements raises RuntimeError).
"""

from __future__ import annotations

from . import _C


def reserved() -> int:
    """Bytes of freed results that are kept."""
    return _C.kept_bytes()


def empty_cache() -> None:
    """Gives what is kept back to the system; results in use are not touched."""
    _C.release_blocks()


def set_limit(size: int) -> None:
    """Keeps at most ``size`` bytes, at first a quarter of the machine's memory; 0 keeps nothing.

    Beyond it the blocks that were freed first go. With 0 results are torch's own memory.

    Raises:
        ValueError: ``size`` is negative.
    """
    if size < 0:
        raise ValueError(f"set_limit: size is {size}, expected bytes, 0 or more")
    _C.limit_blocks(size)
