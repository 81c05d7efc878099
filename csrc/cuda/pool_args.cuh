// What a pooling kernel is told: sizes and strides in Int, which is int32_t where every index fits,
// as kernels that should be bound by memory are bound by instructions with 64 bits.
#pragma once
#include <initializer_list>

#include "pool.h"
#include "ptx.cuh"

namespace fastconv::cuda {

template <class Int>
struct PoolWindows {  // of an axis, as PoolAxis
  Int in, out, k, stride, pad, dil;
  bool adaptive;
};
template <class Int>
struct PoolView {
  const void* data;
  Int stride[4];
};
template <class Int>
struct PoolArgs {
  PoolView<Int> x, y, index;
  PoolWindows<Int> rows, cols;
  Int N;
  bool count_include_pad;
  int64_t divisor;
};

template <class Int>
PoolArgs<Int> pool_args(const PoolJob& c) {
  auto windows = [](const PoolAxis& a) {
    return PoolWindows<Int>{Int(a.in),  Int(a.out), Int(a.k),  Int(a.stride),
                            Int(a.pad), Int(a.dil), a.adaptive};
  };
  auto of = [](const View& v) {
    return PoolView<Int>{v.data,
                         {Int(v.stride[0]), Int(v.stride[1]), Int(v.stride[2]), Int(v.stride[3])}};
  };
  return {of(c.x),           of(c.y),    of(c.index),           windows(c.p.rows),
          windows(c.p.cols), Int(c.p.N), c.p.count_include_pad, c.p.divisor};
}

// Whether int32_t holds every number of a job, a stride of an axis of one place included.
inline bool pool_fits_32_bits(const PoolJob& c) {
  constexpr int64_t kLimit = INT32_MAX - 4096;  // a block and a chunk more fit
  auto view = [](const View& v) {
    int64_t extent = 0, count = 1;
    for (int i = 0; i < 4; ++i) {
      if (v.size[i] > kLimit || v.stride[i] > kLimit || v.stride[i] < 0) return false;
      extent += v.size[i] * v.stride[i], count *= v.size[i];
      if (extent > kLimit || count > kLimit) return false;
    }
    return true;
  };
  auto axis = [](const PoolAxis& a) {
    for (const int64_t n : {a.in, a.out, a.k, a.stride, a.pad, a.dil})
      if (n > kLimit / 8) return false;
    return (a.adaptive ? (a.in + 1) * (a.out + 1) : a.dil * (a.k + 1)) <= kLimit / 8;
  };
  return view(c.x) && view(c.y) && (c.index_type == IndexType::none || view(c.index)) &&
         axis(c.p.rows) && axis(c.p.cols) && c.p.rows.k * c.p.cols.k <= kLimit;
}

// f(int32_t{}) or f(int64_t{}), and what the latter is called.
template <class F>
Status for_pool_int(const PoolJob& c, F f) {
  return pool_fits_32_bits(c) ? f(int32_t{}) : f(int64_t{});
}
template <class Int>
constexpr const char* kWideName = sizeof(Int) == 8 ? "wide_" : "";

// NOTE in 32 bits offsets wrap, so that one may be outside on the way to a place inside.
template <class T>
FASTCONV_DEVICE const T* element(const PoolView<int64_t>& v, int64_t a, int64_t b, int64_t c,
                                 int64_t d) {
  return static_cast<const T*>(v.data) + a * v.stride[0] + b * v.stride[1] + c * v.stride[2] +
         d * v.stride[3];
}
FASTCONV_DEVICE uint32_t offset_of(const PoolView<int32_t>& v, uint32_t a, uint32_t b, uint32_t c,
                                   uint32_t d) {
  return a * uint32_t(v.stride[0]) + b * uint32_t(v.stride[1]) + c * uint32_t(v.stride[2]) +
         d * uint32_t(v.stride[3]);
}
template <class T>
FASTCONV_DEVICE const T* element(const PoolView<int32_t>& v, int32_t a, int32_t b, int32_t c,
                                 int32_t d) {
  return static_cast<const T*>(v.data) + offset_of(v, a, b, c, d);
}

}  // namespace fastconv::cuda
