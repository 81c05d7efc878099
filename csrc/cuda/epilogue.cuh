// The foot of every forward kernel: activation(acc + bias + residual) in float (double for double),
// for the elements of one access: 16 bytes a thread where the layout allows, one otherwise.
#pragma once
#include "storage.cuh"

namespace fastconv::cuda {

// ReLU as torch's: v <= 0 ? 0 : v, so that NaN stays NaN.
template <class V>
FASTCONV_DEVICE V activate(V v, Activation activation) {
  if (activation == Activation::relu) return v <= 0 ? V(0) : v;
  if (activation == Activation::sigmoid) return V(1) / (V(1) + exp(-v));
  return v;
}

// Of several values, which share the branch.
template <class V, int N>
FASTCONV_DEVICE void activate(V (&v)[N], Activation activation) {
  if (activation == Activation::relu) {
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] = activate(v[i], Activation::relu);
  } else if (activation == Activation::sigmoid) {
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] = activate(v[i], Activation::sigmoid);
  }
}

// Gradient of the activation at its output y: relu (y <= 0 ? 0 : dy), sigmoid dy * y * (1 - y).
template <class V>
FASTCONV_DEVICE V activation_grad(V dy, V y, Activation activation) {
  if (activation == Activation::relu) return y <= 0 ? V(0) : dy;
  if (activation == Activation::sigmoid) return dy * y * (V(1) - y);
  return dy;
}

// Of several values, which share the branch.
template <class T, int N>
FASTCONV_DEVICE Chunk<T, N> activation_grad(const Chunk<T, N>& dy, const Chunk<T, N>& y,
                                            Activation activation) {
  Chunk<T, N> dz = dy;
  if (activation == Activation::relu) {
#pragma unroll
    for (int i = 0; i < N; ++i)
      dz.at[i] = narrow<T>(activation_grad(widen(dy.at[i]), widen(y.at[i]), Activation::relu));
  } else if (activation == Activation::sigmoid) {
#pragma unroll
    for (int i = 0; i < N; ++i)
      dz.at[i] = narrow<T>(activation_grad(widen(dy.at[i]), widen(y.at[i]), Activation::sigmoid));
  }
  return dz;
}

// What p points at, or zeros where it is null.
template <class T, int N = 16 / sizeof(T)>
FASTCONV_DEVICE Chunk<T, N> chunk_or_zero(const T* p) {
  Chunk<T, N> chunk = {};
  if (p != nullptr) chunk = ptx::ld_global(reinterpret_cast<const Chunk<T, N>*>(p));
  return chunk;
}

template <class T, int N>
FASTCONV_DEVICE Chunk<T, N> narrow_chunk(const Compute<T> (&v)[N]) {
  Chunk<T, N> out;
#pragma unroll
  for (int i = 0; i < N; ++i) out.at[i] = narrow<T>(v[i]);
  return out;
}
template <class T, int N>
FASTCONV_DEVICE void store_chunk(const Compute<T> (&v)[N], T* y) {
  ptx::st_global(reinterpret_cast<Chunk<T, N>*>(y), narrow_chunk<T>(v));
}

// Stores activation(acc + bias + residual).
template <class T, int N>
FASTCONV_DEVICE void finish_chunk(const Compute<T> (&acc)[N], const Chunk<T, N>& bias,
                                  const Chunk<T, N>& residual, Activation activation, T* y) {
  Compute<T> v[N];
#pragma unroll
  for (int i = 0; i < N; ++i) v[i] = acc[i] + widen(bias.at[i]) + widen(residual.at[i]);
  activate(v, activation);
  store_chunk(v, y);
}

}  // namespace fastconv::cuda
