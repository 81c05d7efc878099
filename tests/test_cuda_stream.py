"""The CUDA module finds torch's stream in a library loaded as torch loads it: names kept to itself.

Nothing else on a machine without a GPU runs csrc/cuda/stream.cpp; the emulator has no streams.
"""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TORCH_CUDA = """
#include <stdint.h>
extern "C" __attribute__((visibility("default"))) int32_t aoti_torch_get_current_cuda_stream(
    int32_t device, void** stream) {
  if (device > 7) return 1;
  *stream = reinterpret_cast<void*>(uintptr_t(4096 + device));
  return 0;
}
"""
PROGRAM = """
#include <dlfcn.h>
#include <cstdio>
#include <exception>
#include <initializer_list>
#include "csrc/cuda/stream.h"
int main(int count, char** arguments) {
  if (count > 1 && !dlopen(arguments[1], RTLD_LAZY | RTLD_LOCAL)) return 2;
  for (int device : {1, 8}) try {
    std::printf("%zd\\n", reinterpret_cast<size_t>(fastconv::cuda::current_stream(device)));
  } catch (const std::exception& error) {
    std::printf("%s\\n", error.what());
  }
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """What it prints of the streams of devices 1 and 8, with torch's CUDA library or without."""
    folder = tmp_path_factory.mktemp("stream")
    (folder / "torch_cuda.cpp").write_text(TORCH_CUDA)
    (folder / "program.cpp").write_text(PROGRAM)
    cxx = [os.environ.get("CXX", "g++"), "-std=c++17", f"-I{ROOT}"]
    library, made = folder / "libtorch_cuda.so", folder / "program"
    shared = ["-shared", "-fPIC", "-Wl,-soname,libtorch_cuda.so"]
    subprocess.run([*cxx, *shared, folder / "torch_cuda.cpp", "-o", library], check=True)
    sources = [folder / "program.cpp", ROOT / "csrc/cuda/stream.cpp"]
    subprocess.run([*cxx, *sources, "-ldl", "-o", made], check=True)

    def run(*arguments):
        done = subprocess.run([made, *arguments], check=True, capture_output=True, text=True)
        return done.stdout.splitlines()

    run.library = library
    return run


def test_torchs_current_stream_is_found(program):
    assert program(program.library) == ["4097", "fastconv: no current stream of device 8"]


def test_without_torchs_cuda_it_says_so(program):
    assert program() == ["fastconv: this torch was built without CUDA"] * 2
