// One wrapper per instruction, named as in NVIDIA's PTX ISA manual
// (docs.nvidia.com/cuda/parallel-thread-execution). For the emulator the same functions are in
// tests/emulator/emulator_ptx.h.
//
// Shared memory is addressed by 32-bit addresses, made by shared_address(). ldmatrix, mma, shfl,
// vote and syncwarp are executed by all threads of a warp together.
#pragma once
#include "dialect.cuh"

#ifndef __CUDACC__
#include "emulator_ptx.h"
#else

namespace fastconv::cuda::ptx {

// ---- Conversions: to nearest even ----

FASTCONV_DEVICE float to_float(float v) { return v; }
FASTCONV_DEVICE float to_float(half v) {
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v.bits));
  return f;
}
FASTCONV_DEVICE float to_float(bf16 v) { return __uint_as_float(uint32_t(v.bits) << 16); }

template <class T>
FASTCONV_DEVICE T from_float(float v);
template <>
FASTCONV_DEVICE float from_float<float>(float v) {
  return v;
}
template <>
FASTCONV_DEVICE half from_float<half>(float v) {
  half h;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h.bits) : "f"(v));
  return h;
}
template <>
FASTCONV_DEVICE bf16 from_float<bf16>(float v) {
  bf16 h;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h.bits) : "f"(v));
  return h;
}

// The bits of v rounded to tf32 (10 bits of mantissa), ties away from zero.
FASTCONV_DEVICE uint32_t cvt_rna_tf32(float v) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(v));
  return bits;
}

FASTCONV_DEVICE uint32_t float_bits(float v) { return __float_as_uint(v); }
FASTCONV_DEVICE float bits_float(uint32_t v) { return __uint_as_float(v); }
// The high 32 bits of a product.
FASTCONV_DEVICE uint32_t mul_hi(uint32_t a, uint32_t b) { return __umulhi(a, b); }

// Hides how v was computed, or the compiler may compute it again in a loop to free a register.
template <class V>
FASTCONV_DEVICE void keep(V& v) {
  static_assert(sizeof(V) == 4 || sizeof(V) == 8);
  if constexpr (sizeof(V) == 4)
    asm volatile("" : "+r"(v));
  else
    asm volatile("" : "+l"(v));
}

// ---- Loads and stores of 2, 4, 8 or 16 aligned bytes ----

FASTCONV_DEVICE uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

template <class T>
FASTCONV_DEVICE T ld_shared(uint32_t address) {
  T value;
  if constexpr (sizeof(T) == 2) {
    uint16_t v;
    asm volatile("ld.shared.u16 %0, [%1];" : "=h"(v) : "r"(address));
    memcpy(&value, &v, 2);
  } else if constexpr (sizeof(T) == 4) {
    uint32_t v;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(address));
    memcpy(&value, &v, 4);
  } else if constexpr (sizeof(T) == 8) {
    uint2 v;
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(address));
    memcpy(&value, &v, 8);
  } else {
    static_assert(sizeof(T) == 16);
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(address));
    memcpy(&value, &v, 16);
  }
  return value;
}

template <class T>
FASTCONV_DEVICE void st_shared(uint32_t address, T value) {
  if constexpr (sizeof(T) == 2) {
    uint16_t v;
    memcpy(&v, &value, 2);
    asm volatile("st.shared.u16 [%0], %1;" ::"r"(address), "h"(v) : "memory");
  } else if constexpr (sizeof(T) == 4) {
    uint32_t v;
    memcpy(&v, &value, 4);
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(v) : "memory");
  } else if constexpr (sizeof(T) == 8) {
    uint2 v;
    memcpy(&v, &value, 8);
    asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(address), "r"(v.x), "r"(v.y) : "memory");
  } else {
    static_assert(sizeof(T) == 16);
    uint4 v;
    memcpy(&v, &value, 16);
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(v.x), "r"(v.y),
                 "r"(v.z), "r"(v.w)
                 : "memory");
  }
}

// Global memory: ordinary accesses, which the emulator checks for range and alignment.
template <class T>
FASTCONV_DEVICE T ld_global(const T* p) {
  return *p;
}
template <class T>
FASTCONV_DEVICE void st_global(T* p, T value) {
  *p = value;
}

// ---- Asynchronous copies, global to shared ----

// Copies `kBytes` (4, 8 or 16), or writes that many zeros and reads nothing where !valid.
template <int kBytes>
FASTCONV_DEVICE void cp_async(uint32_t to, const void* from, bool valid = true) {
  const size_t source = __cvta_generic_to_global(from);
  const int bytes = valid ? kBytes : 0;
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(source), "r"(bytes)
                 : "memory");
  } else {
    static_assert(kBytes == 4 || kBytes == 8);
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(source),
                 "n"(kBytes), "r"(bytes)
                 : "memory");
  }
}
FASTCONV_DEVICE void cp_async_commit_group() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Waits until at most `kPending` of this thread's newest groups have not landed.
template <int kPending>
FASTCONV_DEVICE void cp_async_wait_group() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// ---- Warp matrices ----

// Four 8 x 8 matrices of 16-bit elements: lane 8 i + j gives the address of row j of matrix i;
// lane l receives elements (l / 4, 2 (l % 4)) and its neighbour of each matrix.
FASTCONV_DEVICE void ldmatrix_x4(uint32_t (&d)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "r"(row));
}
// The same, each matrix transposed.
FASTCONV_DEVICE void ldmatrix_x4_trans(uint32_t (&d)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "r"(row));
}

// d += a b for a 16 x 16, b 16 x 8, d 16 x 8; fragments as the manual's figures for m16n8k16.
template <class T>
FASTCONV_DEVICE void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t* b);
template <>
FASTCONV_DEVICE void mma_m16n8k16<half>(float (&d)[4], const uint32_t (&a)[4], const uint32_t* b) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
FASTCONV_DEVICE void mma_m16n8k16<bf16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t* b) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// d += a b for a 16 x 8, b 8 x 8, d 16 x 8, of float32 bits whose low 13 are ignored.
FASTCONV_DEVICE void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t* b) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// ---- Warp shuffles and votes, over the lanes of `mask` ----

constexpr uint32_t kFullWarp = 0xffffffffu;

template <class T>
FASTCONV_DEVICE T shfl_idx(T value, int lane, uint32_t mask = kFullWarp) {
  return __shfl_sync(mask, value, lane);
}
template <class T>
FASTCONV_DEVICE T shfl_up(T value, int delta, uint32_t mask = kFullWarp) {
  return __shfl_up_sync(mask, value, delta);
}
template <class T>
FASTCONV_DEVICE T shfl_down(T value, int delta, uint32_t mask = kFullWarp) {
  return __shfl_down_sync(mask, value, delta);
}
template <class T>
FASTCONV_DEVICE T shfl_bfly(T value, int lane_mask, uint32_t mask = kFullWarp) {
  return __shfl_xor_sync(mask, value, lane_mask);
}
FASTCONV_DEVICE uint32_t vote_ballot(bool v, uint32_t mask = kFullWarp) {
  return __ballot_sync(mask, v);
}
FASTCONV_DEVICE bool vote_any(bool v, uint32_t mask = kFullWarp) { return __any_sync(mask, v); }
FASTCONV_DEVICE bool vote_all(bool v, uint32_t mask = kFullWarp) { return __all_sync(mask, v); }
FASTCONV_DEVICE void syncwarp(uint32_t mask = kFullWarp) { __syncwarp(mask); }

}  // namespace fastconv::cuda::ptx
#endif
