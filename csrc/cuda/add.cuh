// Residual add and the gradient of an activation: one pass over two operands, bound by memory.
//
// The axes are put in the order of the output's memory and merged where every operand allows it:
// operands of the same dense strides become one axis, read 16 bytes a thread. Slices of channels
// keep 16 bytes too, where their pixels are whole chunks apart.
#pragma once
#include "add.h"
#include "epilogue.cuh"

namespace fastconv::cuda {

constexpr int kAddThreads = 256;

struct AddOperands {
  const void *a, *b;
  void* out;
  int32_t axes;
  Axis axis[4];  // innermost first
  int64_t a_stride[4], b_stride[4], out_stride[4];
  Axis chunks;  // V at a time along axis 0
  Activation activation;
};

template <bool kGrad, class T, int N>
FASTCONV_DEVICE Chunk<T, N> combine(const Chunk<T, N>& a, const Chunk<T, N>& b,
                                    Activation activation) {
  if constexpr (kGrad) {
    return activation_grad(a, b, activation);
  } else {
    Compute<T> v[N];
#pragma unroll
    for (int e = 0; e < N; ++e) v[e] = widen(a.at[e]) + widen(b.at[e]);
    activate(v, activation);
    return narrow_chunk<T>(v);
  }
}

// A thread takes V elements along axis 0, which are next to each other where V > 1.
template <class T, int V, bool kGrad>
__global__ void __launch_bounds__(kAddThreads) add(const AddOperands __grid_constant__ c) {
  using Vector = Chunk<T, V>;
  int64_t i = int64_t(blockIdx.x) * kAddThreads + threadIdx.x;
  const int64_t first = take_remainder(i, c.chunks) * V;
  int64_t a_offset = first * c.a_stride[0], b_offset = first * c.b_stride[0];
  int64_t out_offset = first * c.out_stride[0];
#pragma unroll
  for (int axis = 1; axis < 4; ++axis) {
    if (axis >= c.axes) break;
    const int64_t at = take_remainder(i, c.axis[axis]);
    a_offset += at * c.a_stride[axis], b_offset += at * c.b_stride[axis];
    out_offset += at * c.out_stride[axis];
  }
  if (i > 0) return;  // past the last element
  const T* a = static_cast<const T*>(c.a) + a_offset;
  const T* b = static_cast<const T*>(c.b) + b_offset;
  T* out = static_cast<T*>(c.out) + out_offset;
  if (first + V > c.axis[0].size) {
#pragma unroll 1
    for (int e = 0; e < c.axis[0].size - first; ++e) {
      const Chunk<T, 1> one = {ptx::ld_global(a + e)}, other = {ptx::ld_global(b + e)};
      ptx::st_global(out + e, combine<kGrad>(one, other, c.activation).at[0]);
    }
    return;
  }
  const auto va = ptx::ld_global(reinterpret_cast<const Vector*>(a));
  const auto vb = ptx::ld_global(reinterpret_cast<const Vector*>(b));
  ptx::st_global(reinterpret_cast<Vector*>(out), combine<kGrad>(va, vb, c.activation));
}

// ---- Launches ----

// The operands with as few axes as describe them.
inline AddOperands merged_axes(const PairJob& p) {
  int order[4] = {3, 2, 1, 0}, axes = 0;
  for (int i = 1; i < 4; ++i)  // by the output's strides, the smallest first
    for (int j = i; j > 0 && p.out.stride[order[j]] < p.out.stride[order[j - 1]]; --j) {
      const int swap = order[j];
      order[j] = order[j - 1], order[j - 1] = swap;
    }
  AddOperands c = {};
  c.a = p.a.data, c.b = p.b.data, c.out = p.out.data, c.activation = p.activation;
  int64_t size[4] = {1, 1, 1, 1};
  for (int d : order) {
    if (p.out.size[d] == 1) continue;
    const int last = axes - 1;
    if (axes > 0 && p.a.stride[d] == c.a_stride[last] * size[last] &&
        p.b.stride[d] == c.b_stride[last] * size[last] &&
        p.out.stride[d] == c.out_stride[last] * size[last]) {
      size[last] *= p.out.size[d];
      continue;
    }
    size[axes] = p.out.size[d];
    c.a_stride[axes] = p.a.stride[d], c.b_stride[axes] = p.b.stride[d];
    c.out_stride[axes++] = p.out.stride[d];
  }
  c.axes = axes > 0 ? axes : 1;
  for (int i = 0; i < 4; ++i) c.axis[i] = make_axis(size[i]);
  return c;
}

inline bool whole_rows(const void* data, const int64_t stride[4], int axes, int n) {
  bool whole = stride[0] == 1 && uintptr_t(data) % 16 == 0;
  for (int i = 1; i < axes; ++i) whole = whole && stride[i] % n == 0;
  return whole;
}

template <class T, int V, bool kGrad>
Status launch_add(AddOperands& c, Stream stream) {
  static const KernelLabel label("%s_%s%s", kGrad ? "activation_grad" : "residual_add",
                                 kTypeName<T>, V > 1 ? "_x16" : "");
  const int64_t chunks = (c.axis[0].size + V - 1) / V;
  c.chunks = make_axis(chunks);
  const int64_t threads = chunks * c.axis[1].size * c.axis[2].size * c.axis[3].size;
  return launch_line(label.text, add<T, V, kGrad>, threads, kAddThreads, kAddThreads, 0, stream, c);
}

template <class T, bool kGrad>
Status launch_add(const PairJob& params, Stream stream) {
  constexpr int V = 16 / sizeof(T);
  AddOperands c = merged_axes(params);
  if (whole_rows(c.a, c.a_stride, c.axes, V) && whole_rows(c.b, c.b_stride, c.axes, V) &&
      whole_rows(c.out, c.out_stride, c.axes, V))
    return launch_add<T, V, kGrad>(c, stream);
  return launch_add<T, 1, kGrad>(c, stream);
}

}  // namespace fastconv::cuda
