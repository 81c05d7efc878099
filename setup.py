"""Builds fastconv/_C: C++ sources against torch's stable ABI, one file per CPU ISA, and the CUDA
kernels where there is a CUDA toolkit (FASTCONV_CUDA=0 leaves them out, 1 insists).
"""

import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
X86 = platform.machine() in ("x86_64", "AMD64")
# Flags of the files that are compiled for one ISA; everything else is for the baseline.
ISA_FLAGS = {
    "isa_avx2.cpp": ["-mavx2", "-mfma", "-mf16c"],
    "isa_avx512.cpp": "-mavx512f -mavx512vl -mavx512bw -mavx512dq -mfma -mf16c".split(),
    # AVX-512's logic, run on AVX2 by the tests: four times as fast to compile as with -O3.
    "isa_wide.cpp": ["-mavx2", "-mfma", "-mf16c", "-O1"],
}
ISA_FILES = {
    "baseline": "isa_baseline.cpp",
    "avx2": "isa_avx2.cpp",
    "avx512": "isa_avx512.cpp",
    "avx512-on-avx2": "isa_wide.cpp",
}
COMMON_FLAGS = ["-std=c++17", "-O3", "-g0", "-fvisibility=hidden", "-fno-math-errno", "-Wall"]
# Inlining as much as -O2 does: as fast as -O3 alone in two thirds of its code, a third of the time.
# The loops of -O3 are worth 2 to 8 % (g++ 12, AVX-512: 1x1, 3x3 of stride 2).
INLINING = "max-inline-insns-single=70 inline-min-speedup=30 max-inline-insns-auto=15".split()
KERNEL_FLAGS = ["-Wno-psabi", *(f"--param={limit}" for limit in INLINING)]


def sources(cuda: bool = False) -> list[str]:
    found = [*sorted(ROOT.glob("csrc/cpu/*.cpp"), reverse=True), *sorted(ROOT.glob("csrc/*.cpp"))]
    if cuda:
        found += sorted([*ROOT.glob("csrc/cuda/*.cpp"), *ROOT.glob("csrc/cuda/**/*.cu")])
    left_out = {ISA_FILES[isa] for isa in ISA_FILES if isa not in wanted_isas()}
    return [str(path.relative_to(ROOT)) for path in found if path.name not in left_out]


def wanted_isas() -> list[str]:
    """What FASTCONV_BUILD_ISAS names, and the baseline that every build has; else all there are."""
    isas = list(ISA_FILES) if X86 else ["baseline"]
    wish = os.environ.get("FASTCONV_BUILD_ISAS", "").replace(",", " ").split()
    if unknown := [isa for isa in wish if isa not in isas]:
        sys.exit(f"FASTCONV_BUILD_ISAS names {', '.join(unknown)}; there are {', '.join(isas)}")
    return [isa for isa in isas if isa in ("baseline", *wish)] if wish else isas


def find_cuda() -> Path | None:
    """The CUDA toolkit: CUDA_HOME, the usual folder, or where nvcc says it is. The nvcc on the path
    may be a wrapper that stands elsewhere."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    if nvcc := shutil.which("nvcc"):
        done = subprocess.run([nvcc, "--dryrun", "-c", "x.cu"], capture_output=True, text=True)
        homes += re.findall(r"^#\$ TOP=(.+)$", done.stderr, re.MULTILINE)
    for home in filter(None, homes):
        if all((Path(home) / part).exists() for part in ("bin/nvcc", "include/cuda_runtime_api.h")):
            return Path(home).resolve()
    return None


def wanted_cuda() -> Path | None:
    """The toolkit to build with, or None for a build without CUDA."""
    wish = os.environ.get("FASTCONV_CUDA", "")
    if wish not in ("", "0", "1"):
        sys.exit(f"FASTCONV_CUDA must be 0 or 1, got {wish!r}")
    toolkit = None if wish == "0" else find_cuda()
    if wish == "1" and toolkit is None:
        sys.exit(
            "FASTCONV_CUDA=1, but no CUDA toolkit was found. Install one (nvcc and its headers), "
            "or set CUDA_HOME to the folder that holds bin/nvcc."
        )
    return toolkit


def architectures() -> list[str]:
    """nvcc's options for FASTCONV_CUDA_ARCHS, and PTX of the first so that newer GPUs run."""
    archs = os.environ.get("FASTCONV_CUDA_ARCHS", "80;90a").replace(",", ";").split(";")
    if not all(re.fullmatch(r"\d{2,3}[af]?", arch) for arch in archs):
        sys.exit(f'FASTCONV_CUDA_ARCHS must be like "80;90a", got {";".join(archs)!r}')
    codes = [(arch, f"sm_{arch}") for arch in archs]
    if archs[0].isdigit():
        codes.append((archs[0], f"compute_{archs[0]}"))
    return [f"-gencode=arch=compute_{arch},code={code}" for arch, code in codes]


def sanitizer_flags() -> list[str]:
    """Of a test build: FASTCONV_SANITIZE=address,undefined or thread. Python then runs with libasan
    loaded first (LD_PRELOAD; .ci/run), or libtsan (bench/thread_sanitizer.py)."""
    wish = os.environ.get("FASTCONV_SANITIZE")
    if not wish:
        return []
    return [
        f"-fsanitize={wish}",
        "-fno-sanitize-recover=all",
        "-fno-omit-frame-pointer",
        "-g1",
        "-O1",
    ]


def need_compiler() -> None:
    compiler = os.environ.get("CXX") or "g++"
    program = shlex.split(compiler)[0]
    if shutil.which(program) is None:
        sys.exit(
            f"fastconv needs a C++17 compiler, and {program!r} was not found. Install g++ (Debian, "
            "Ubuntu: apt install g++; Fedora: dnf install gcc-c++), or set CXX to one that exists."
        )
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.exists():
        sys.exit(
            f"fastconv needs Python's headers, and {header} was not found. Install them (Debian, "
            "Ubuntu: apt install python3-dev; Fedora: dnf install python3-devel)."
        )
    os.environ["CXX"] = compiler  # not the one that built this Python


def compiled(source: str, command: list[str], version: str, compile_to) -> str:
    """The object of a source: what an earlier build left under build/, if neither the command, the
    versions nor a file it was made of has changed since, else `compile_to(folder, depfile)`."""
    key = hashlib.sha256("\0".join([*command, version]).encode()).hexdigest()[:16]
    folder = ROOT / "build" / "objects"
    kept = folder / f"{Path(source).name}-{key}.o"
    depfile = kept.with_suffix(".d")
    if kept.exists() and depfile.exists():
        made_of = shlex.split(depfile.read_text().replace("\\\n", " ").split(":", 1)[1])
        made = kept.stat().st_mtime
        if all(os.path.exists(path) and os.stat(path).st_mtime < made for path in made_of):
            return str(kept)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:  # a build that is cut off leaves no half
        new, began = Path(work, "d"), time.time()
        built = compile_to(work, str(new))
        os.utime(built, (began, began))  # older than what is edited meanwhile
        os.replace(new, depfile)
        os.replace(built, kept)
    return str(kept)


class BuildExtension(build_ext):
    """Compiles the sources in parallel, each with its ISA's flags, those that changed."""

    def run(self) -> None:
        need_compiler()  # before the base class reads CXX
        super().run()

    def build_extension(self, ext: Extension) -> None:
        import pybind11
        import torch

        include = [
            pybind11.get_include(),
            str(Path(torch.__file__).parent / "include"),
            *self.compiler.include_dirs,
        ]
        macros = [("TORCH_TARGET_VERSION", "0x020a000000000000"), ("TORCH_STABLE_ONLY", None)]
        if X86:
            macros.append(("FASTCONV_X86", None))
        toolkit = wanted_cuda()
        if toolkit:
            macros.append(("FASTCONV_CUDA", None))
            include.append(str(toolkit / "include"))

        def version_of(*command: str) -> str:
            return subprocess.run([*command, "--version"], capture_output=True, text=True).stdout

        compiler = version_of(*shlex.split(os.environ["CXX"]))
        versions = f"{torch.__version__} {pybind11.__version__} {compiler}"

        def compile_cuda(source: str) -> str:
            host = ["-ccbin", shlex.split(os.environ["CXX"])[-1]]
            host += ["-Xcompiler=-fPIC,-fvisibility=hidden", "-std=c++17", "-O3"]
            nvcc = [str(toolkit / "bin" / "nvcc"), *host, *architectures(), "-c", source]

            def to(folder: str, depfile: str) -> str:
                made = str(Path(folder, "o"))
                self.spawn([*nvcc, "-MMD", "-MF", depfile, "-o", made])
                return made

            return compiled(source, nvcc, versions + version_of(nvcc[0]), to)

        def compile_one(source: str) -> str:
            if source.endswith(".cu"):
                return compile_cuda(source)
            name = Path(source).name
            flags = [*COMMON_FLAGS, *(KERNEL_FLAGS if name.startswith("isa_") else [])]
            flags += [*ISA_FLAGS.get(name, []), *sanitizer_flags()]

            def to(folder: str, depfile: str) -> str:
                (made,) = self.compiler.compile(
                    [source],
                    output_dir=folder,
                    macros=macros,
                    include_dirs=include,
                    extra_postargs=[*flags, "-MMD", "-MF", depfile],
                )
                return made

            command = [source, *self.compiler.compiler_so, *map(str, macros), *include, *flags]
            return compiled(source, command, versions, to)

        jobs = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
        with ThreadPoolExecutor(jobs) as pool:
            objects = list(pool.map(compile_one, sources(cuda=toolkit is not None)))
        libraries = ["cudart_static", "rt", "pthread", "dl"] if toolkit else []
        folders = [str(toolkit / "lib64"), str(toolkit / "lib")] if toolkit else []
        self.compiler.link_shared_object(
            objects,
            self.get_ext_fullpath(ext.name),
            libraries=["torch_cpu", *libraries],
            library_dirs=[str(Path(torch.__file__).parent / "lib"), *folders],
            extra_postargs=["-Wl,--as-needed", *sanitizer_flags()],
            target_lang="c++",
        )


setup(
    ext_modules=[Extension("fastconv._C", sources(), language="c++")],
    cmdclass={"build_ext": BuildExtension},
)
