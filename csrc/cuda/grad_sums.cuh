// The second pass of a sum over pixels: a thread adds the parts of one weight in order.
#pragma once
#include "grad_sums.h"
#include "storage.cuh"

namespace fastconv::cuda {

constexpr int kAddPartsThreads = 128;

struct PartsOrder {
  Axis C, S, R;
  int64_t weights;
};

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
