// What csrc/cuda/dialect.cuh includes where there is no nvcc: CUDA's keywords and vector types, and
// the engine that runs a kernel on host memory, one fiber per thread (see engine.cpp).
#pragma once
#include <stdint.h>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
// A kernel's POD is passed by reference: one copy for all threads, as on a GPU.
#define __grid_constant__ &

// clang-format off
struct uint3 { unsigned x, y, z; };
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) double2 { double x, y; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }
// clang-format on

namespace emulator {

// Read by kernels; set at every switch of fibers.
extern uint3 thread_index, block_index;
extern dim3 block_size, grid_size;

// Runs body(context) as every thread of every block. Null, or what went wrong, in words.
const char* launch(const char* name, dim3 grid, dim3 block, int shared_bytes, void (*body)(void*),
                   void* context);
// A kernel as g++ compiled it, by which its PTX is found, and pointers to its arguments.
struct CompiledKernel {
  const void* address;
  const void* const* arguments;
};
// The same, executed from PTX where that was chosen (ptx.py); kNotPtx: it was not.
inline constexpr char kNotPtx[] = "";
const char* launch_ptx(const char* name, const CompiledKernel& kernel, dim3 grid, dim3 block,
                       int shared_bytes);
template <class Body>
const char* launch(const char* name, const CompiledKernel& kernel, dim3 grid, dim3 block,
                   int shared_bytes, Body& body) {
  const char* error = launch_ptx(name, kernel, grid, block, shared_bytes);
  if (error != kNotPtx) return error;
  return launch(
      name, grid, block, shared_bytes, [](void* b) { (*static_cast<Body*>(b))(); }, &body);
}

void* shared_memory();
void barrier(const char* file, int line);

// Stops the launch with this report and the name of kernel, block and thread.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// An operation of a warp: when all lanes of `mask` have arrived it runs once over their arguments.
struct WarpOp {
  const char* name;
  void (*run)(void* const* args, uint32_t mask);  // args[lane]; may be null
};
void collective(const WarpOp& op, uint32_t mask, void* args);

// Each checks range and alignment and fails; the shared one returns where the bytes are.
char* shared_bytes_at(uint32_t address, int bytes, const char* what);
void check_global(const void* p, int bytes, bool write, const char* what);
uint32_t shared_address(const void* p);
// For the counter of bank conflicts: this thread's next access to shared memory.
void note_shared_access(uint32_t address, int bytes);

void cp_async(uint32_t to, const void* from, int bytes, bool valid);
void cp_async_commit_group();
void cp_async_wait_group(int pending);

}  // namespace emulator

#define threadIdx (::emulator::thread_index)
#define blockIdx (::emulator::block_index)
#define blockDim (::emulator::block_size)
#define gridDim (::emulator::grid_size)

inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  emulator::barrier(file, line);
}
