// Small kernels, right and with one planted fault each, for tests/test_emulator.py. A fault is an
// argument: 0 is the correct kernel.
#include "../../csrc/cuda/ptx.cuh"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace fastconv::cuda {
namespace {

struct Toy {
  const void* input;
  void* output;
  int32_t count;  // what it means is the kernel's business
  int32_t fault;
};

template <class Kernel>
const char* run(const char* name, Kernel* kernel, const Toy& toy, int threads, int shared_bytes,
                int blocks = 1) {
  return launch(name, kernel, blocks, threads, shared_bytes, nullptr, toy).error;
}

// output[i] = input[threads - 1 - i], 4 floats each, through shared memory by cp.async.
__global__ void reverse(const Toy __grid_constant__ toy) {
  const int t = threadIdx.x, n = blockDim.x;
  const uint32_t shared = ptx::shared_address(shared_memory());
  const float4* input = static_cast<const float4*>(toy.input);
  ptx::cp_async<16>(shared + 16 * t, input + t);
  ptx::cp_async_commit_group();
  if (toy.fault == 1)
    ptx::cp_async_wait_group<1>();
  else
    ptx::cp_async_wait_group<0>();
  if (toy.fault != 2) __syncthreads();
  ptx::st_global(static_cast<float4*>(toy.output) + t,
                 ptx::ld_shared<float4>(shared + 16 * (n - 1 - t)));
}

// output[i] = sum of input[0 .. threads), by rounds through the same shared words: fault 1 lacks
// the barrier that ends a round, fault 2 lets threads exit before it, fault 3 puts it on two lines.
__global__ void rounds(const Toy __grid_constant__ toy) {
  const int t = threadIdx.x, n = blockDim.x;
  float* shared = shared_memory<float>();
  float value = static_cast<const float*>(toy.input)[t];
  for (int step = 1; step < n; step *= 2) {
    shared[t] = value;
    if (toy.fault == 2 && t % 64 >= 32) return;
    if (toy.fault == 3 && t < 32) {
      __syncthreads();
    } else {
      __syncthreads();
    }
    value += shared[t ^ step];
    if (toy.fault != 1) __syncthreads();
  }
  static_cast<float*>(toy.output)[t] = value;
}

// output[i] = input[i] * 2 for i < count; faults: one element too many by wrapper or plainly, one
// before the first, a misaligned vector, a write instead of a read.
__global__ void twice(const Toy __grid_constant__ toy) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  const float* input = static_cast<const float*>(toy.input);
  float* output = static_cast<float*>(toy.output);
  const int last = toy.count - 1;
  if (i > last) return;
  float v = ptx::ld_global(input + i);
  if (i == last) {
    if (toy.fault == 1) v = ptx::ld_global(input + i + 1);
    if (toy.fault == 2) v = input[i + 1];
    if (toy.fault == 3) v = input[i - toy.count];
    if (toy.fault == 4) v = ptx::ld_global(reinterpret_cast<const float2*>(input + 1)).x;
    if (toy.fault == 5) ptx::st_global(output + i + 1, v);
    if (toy.fault == 6) output[i + 1] = v;
  }
  ptx::st_global(output + i, v * 2);
}

// Each warp transposes its 32 floats' two halves in a slab of shared memory, twice: fault 1 lacks
// the syncwarp before the slab is written again, fault 2 calls a shuffle in a branch, faults 3 and
// 4 write past the end of shared memory, by wrapper and plainly.
__global__ void slab(const Toy __grid_constant__ toy) {
  const int t = threadIdx.x, lane = t % 32;
  const uint32_t shared = ptx::shared_address(shared_memory()) + t / 32 * 128;
  float v = static_cast<const float*>(toy.input)[t];
  for (int pass = 0; pass < 2; ++pass) {
    ptx::st_shared(shared + 4 * lane, v + pass);
    ptx::syncwarp();
    v = ptx::ld_shared<float>(shared + 4 * (lane ^ 16));
    if (toy.fault != 1) ptx::syncwarp();
  }
  if (toy.fault == 2) {
    if (lane < 16)
      v = ptx::shfl_bfly(v, 1);
    else
      v += ptx::vote_any(v > 0) ? 1 : 0;
  }
  if (toy.fault == 3) ptx::st_shared(shared + 128, v);
  if (toy.fault == 4) shared_memory<float>()[t + 1] = v;
  static_cast<float*>(toy.output)[t] = v;
}

// One warp: output (16 x 8 floats) = a (16 x 16 halves) times b transposed (8 x 16 halves), both
// in shared rows of 32 bytes; b's tile is padded to 16 rows. A row's two chunks are swapped by bit
// 2 of the row, or the eight rows of a matrix would share banks: fault 1 forgets that on reading,
// fault 2 on both sides.
__global__ void product(const Toy __grid_constant__ toy) {
  const int lane = threadIdx.x, row = lane % 16, chunk = lane / 16;
  const uint32_t a = ptx::shared_address(shared_memory()), b = a + 512;
  const half* input = static_cast<const half*>(toy.input);
  auto place = [&](int r, int c, bool swizzle) {
    return 32 * r + 16 * (c ^ (swizzle ? r >> 2 & 1 : 0));
  };
  const uint32_t to = place(row, chunk, toy.fault != 2);
  ptx::cp_async<16>(a + to, input + 16 * row + 8 * chunk);
  ptx::cp_async<16>(b + to, input + 256 + 16 * row + 8 * chunk, row < 8);
  ptx::cp_async_commit_group();
  ptx::cp_async_wait_group<0>();
  ptx::syncwarp();
  uint32_t fa[4], fb[4];
  ptx::ldmatrix_x4(fa, a + place(row, chunk, toy.fault == 0));
  ptx::ldmatrix_x4(fb, b + place(row, chunk, toy.fault == 0));
  const uint32_t column[2] = {fb[0], fb[2]};
  float d[4] = {};
  ptx::mma_m16n8k16<half>(d, fa, column);
  float* output = static_cast<float*>(toy.output) + lane / 4 * 8 + lane % 4 * 2;
  ptx::st_global(reinterpret_cast<float2*>(output), make_float2(d[0], d[1]));
  ptx::st_global(reinterpret_cast<float2*>(output + 64), make_float2(d[2], d[3]));
}

// One warp: output (16 x 8) = a (16 x count) times b transposed (8 x count), float32 in global
// memory. fault 0: 3xTF32, moved to float32 registers each 32 k; 1: never moved; 2: one tf32
// product, rounded; 3: the same with the rounding forgotten.
__global__ void product_float(const Toy __grid_constant__ toy) {
  const int g = threadIdx.x / 4, t = threadIdx.x % 4, n = toy.count;
  const float* a = static_cast<const float*>(toy.input);
  const float* b = a + 16 * n;
  float total[4] = {}, d[4] = {};
  for (int k = 0; k < n; k += 8) {
    const float va[4] = {a[g * n + k + t], a[(g + 8) * n + k + t], a[g * n + k + t + 4],
                         a[(g + 8) * n + k + t + 4]};
    const float vb[2] = {b[g * n + k + t], b[g * n + k + t + 4]};
    uint32_t a_big[4], a_small[4], b_big[2], b_small[2];
    auto split = [&](float v, uint32_t& big, uint32_t& small) {
      big = toy.fault == 2 ? ptx::cvt_rna_tf32(v) : ptx::float_bits(v);
      small = ptx::float_bits(v - ptx::bits_float(big & ~0x1fffu));
    };
    for (int i = 0; i < 4; ++i) split(va[i], a_big[i], a_small[i]);
    for (int i = 0; i < 2; ++i) split(vb[i], b_big[i], b_small[i]);
    if (toy.fault < 2) {
      ptx::mma_m16n8k8_tf32(d, a_small, b_big);
      ptx::mma_m16n8k8_tf32(d, a_big, b_small);
    }
    ptx::mma_m16n8k8_tf32(d, a_big, b_big);
    if (toy.fault == 1 || (k + 8) % 32 != 0) continue;
    for (int i = 0; i < 4; ++i) {
      total[i] += d[i];
      d[i] = 0;
    }
  }
  float* output = static_cast<float*>(toy.output);
  for (int i = 0; i < 4; ++i) output[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = total[i] + d[i];
}

}  // namespace

EXPORT const char* toy_reverse(const Toy* toy) {
  return run("reverse", reverse, *toy, toy->count, 16 * toy->count);
}
EXPORT const char* toy_rounds(const Toy* toy) {
  return run("rounds", rounds, *toy, toy->count, 4 * toy->count);
}
EXPORT const char* toy_twice(const Toy* toy) {
  return run("twice", twice, *toy, 64, 0, (toy->count + 63) / 64);
}
EXPORT const char* toy_slab(const Toy* toy) {
  return run("slab", slab, *toy, toy->count, 4 * toy->count);
}
EXPORT const char* toy_product(const Toy* toy) { return run("product", product, *toy, 32, 1024); }
EXPORT const char* toy_product_float(const Toy* toy) {
  return run("product_float", product_float, *toy, 32, 0);
}
// A launch with `count` threads and `fault` bytes of shared memory, of a kernel that does nothing.
__global__ void idle(const Toy __grid_constant__) {}
EXPORT const char* toy_idle(const Toy* toy) {
  return run("idle", idle, *toy, toy->count, toy->fault);
}

}  // namespace fastconv::cuda
