// Storage types: what each is computed in, vectors of them, dispatch over DType; and index
// arithmetic of kernels whose sizes need not fit 32 bits.
#pragma once
#include <stdio.h>

#include "../problem.h"
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

// Divides n by d and returns the remainder, of 0 <= n and 0 < d; in 32 bits where both fit.
FASTCONV_DEVICE int64_t take_remainder(int64_t& n, int64_t d) {
  if (((n | d) >> 32) == 0) {
    const uint32_t quotient = uint32_t(n) / uint32_t(d);
    const uint32_t rest = uint32_t(n) - quotient * uint32_t(d);
    n = quotient;
    return rest;
  }
  const int64_t quotient = n / d, rest = n - quotient * d;
  n = quotient;
  return rest;
}

// ---- The host's side of a launch ----

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
