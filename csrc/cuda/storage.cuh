// Storage types: what each is computed in, vectors of them, dispatch over DType; and index
// arithmetic of kernels whose sizes need not fit 32 bits.
#pragma once
#include <stdio.h>

#include "conv_params.h"
#include "ptx.cuh"

namespace fastconv::cuda {

template <class T>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
template <class T>
using Compute = typename ComputeOf<T>::type;

template <class T>
FASTCONV_DEVICE Compute<T> widen(T v) {
  return ptx::to_float(v);
}
template <>
FASTCONV_DEVICE double widen<double>(double v) {
  return v;
}
template <class T>
FASTCONV_DEVICE T narrow(Compute<T> v) {
  return ptx::from_float<T>(v);
}
template <>
FASTCONV_DEVICE double narrow<double>(double v) {
  return v;
}

// N elements in one access of at most 16 bytes; by default 16 bytes of a row of channels.
template <class T, int N = 16 / sizeof(T)>
struct alignas(N * sizeof(T)) Chunk {
  static constexpr int kSize = N;
  T at[N];
};

// n / d for 0 <= n and 0 < d, in 32 bits where both fit.
FASTCONV_DEVICE int64_t quotient(int64_t n, int64_t d) {
  return (n | d) >> 32 == 0 ? int64_t(uint32_t(n) / uint32_t(d)) : n / d;
}
FASTCONV_DEVICE int32_t quotient(int32_t n, int32_t d) {
  return int32_t(uint32_t(n) / uint32_t(d));
}
template <class Int>
FASTCONV_DEVICE Int ceil_quotient(Int n, Int d) {
  return quotient(n + d - 1, d);
}

// An axis of a linear index; below 2^31 the index is divided by a multiplication.
struct Axis {
  int64_t size;
  Divisor by;
};
inline Axis make_axis(int64_t size) {
  const int64_t most = int64_t(1) << 31;
  return {size, make_divisor(size < 1 ? 1 : size < most ? size : most)};
}
// Divides n by the axis' size and returns the remainder.
FASTCONV_DEVICE int64_t take_remainder(int64_t& n, const Axis& axis) {
  if (n >> 31 == 0) {
    const uint32_t whole = uint32_t(n);
    const uint32_t q = ptx::mul_hi(2 * whole, axis.by.factor) >> axis.by.shift;
    n = q;
    return whole - q * axis.by.d;
  }
  const int64_t q = n / axis.size, rest = n - q * axis.size;
  n = q;
  return rest;
}
FASTCONV_DEVICE int32_t take_remainder(int32_t& n, const Axis& axis) {
  const uint32_t whole = uint32_t(n);
  const uint32_t q = ptx::mul_hi(2 * whole, axis.by.factor) >> axis.by.shift;
  n = int32_t(q);
  return int32_t(whole - q * axis.by.d);
}

template <class T>
FASTCONV_DEVICE const T* element(const View& v, int64_t a, int64_t b, int64_t c, int64_t d) {
  return static_cast<const T*>(v.data) + a * v.stride[0] + b * v.stride[1] + c * v.stride[2] +
         d * v.stride[3];
}

// Stores N values next to each other in accesses of at most 16 bytes.
template <class T, int N>
FASTCONV_DEVICE void store_all(T* to, const T (&v)[N]) {
  constexpr int kEach = N * sizeof(T) <= 16 ? N : int(16 / sizeof(T));
#pragma unroll
  for (int i = 0; i < N; i += kEach) {
    Chunk<T, kEach> chunk;
#pragma unroll
    for (int e = 0; e < kEach; ++e) chunk.at[e] = v[i + e];
    ptx::st_global(reinterpret_cast<Chunk<T, kEach>*>(to + i), chunk);
  }
}

// ---- The host's side of a launch ----

// Whether the channels of a pixel are `n` elements of `bytes` at a time, each lot aligned.
inline bool whole_chunks(const View& v, int n, int bytes) {
  const uintptr_t alignment = n * bytes < 16 ? n * bytes : 16;
  bool whole = v.stride[1] == 1 && v.size[1] % n == 0 && uintptr_t(v.data) % alignment == 0;
  for (int i = 0; i < 4; ++i) whole = whole && (i == 1 || v.size[i] == 1 || v.stride[i] % n == 0);
  return whole;
}

template <class T>
constexpr const char* kTypeName = "f32";
template <>
inline constexpr const char* kTypeName<double> = "f64";
template <>
inline constexpr const char* kTypeName<half> = "f16";
template <>
inline constexpr const char* kTypeName<bf16> = "bf16";

// A kernel's name with its variant, printed once: static const KernelLabel label("...", ...).
struct KernelLabel {
  char text[64];
  template <class... P>
  explicit KernelLabel(const char* format, P... parts) {
    snprintf(text, sizeof text, format, parts...);
  }
};

// f(T{}) with T the storage type of `dtype`.
template <class F>
Status for_dtype(DType dtype, F f) {
  switch (dtype) {
    case DType::f32: return f(float{});
    case DType::f64: return f(double{});
    case DType::bf16: return f(bf16{});
    default: return f(half{});
  }
}

// Blocks for `count` things, `each` of them a block; launch_line refuses what no grid can hold.
template <class... P>
Status launch_line(const char* name, void (*kernel)(P...), int64_t count, int each, int threads,
                   int shared_bytes, Stream stream, typename Same<P>::type... args) {
  const int64_t blocks = (count + each - 1) / each;
  if (blocks == 0) return {name, nullptr};
  if (blocks > INT32_MAX) return {name, "more blocks than a grid can have"};
  return launch(name, kernel, dim3(unsigned(blocks)), threads, shared_bytes, stream, args...);
}

}  // namespace fastconv::cuda
