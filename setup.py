"""Builds fastconv/_C: C++ sources against torch's stable ABI, one file per CPU ISA."""

import os
import platform
import shlex
import shutil
import sys
import sysconfig
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
    "isa_wide.cpp": ["-mavx2", "-mfma", "-mf16c"],  # AVX-512's logic, run on AVX2
}
COMMON_FLAGS = ["-std=c++17", "-O3", "-g0", "-fvisibility=hidden", "-fno-math-errno", "-Wall"]
ISA_WARNINGS = ["-Wno-psabi"]


def sources() -> list[str]:
    found = sorted([*ROOT.glob("csrc/*.cpp"), *ROOT.glob("csrc/cpu/*.cpp")])
    return [str(path.relative_to(ROOT)) for path in found if X86 or path.name not in ISA_FLAGS]


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


class BuildExtension(build_ext):
    """Compiles the sources in parallel, each with its ISA's flags, and all of them each time."""

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

        def compile_one(source: str) -> list[str]:
            isa = ISA_FLAGS.get(Path(source).name, [])
            return self.compiler.compile(
                [source],
                output_dir=self.build_temp,
                macros=macros,
                include_dirs=include,
                extra_postargs=[*COMMON_FLAGS, *ISA_WARNINGS, *isa],
            )

        jobs = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
        with ThreadPoolExecutor(jobs) as pool:
            objects = [obj for done in pool.map(compile_one, ext.sources) for obj in done]
        self.compiler.link_shared_object(
            objects,
            self.get_ext_fullpath(ext.name),
            libraries=["torch_cpu"],
            library_dirs=[str(Path(torch.__file__).parent / "lib")],
            extra_postargs=["-Wl,--as-needed"],
            target_lang="c++",
        )


setup(
    ext_modules=[Extension("fastconv._C", sources(), language="c++")],
    cmdclass={"build_ext": BuildExtension},
)
