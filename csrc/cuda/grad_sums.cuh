// The second pass of a sum over pixels: adds the parts of each weight.
//
// A block is `rows` threads times neighbouring weights. A thread has every rows-th part of its
// weight, 16 loads on their way at once; lanes and warps of a weight are added in a fixed order.
#pragma once
#include "grad_sums.h"
#include "store_tile.cuh"

namespace fastconv::cuda {

constexpr int kAddPartsLog2 = 8, kAddPartsThreads = 1 << kAddPartsLog2;
constexpr int kMostRowsLog2 = kAddPartsLog2 - 3;  // eight weights lie next to each other
constexpr int kPartsAtOnce = 16;                  // loads of a thread

struct PartsOrder {
  Axis C, S, R;
  int64_t weights;
  int32_t rows_log2, columns_log2;  // of a block: threads of a weight, and weights
};

// How many threads a weight has: one while its parts are loaded at once, more where weights are so
// few that even 65536 threads would be none too many. Counted, not measured.
inline int32_t parts_rows_log2(int64_t weights, int64_t splits) {
  int32_t log2 = 0;
  while (log2 < kMostRowsLog2 && (splits > int64_t(kPartsAtOnce) << log2 ||
                                  (splits > 4 << log2 && weights << log2 < 1 << 16)))
    ++log2;
  return log2;
}

// One weight's gradient in plain float32; ends early where the sum is truly NaN.
FASTCONV_DEVICE float plain_weight_sum(const ConvParams& p, const OutputMask& mask, int k, int c,
                                       int r, int s) {
  const float* dy = static_cast<const float*>(p.at.y) + k;
  const float* y = static_cast<const float*>(mask.y) + k;
  const float* x = static_cast<const float*>(p.at.x) + k / p.K * p.C + c;
  float sum = 0;
#pragma unroll 1
  for (int m = 0; m < p.M && sum == sum; ++m) {
    const Pixel at = pixel_of(p, m);
    const int h = at.p * p.stride_h - p.pad_t + r * p.dil_h;
    const int w = at.q * p.stride_w - p.pad_l + s * p.dil_w;
    if (h < 0 || h >= p.H || w < 0 || w >= p.W) continue;
    float dz = ptx::ld_global(dy + m * p.at.y_pixel);
    if (mask.y != nullptr)
      dz = activation_grad(dz, ptx::ld_global(y + m * mask.pixel), mask.activation);
    sum += dz * ptx::ld_global(x + ((int64_t(at.n) * p.H + h) * p.W + w) * p.at.x_pixel);
  }
  return sum;
}

// The sum over a block's rows, in the threads of the first: lanes by shuffles, then warps in order.
template <class V>
FASTCONV_DEVICE V add_rows(V sum, int columns) {
  constexpr int kSize = sizeof(V), kMost = kAddPartsThreads / 32;
#pragma unroll 1
  for (int lanes = 16; lanes >= columns; lanes /= 2) sum += ptx::shfl_bfly(sum, lanes);
  const uint32_t here = ptx::shared_address(shared_memory()) + threadIdx.x * kSize;
  ptx::st_shared(here, sum);
  __syncthreads();
  const int apart = columns < 32 ? 32 : columns;
  V part[kMost] = {};
#pragma unroll
  for (int i = 1; i < kMost; ++i)
    if (int(threadIdx.x) + i * apart < kAddPartsThreads)
      part[i] = ptx::ld_shared<V>(here + i * apart * kSize);
#pragma unroll
  for (int i = 1; i < kMost; ++i) sum += part[i];
  return sum;
}

template <class T>
__global__ void __launch_bounds__(kAddPartsThreads)
    add_parts(const GradSums __grid_constant__ sums, const PartsOrder __grid_constant__ order) {
  using V = Compute<T>;
  const int columns = 1 << order.columns_log2, row = threadIdx.x >> order.columns_log2;
  const int64_t index = int64_t(blockIdx.x) * columns + (threadIdx.x & (columns - 1));
  const bool exists = index < order.weights;
  const int64_t step = order.weights << order.rows_log2;
  const V* partial = static_cast<const V*>(sums.partial);
  int64_t at = row * order.weights + index;
  int left = exists ? (int(sums.splits) - row + (1 << order.rows_log2) - 1) >> order.rows_log2 : 0;
  V sum = 0;
#pragma unroll 1
  for (; left > 0; left -= kPartsAtOnce) {
    V part[kPartsAtOnce];
#pragma unroll
    for (int i = 0; i < kPartsAtOnce; ++i, at += step) {
      ptx::keep(at);  // or products i * step would take registers and hold loads back
      part[i] = i < left ? ptx::ld_global(partial + at) : V(0);
    }
#pragma unroll
    for (int i = 0; i < kPartsAtOnce; ++i) sum += part[i];
  }
  if (order.rows_log2 > 0) sum = add_rows(sum, columns);
  if (row > 0 || !exists) return;
  int64_t k = index;
  const int64_t c = take_remainder(k, order.C), s = take_remainder(k, order.S),
                r = take_remainder(k, order.R);
  if constexpr (sizeof(T) == 4)
    if (sums.mend && sum != sum)
      sum = plain_weight_sum(sums.conv, sums.mask, int(k), int(c), int(r), int(s));
  ptx::st_global(const_cast<T*>(element<T>(sums.dw, k, c, r, s)), narrow<T>(sum));
}

template <class T>
Status launch_add_parts_of(const GradSums& sums, Stream stream) {
  static const KernelLabel label("add_parts_%s", kTypeName<T>);
  const int64_t* n = sums.dw.size;
  const int64_t weights = n[0] * n[1] * n[2] * n[3];
  const int32_t rows_log2 = parts_rows_log2(weights, sums.splits);
  const PartsOrder order = {make_axis(n[1]), make_axis(n[3]), make_axis(n[2]),
                            weights,         rows_log2,       kAddPartsLog2 - rows_log2};
  const int shared_bytes = rows_log2 > 0 ? kAddPartsThreads * int(sizeof(Compute<T>)) : 0;
  return launch_line(label.text, add_parts<T>, weights, kAddPartsThreads >> rows_log2,
                     kAddPartsThreads, shared_bytes, stream, sums, order);
}

}  // namespace fastconv::cuda
