"""Runs the CUDA sources of ``csrc/cuda`` on the host: builds them with g++ against the emulator.

``library()`` is the loaded shared object. Kernels run on ``Buffer``s, memory between two pages
that cannot be accessed, and ``configure`` chooses the order of the fibers, the GPU whose limits
hold, and whether bank conflicts are counted. A launcher returns None, or what went wrong.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import hashlib
import os
import re
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
CXX = os.environ.get("CXX", "g++")
FLAGS = ["-std=c++17", "-O2", "-march=native", "-fPIC", "-fno-strict-aliasing"]
FLAGS += ["-fvisibility=hidden", "-Wall", "-Wno-unknown-pragmas", f"-I{HERE}"]

ORDERS = ("ascending", "descending", "random")


INCLUDE = Path(torch.__file__).parent / "include"
TORCH_FLAGS = [f"-I{INCLUDE}", "-DTORCH_TARGET_VERSION=0x020a000000000000", "-DTORCH_STABLE_ONLY"]
TORCH_FLAGS += ["-DFASTCONV_CUDA_LIBRARY=fastconv_emulated", "-DFASTCONV_CUDA_KEY=CPU", "-O1"]
TORCH_FLAGS += ["-Daoti_torch_empty_strided=emulated_empty_strided"]
# The torch side of the ops, registered for CPU tensors as torch.ops.fastconv_emulated.
TORCH_SOURCES = [
    ROOT / "csrc" / name for name in ("blocks.cpp", "problem.cpp", "pool_problem.cpp", "plan.cpp")
]
TORCH_SOURCES += [ROOT / "csrc/cuda" / name for name in ("conv.cpp", "conv_grad.cpp")]
TORCH_SOURCES += [ROOT / "csrc/cuda" / name for name in ("pixels.cpp", "pool.cpp", "add.cpp")]
TORCH_SOURCES += [HERE / "torch_ops.cpp"]


def sources() -> list[Path]:
    found = [*HERE.glob("*.c*"), *(ROOT / "csrc/cuda").glob("*.cu"), *TORCH_SOURCES]
    return sorted({*found, *(ROOT / "csrc/cuda/instances").glob("*.cu")})


@functools.cache
def library() -> ctypes.CDLL:
    """Compiled where it is not, one process at a time; its path holds a hash of what it is of."""
    folder = ROOT / "build" / "emulator"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        folder = Path(tempfile.gettempdir()) / f"fastconv-emulator-{os.getuid()}"
        folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        loaded = ctypes.CDLL(str(_build(folder)))
    for name in ("emulator_take_log",):
        getattr(loaded, name).restype = ctypes.c_char_p
    loaded.emulator_allocate.restype = ctypes.c_void_p
    loaded.emulator_allocate.argtypes = [ctypes.c_int64, ctypes.c_int32, ctypes.c_char_p]
    loaded.emulator_release.argtypes = [ctypes.c_void_p]
    return loaded


@functools.cache
def _included(source: Path) -> frozenset[Path]:
    """A source and every file of the repository that it includes."""
    found = {source}
    for name in re.findall(r'^#include "(.+)"', source.read_text(), re.MULTILINE):
        for folder in (source.parent, HERE):
            if (path := (folder / name).resolve()).exists():
                found |= _included(path)
    return frozenset(found)


def _build(folder: Path) -> Path:
    machine = subprocess.run(
        [CXX, *FLAGS, "-E", "-dM", "-xc++", "/dev/null"], check=True, capture_output=True
    ).stdout
    common = hashlib.sha256(machine + " ".join(FLAGS).encode())

    def compile_one(source: Path) -> Path:
        digest = common.copy()
        for path in sorted(_included(source)):
            digest.update(path.read_bytes())
        flags = [*FLAGS, *(TORCH_FLAGS if source in TORCH_SOURCES else ())]
        digest.update(" ".join([*flags, torch.__version__]).encode())
        place = "_".join(source.relative_to(ROOT).parts)
        made = folder / f"{place}-{digest.hexdigest()[:16]}.o"
        if not made.exists():
            for old in folder.glob(f"{place}-????????????????.o"):
                old.unlink()
            _run([CXX, *flags, "-c", "-xc++", str(source), "-o", f"{made}.part"])
            os.replace(f"{made}.part", made)
        return made

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, sources()))
    digest = hashlib.sha256(" ".join(o.name for o in objects).encode()).hexdigest()[:16]
    made = folder / f"emulator-{digest}.so"
    if not made.exists():
        for old in folder.glob("emulator-*.so"):
            old.unlink()
        torch_library = f"-L{INCLUDE.parent / 'lib'}"
        link = [CXX, "-shared", *map(str, objects), torch_library, "-ltorch_cpu"]
        _run([*link, "-o", f"{made}.part"])
        os.replace(f"{made}.part", made)
    return made


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")


class _Options(ctypes.Structure):
    _fields_ = [
        ("order", ctypes.c_int32),
        ("seed", ctypes.c_uint32),
        ("arch", ctypes.c_int32),
        ("count_banks", ctypes.c_int32),
        ("any_memory", ctypes.c_int32),
    ]


def configure(
    order: str = "ascending",
    seed: int = 1,
    arch: int = 90,
    count_banks: bool = False,
    any_memory: bool = False,
) -> None:
    """For the launches that follow; ``any_memory`` lets them at memory outside ``Buffer``s."""
    options = _Options(ORDERS.index(order), seed, arch, count_banks, any_memory)
    library().emulator_configure(ctypes.byref(options))


def take_bank_count() -> tuple[int, int]:
    """Shared-memory phases since the last call, and the cycles they took: equal without conflicts.

    A phase is 128 bytes of an access through ``ptx::ld_shared``, ``st_shared``, ``cp_async`` or
    ``ldmatrix``, counted where ``configure(count_banks=True)``.
    """
    counts = (ctypes.c_int64 * 2)()
    library().emulator_take_bank_count(counts)
    return counts[0], counts[1]


def take_log() -> list[str]:
    """Names of the kernels launched since the last call."""
    return library().emulator_take_log().decode().splitlines()


def _distinct(tensor: Tensor) -> Tensor:
    """One of each element of an expanded tensor."""
    for axis, stride in enumerate(tensor.stride()):
        if stride == 0:
            tensor = tensor[(slice(None),) * axis + (slice(0, 1),)]
    return tensor


class Buffer:
    """A tensor's copy in guarded memory, with its strides; gaps between its elements are poison.

    It ends (``right``) or begins at a page that cannot be accessed.
    """

    def __init__(self, tensor: Tensor, right: bool = True, name: str = "tensor"):
        extent = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) + 1
        self.bytes = (extent if tensor.numel() else 0) * tensor.element_size()
        self.pointer = library().emulator_allocate(self.bytes, right, name.encode())
        if not self.pointer:
            raise MemoryError(f"no room for {self.bytes} guarded bytes")
        memory = (ctypes.c_uint8 * max(self.bytes, 1)).from_address(self.pointer)
        flat = torch.frombuffer(memory, dtype=torch.uint8)[: self.bytes]
        self.tensor = flat.view(tensor.dtype).as_strided(tensor.shape, tensor.stride())
        _distinct(self.tensor).copy_(_distinct(tensor))

    def free(self) -> None:
        self.tensor = None
        library().emulator_release(self.pointer)


@contextlib.contextmanager
def buffers(right: bool = True, **tensors: Tensor):
    """A namespace of ``Buffer``s, freed at the end; a None stays None."""
    made = {k: None if t is None else Buffer(t, right, k) for k, t in tensors.items()}
    try:
        yield made
    finally:
        for buffer in made.values():
            if buffer is not None:
                buffer.free()
