// The second pass of split-K: adds the partial sums of each output in order, then finishes them.
#pragma once
#include "store_tile.cuh"

namespace fastconv::cuda {

// Budget: 64 registers for 8 blocks on an SM; NOTE left to itself ptxas takes 32 and spills.
constexpr int kSplitThreads = 128, kSplitBlocks = 8;

// grid: outputs; phases.
template <Math kMath, Direction kD>
__global__ void __launch_bounds__(kSplitThreads, kSplitBlocks)
    add_splits(const ParamsOf<kD> __grid_constant__ all, Divisor by_chunks) {
  const auto& params = params_of(all, blockIdx.y);
  using T = typename Storage<kMath>::type;
  constexpr int kSize = Chunk<T>::kSize;
  const int64_t K = int64_t(params.K) * params.groups;
  const int chunks = int(by_chunks.d);
  const int64_t index = int64_t(blockIdx.x) * kSplitThreads + threadIdx.x;
  if (index >= int64_t(params.M) * chunks) return;
  const int m = index < INT32_MAX ? divide(int(index), by_chunks) : int(index / chunks);
  const int k = int(index - int64_t(m) * chunks) * kSize;
  const int to = place_of<kD == Direction::input_grad>(params, m);
  float v[kSize] = {};
  const float* partial = params.at.partial + to * K + k;
#pragma unroll 4
  for (int z = 0; z < params.splits; ++z, partial += params.total * K) {
#pragma unroll
    for (int e = 0; e < kSize; e += 4) {
      const float4 four = ptx::ld_global(reinterpret_cast<const float4*>(partial + e));
      v[e] += four.x, v[e + 1] += four.y, v[e + 2] += four.z, v[e + 3] += four.w;
    }
  }
  if constexpr (kMath == Math::f32) mend(v, params, m, k);
  T* y = static_cast<T*>(params.at.y) + to * params.at.y_pixel + k;
  if constexpr (kD == Direction::input_grad) {
    store_chunk(v, y);
  } else {
    const T* bias = static_cast<const T*>(params.at.bias);
    const T* residual = static_cast<const T*>(params.at.residual);
    if (bias != nullptr) bias += k;
    if (residual != nullptr) residual += m * params.at.residual_pixel + k;
    finish_chunk(v, chunk_or_zero(bias), chunk_or_zero(residual), params.activation, y);
  }
}

}  // namespace fastconv::cuda
