// Weight gradient of depthwise convolution and narrow groups, NHWC: bound by memory, in plain
// arithmetic.
//
// A thread sums kDepthwiseTaps neighbouring taps of V neighbouring channels (16 bytes) over every
// n-th pixel of a part; the block's threads of one chunk are added in shared memory in order, the
// parts by add_parts. Taps outside are left out.
#pragma once
#include "conv_depthwise.cuh"
#include "store_tile.cuh"

namespace fastconv::cuda {

struct DepthwiseGradGrid {
  int32_t chunks, all;  // of V channels: a block's, the tensor's
  int32_t lanes;        // pixels at once
};

// grid: parts; tiles of chunks; rows of taps times lots of kDepthwiseTaps.
template <class Config>
__global__ void __launch_bounds__(kDepthwiseThreads, kDepthwiseBlocks)
    conv_depthwise_weight_grad(const ConvParams __grid_constant__ p,
                               const DepthwiseGradGrid __grid_constant__ grid) {
  using T = typename Config::T;
  using Vector = typename Config::Vector;
  constexpr int V = Config::V, D = Config::D, kTaps = kDepthwiseTaps, kSums = V * D;
  const uint32_t shared = ptx::shared_address(shared_memory());
  const int lots = (p.S + kTaps - 1) / kTaps, r = blockIdx.z / lots;
  const int s0 = blockIdx.z % lots * kTaps;
  const int first_chunk = blockIdx.y * grid.chunks, local = threadIdx.x % grid.chunks;
  const int lane = threadIdx.x / grid.chunks, chunk = first_chunk + local;
  const int begin = blockIdx.x * p.split_depth, end = begin + min_of(p.M - begin, p.split_depth);
  float acc[kTaps][kSums] = {};
  if (chunk < grid.all) {
    const T* dy = static_cast<const T*>(p.at.y) + chunk * V;
    const T* x = static_cast<const T*>(p.at.x) + chunk * V;
#pragma unroll 1
    for (int m = begin + lane; m < end; m += grid.lanes) {
      const Pixel at = pixel_of(p, m);
      const int h = at.p * p.stride_h - p.pad_t + r * p.dil_h;
      const int w = at.q * p.stride_w - p.pad_l + s0 * p.dil_w;
      if (unsigned(h) >= unsigned(p.H)) continue;
      const auto g = ptx::ld_global(reinterpret_cast<const Vector*>(dy + m * p.at.y_pixel));
      const T* row = x + (int64_t(at.n) * p.H + h) * p.W * p.at.x_pixel;
#pragma unroll
      for (int t = 0; t < kTaps; ++t) {
        const int column = w + t * p.dil_w;
        if (s0 + t >= p.S || unsigned(column) >= unsigned(p.W)) continue;
        const auto v = ptx::ld_global(reinterpret_cast<const Vector*>(row + column * p.at.x_pixel));
#pragma unroll
        for (int i = 0; i < V; ++i)
#pragma unroll
          for (int d = 0; d < D; ++d)
            acc[t][i * D + d] += widen(g.at[i]) * widen(v.at[i / D * D + d]);
      }
    }
  }
  const int64_t K = int64_t(p.K) * p.groups;
#pragma unroll
  for (int t = 0; t < kTaps; ++t) {
    if (s0 + t >= p.S) break;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kSums; ++i)
      ptx::st_shared(shared + ((lane * kSums + i) * grid.chunks + local) * 4, acc[t][i]);
    __syncthreads();
    for (int e = threadIdx.x; e < kSums * grid.chunks; e += blockDim.x) {
      float sum = 0;
      for (int l = 0; l < grid.lanes; ++l)
        sum += ptx::ld_shared<float>(shared + (l * kSums * grid.chunks + e) * 4);
      const int which = first_chunk + e % grid.chunks, i = e / grid.chunks;
      if (which >= grid.all) continue;
      const int64_t k = int64_t(which) * V + i / D;
      ptx::st_global(
          p.at.partial + ((blockIdx.x * K + k) * p.R * p.S + r * p.S + s0 + t) * D + i % D, sum);
    }
  }
}

// ---- Launches ----

template <class Config>
Status launch_depthwise_grad_config(const ConvParams& p, Stream stream) {
  constexpr int V = Config::V, D = Config::D;
  static const KernelLabel label("conv_depthwise_weight_grad_%s_x%d_groups%d",
                                 kTypeName<typename Config::T>, V, D);
  const int all = p.K * p.groups / V, tiles = (all + 31) / 32;
  DepthwiseGradGrid grid = {(all + tiles - 1) / tiles, all, 0};
  grid.lanes = kDepthwiseThreads / grid.chunks;
  const int lots = p.R * ((p.S + kDepthwiseTaps - 1) / kDepthwiseTaps),
            threads = grid.chunks * grid.lanes;
  if (tiles > kMostRows || lots > kMostRows) return {label.text, kTooManyRows};
  return launch(label.text, conv_depthwise_weight_grad<Config>, dim3(p.splits, tiles, lots),
                threads, threads * V * D * 4, stream, p, grid);
}

template <class T>
Status launch_depthwise_weight_grad(const ConvParams& p, Stream stream) {
  constexpr int V = 16 / sizeof(T);
  auto aligned = [](const void* data, int64_t pixel) {
    return uintptr_t(data) % 16 == 0 && pixel % V == 0;
  };
  const bool wide =
      p.K * p.groups % V == 0 && aligned(p.at.x, p.at.x_pixel) && aligned(p.at.y, p.at.y_pixel);
  if (!wide && p.C > 1)
    return {"conv_depthwise_weight_grad", "pointers or pixels are not aligned to 16 bytes"};
  if (p.C == 4) return launch_depthwise_grad_config<Depthwise<T, V, 4, 0, 0>>(p, stream);
  if (p.C == 2) return launch_depthwise_grad_config<Depthwise<T, V, 2, 0, 0>>(p, stream);
  if (!wide) return launch_depthwise_grad_config<Depthwise<T, 1, 1, 0, 0>>(p, stream);
  return launch_depthwise_grad_config<Depthwise<T, V, 1, 0, 0>>(p, stream);
}

}  // namespace fastconv::cuda
