"""CUDA's compiler and tools, where they are, and what it makes of csrc/cuda: kept under build/."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent
CUDA = ROOT / "csrc" / "cuda"


@functools.cache
def find_nvcc() -> str | None:
    """By CUDA_HOME, then the usual folder, then the path."""
    for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda"):
        if home and (Path(home) / "bin" / "nvcc").exists():
            return str(Path(home) / "bin" / "nvcc")
    return shutil.which("nvcc")


def find_cuobjdump() -> str | None:
    """On the path, or of the triton package."""
    spec = importlib.util.find_spec("triton")
    folders = [Path(spec.origin).parent / "backends/nvidia/bin"] if spec and spec.origin else []
    path = os.pathsep.join([os.environ.get("PATH", ""), *map(str, folders)])
    return shutil.which("cuobjdump", path=path)


def compiled(source: Path, code: str, kind: str) -> tuple[Path, str]:
    """The file that nvcc makes of a source and what it said, once for each content.

    `code`: "arch=compute_90a,code=sm_90a"; `kind`: cubin or ptx.
    """
    nvcc = find_nvcc()
    version = subprocess.run([nvcc, "--version"], check=True, capture_output=True).stdout
    digest = hashlib.sha256(version + code.encode() + source.read_bytes())
    for header in sorted([*CUDA.glob("*.cuh"), *CUDA.glob("*.h"), *CUDA.parent.glob("*.h")]):
        digest.update(header.read_bytes())
    folder = ROOT / "build" / kind
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{source.stem}-{code.rsplit('_', 1)[1]}"
    made = folder / f"{stem}-{digest.hexdigest()[:16]}.{kind}"
    said = made.with_suffix(".txt")
    if not said.exists():
        for old in folder.glob(f"{stem}-*"):
            old.unlink()
        command = [nvcc, "-std=c++17", "-gencode", code, f"-{kind}", "-Xptxas", "-v"]
        done = subprocess.run(
            [*command, "-o", str(made), str(source)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        said.write_text(done.stdout + done.stderr)
    return made, said.read_text()


def every_ptx(arch: str) -> list[str]:
    """The PTX of every source, for "90a" or another virtual architecture."""
    code = f"arch=compute_{arch},code=compute_{arch}"
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        made = pool.map(lambda s: compiled(s, code, "ptx")[0], sorted(CUDA.rglob("*.cu")))
        return [path.read_text() for path in made]
