// The foot of every forward kernel: activation(acc + bias + residual) in float, 16 bytes a thread.
#pragma once
#include "../problem.h"
#include "ptx.cuh"

namespace fastconv::cuda {

// 16 bytes of a row of channels.
template <class T>
struct alignas(16) Chunk {
  static constexpr int kSize = 16 / sizeof(T);
  T at[kSize];
};

// ReLU as torch's: v <= 0 ? 0 : v, so that NaN stays NaN.
FASTCONV_DEVICE float activate(float v, Activation activation) {
  if (activation == Activation::relu) return v <= 0 ? 0.f : v;
  if (activation == Activation::sigmoid) return 1.f / (1.f + expf(-v));
  return v;
}

// Finishes and stores the outputs at y; bias and residual point at the same channels, or are null.
template <class T>
FASTCONV_DEVICE void finish_chunk(float (&acc)[Chunk<T>::kSize], const T* bias, const T* residual,
                                  Activation activation, T* y) {
  constexpr int kSize = Chunk<T>::kSize;
  if (bias != nullptr) {
    const auto b = ptx::ld_global(reinterpret_cast<const Chunk<T>*>(bias));
#pragma unroll
    for (int i = 0; i < kSize; ++i) acc[i] += ptx::to_float(b.at[i]);
  }
  if (residual != nullptr) {
    const auto r = ptx::ld_global(reinterpret_cast<const Chunk<T>*>(residual));
#pragma unroll
    for (int i = 0; i < kSize; ++i) acc[i] += ptx::to_float(r.at[i]);
  }
  Chunk<T> out;
#pragma unroll
  for (int i = 0; i < kSize; ++i) out.at[i] = ptx::from_float<T>(activate(acc[i], activation));
  ptx::st_global(reinterpret_cast<Chunk<T>*>(y), out);
}

}  // namespace fastconv::cuda
