// The part of CUDA that kernels here are written in, so that one source runs on a GPU (nvcc) and
// in the tests' emulator (g++, tests/emulator/): shared memory comes from shared_memory(), a launch
// is launch(), storage types are ours, and every special instruction is a wrapper in ptx.cuh.
//
// Beyond these, kernels use threadIdx, blockIdx, blockDim, gridDim, __syncthreads(), uint4, float4
// and their kin. A POD argument is written `const Params __grid_constant__ params`.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "status.h"

#ifdef __CUDACC__
#include <cuda_runtime.h>
#else
#include "emulator.h"
#endif

#define FASTCONV_DEVICE __device__ __forceinline__
#define FASTCONV_BOTH __host__ __device__ __forceinline__

namespace fastconv::cuda {

// 16-bit storage; arithmetic is in float. Conversions are in ptx.cuh.
struct half {
  uint16_t bits;
};
struct bf16 {
  uint16_t bits;
};

// The dynamic shared memory of the block, aligned to 1024 bytes on a GPU.
template <class T = char>
FASTCONV_DEVICE T* shared_memory() {
#ifdef __CUDACC__
  extern __shared__ __align__(1024) char fastconv_shared[];
  return reinterpret_cast<T*>(fastconv_shared);
#else
  return static_cast<T*>(emulator::shared_memory());
#endif
}

template <class T>
struct Same {
  using type = T;
};

// Shared memory that a block may have on every GPU of compute capability 8.0 and more.
constexpr int kLeastShared = 99 << 10;

// The one way to start a kernel; `name` is what an error message calls it.
template <class... P>
Status launch(const char* name, void (*kernel)(P...), dim3 grid, dim3 block, int shared_bytes,
              Stream stream, typename Same<P>::type... args) {
  const void* arguments[] = {nullptr, static_cast<const void*>(&args)...};
#ifdef __CUDACC__
  cudaError_t error = cudaSuccess;
  // NOTE this is the kernel's limit, not the launch's: a thread that launches it with less must not
  // lower it between another's two calls. Kernels of no fixed size stay below 99 KB.
  if (shared_bytes > (48 << 10))
    error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                 cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 shared_bytes > kLeastShared ? shared_bytes : kLeastShared);
  if (error == cudaSuccess)
    error = cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, block,
                             const_cast<void**>(arguments + 1), shared_bytes,
                             static_cast<cudaStream_t>(stream));
  if (error == cudaSuccess) return {name, nullptr};
  cudaGetLastError();  // or the next launch would report it
  return {name, cudaGetErrorString(error)};
#else
  (void)stream;
  auto body = [&] { kernel(args...); };
  const emulator::CompiledKernel compiled = {reinterpret_cast<const void*>(kernel), arguments + 1};
  return {name, emulator::launch(name, compiled, grid, block, shared_bytes, body)};
#endif
}

}  // namespace fastconv::cuda
