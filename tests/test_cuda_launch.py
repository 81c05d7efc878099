"""launch() of csrc/cuda/dialect.cuh against a CUDA runtime of its own: nothing else on a machine
without a GPU runs it, as the emulator has a launch of its own.
"""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Like CUDA's, a kernel's limit is 48 KB until it is set and lasts; no block has more than 227 KB.
RUNTIME = """
#pragma once
#define __device__
#define __host__
#define __global__
#define __forceinline__ inline
#define __shared__
#define __align__(n) __attribute__((aligned(n)))
struct dim3 { unsigned x, y = 1, z = 1; dim3(unsigned x) : x(x) {} };
enum cudaError_t { cudaSuccess, cudaErrorInvalidValue };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
typedef void* cudaStream_t;
inline int limit = 48 << 10, launches = 0, left_behind = 0;
inline void (*meanwhile)() = nullptr;  // what another thread does after the next call
inline cudaError_t result(bool good) {
  left_behind += !good;
  return good ? cudaSuccess : cudaErrorInvalidValue;
}
inline cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int bytes) {
  if (bytes > 227 << 10) return result(false);
  limit = bytes;
  if (auto other = meanwhile) meanwhile = nullptr, other();
  return cudaSuccess;
}
inline cudaError_t cudaLaunchKernel(const void* f, dim3, dim3, void** args, int bytes,
                                    void*) {
  if (bytes > limit) return result(false);
  ++launches;
  reinterpret_cast<void (*)(int)>(const_cast<void*>(f))(*static_cast<int*>(args[0]));
  return cudaSuccess;
}
inline cudaError_t cudaGetLastError() { left_behind = 0; return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "invalid argument"; }
"""
PROGRAM = """
#define __CUDACC__
#include "csrc/cuda/dialect.cuh"
#include <cstdio>
#include <cstdlib>
using namespace fastconv::cuda;
int seen = 0;
void kernel(int value) { seen = value; }
void show(int bytes) {
  const Status s = launch("name", kernel, dim3(1), dim3(32), bytes, nullptr, 7);
  std::printf("%s %s, %d launched, %d left\\n", s.kernel, s.error ? s.error : "ran", launches,
              left_behind);
}
int main(int count, char** sizes) {
  if (count > 2) meanwhile = [] { show(60 << 10); };
  show(atoi(sizes[1]) << 10);
}
"""


@pytest.fixture(scope="module")
def show(tmp_path_factory):
    """What a launch with so many KB of shared memory says."""
    folder = tmp_path_factory.mktemp("launch")
    (folder / "cuda_runtime.h").write_text(RUNTIME)
    (folder / "program.cpp").write_text(PROGRAM)
    cxx = [os.environ.get("CXX", "g++"), "-std=c++17", "-w", f"-I{ROOT}", f"-I{folder}"]
    subprocess.run([*cxx, folder / "program.cpp", "-o", folder / "program"], check=True)

    def run(*arguments):
        command = [folder / "program", *map(str, arguments)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return done.stdout.splitlines()

    return run


@pytest.mark.parametrize("size", [0, 48, 49, 99, 100, 227])
def test_what_a_block_can_have_is_asked_for(show, size):
    assert show(size) == ["name ran, 1 launched, 0 left"]


def test_a_launch_that_fails_leaves_no_error_behind(show):
    assert show(228) == ["name invalid argument, 0 launched, 0 left"]


def test_another_thread_takes_no_shared_memory_away(show):
    assert show(90, "with another of 60") == [
        "name ran, 1 launched, 0 left",
        "name ran, 2 launched, 0 left",
    ]
