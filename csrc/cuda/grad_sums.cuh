// The second pass of a sum over pixels: a thread adds the parts of one weight in order.
#pragma once
#include "grad_sums.h"
#include "store_tile.cuh"

namespace fastconv::cuda {

constexpr int kAddPartsThreads = 128;

struct PartsOrder {
  Axis C, S, R;
  int64_t weights;
};

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

template <class T>
__global__ void __launch_bounds__(kAddPartsThreads)
    add_parts(const GradSums __grid_constant__ sums, const PartsOrder __grid_constant__ order) {
  using V = Compute<T>;
  const int64_t index = int64_t(blockIdx.x) * kAddPartsThreads + threadIdx.x;
  if (index >= order.weights) return;
  const V* from = static_cast<const V*>(sums.partial) + index;
  V sum = 0;
#pragma unroll 4
  for (int64_t z = 0; z < sums.splits; ++z) sum += ptx::ld_global(from + z * order.weights);
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
  const PartsOrder order = {make_axis(n[1]), make_axis(n[3]), make_axis(n[2]),
                            n[0] * n[1] * n[2] * n[3]};
  return launch_line(label.text, add_parts<T>, order.weights, kAddPartsThreads, kAddPartsThreads, 0,
                     stream, sums, order);
}

}  // namespace fastconv::cuda
