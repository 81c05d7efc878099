"""Runs the kernels from the PTX that nvcc made of them, in place of what g++ makes of the sources.

``with compiled_kernels(text):`` every launch of a kernel that the text holds executes its PTX, by
the same launchers and under the same checks (bounds, alignment, barriers, orders of threads).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import re
import subprocess
from collections.abc import Iterator, Sequence

from . import library


def _demangled(names: list[str]) -> list[str]:
    done = subprocess.run(
        ["c++filt"], input="\n".join(names), check=True, capture_output=True, text=True
    )
    # The emulator passes by reference what a GPU passes by value.
    return [re.sub(r" const&", "", name) for name in done.stdout.splitlines()]


@functools.cache
def _addresses() -> dict[str, int]:
    """Where the functions of the emulator's library are, by their C++ names."""
    done = subprocess.run(
        ["nm", "--defined-only", library()._name], check=True, capture_output=True, text=True
    )
    rows = [line.split() for line in done.stdout.splitlines()]
    offsets = {row[2]: int(row[0], 16) for row in rows if len(row) == 3 and row[1] in "tTwW"}
    known = ctypes.cast(library().emulator_configure, ctypes.c_void_p).value
    base = known - offsets["emulator_configure"]
    names = list(offsets)
    return {
        plain: base + offsets[name] for name, plain in zip(names, _demangled(names), strict=True)
    }


@functools.cache
def parse(text: str) -> dict[str, str]:
    """Decodes a text's kernels, once; their C++ names by those that the emulator gives them.

    Raises NotImplementedError at an instruction that the emulator lacks.
    """
    parse_text = library().emulator_ptx_parse
    parse_text.restype = ctypes.c_char_p
    prefix = hashlib.sha256(text.encode()).hexdigest()[:16] + " "
    if problem := parse_text(text.encode(), prefix.encode()):
        kind = NotImplementedError if b"no instruction" in problem else ValueError
        raise kind(problem.decode())
    names = re.findall(r"\.entry (\w+)", text)
    return {prefix + name: plain for name, plain in zip(names, _demangled(names), strict=True)}


@contextlib.contextmanager
def compiled_kernels(texts: Sequence[str]) -> Iterator[None]:
    """Within it the texts' kernels run from PTX, of those with one name the last."""
    choose = library().emulator_ptx_choose
    try:
        for text in texts:
            for name, plain in parse(text).items():
                _chosen[name] = plain
                choose(name.encode(), ctypes.c_void_p(_addresses()[plain]))
        yield
    finally:
        choose(None, None)


_chosen: dict[str, str] = {}


def executed() -> list[tuple[str, bool]]:
    """The kernels that were to run from PTX in this process, and whether each has.

    Of kernels that come in 32 and in 64 bits the former: their texts differ in nothing else.
    """
    ran = library().emulator_ptx_ran
    return [
        (f"{plain} from PTX", bool(ran(name.encode())))
        for name, plain in _chosen.items()
        if "<long>" not in plain
    ]
