// The foot of every forward kernel: activation(acc + bias + residual), for vectors and scalars.
// Included once per ISA file after simd.h.
#include "../problem.h"

namespace fastconv::FASTCONV_NS {

template <class T>
FASTCONV_INLINE Vec<T> sigmoid(Vec<T> v) {
  if constexpr (sizeof(T) == 4) {
    return 1.f / (1.f + exp_approx(-v));
  } else {
    for (int i = 0; i < kW<T>; ++i) v[i] = 1.0 / (1.0 + __builtin_exp(-v[i]));
    return v;
  }
}

// ReLU as torch's: v <= 0 ? 0 : v, so that NaN stays NaN.
template <class T>
FASTCONV_INLINE Vec<T> activate(Vec<T> v, Activation activation) {
  if (activation == Activation::relu) return select<T>(v <= 0, Vec<T>{}, v);
  if (activation == Activation::sigmoid) return sigmoid<T>(v);
  return v;
}

template <class T>
FASTCONV_INLINE T activate_scalar(T v, Activation activation) {
  if (activation == Activation::relu) return v <= 0 ? T(0) : v;
  if (activation == Activation::sigmoid) return sigmoid<T>(broadcast<T>(v))[0];
  return v;
}

// Gradient of the activation at its output y: relu (y <= 0 ? 0 : dy), sigmoid dy * y * (1 - y).
template <class T>
FASTCONV_INLINE Vec<T> activation_grad(Vec<T> dy, Vec<T> y, Activation activation) {
  if (activation == Activation::relu) return select<T>(y <= 0, Vec<T>{}, dy);
  if (activation == Activation::sigmoid) return dy * y * (1 - y);
  return dy;
}

}  // namespace fastconv::FASTCONV_NS
