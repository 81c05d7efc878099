// Depthwise convolution and narrow groups (1, 2 or 4 channels in and out of a group), NHWC: bound
// by memory, in plain arithmetic.
//
// A thread computes V neighbouring channels (16 bytes) of kOutputs neighbouring outputs of a row.
// Where the kernel's width and stride are constants each column is loaded once for all the outputs
// that use it. A block keeps its channels' weights in shared memory. Taps outside are left out. The
// input gradient is the same, phase by phase.
#pragma once
#include "conv_depthwise.h"
#include "epilogue.cuh"

namespace fastconv::cuda {

// Budget: 168 registers for 3 blocks of 128 threads on an SM; no spills.
constexpr int kDepthwiseThreads = 128, kDepthwiseBlocks = 3;

struct DepthwiseGrid {
  Axis strips, rows;    // kOutputs outputs of a row; rows of an image
  int32_t chunks, all;  // of V channels: a block's, the tensor's
  int32_t strips_at_once, total;
};

// kD channels a group; kS and kStride are the kernel's width and stride along a row, or 0: any.
template <class TT, int kV, int kDepth, int kWidth, int kStep>
struct Depthwise {
  using T = TT;
  static constexpr int V = kV, D = kDepth, kS = kWidth, kStride = kStep;
  static constexpr int kOutputs = 4;
  static constexpr int kColumns = (kOutputs - 1) * kStride + kS;
  using Vector = Chunk<T, V>;
  static_assert(kS == 0 || D == 1);
};

// Weights go to [tap][d][chunk][V]: of a chunk the V D weights of a tap in the order of memory,
// cut into D vectors.
template <class Config>
FASTCONV_DEVICE void load_weights(const ConvParams& p, const DepthwiseGrid& grid, int first_chunk,
                                  uint32_t shared) {
  constexpr int V = Config::V, D = Config::D;
  using T = typename Config::T;
  const int channels =
                (grid.all - first_chunk < grid.chunks ? grid.all - first_chunk : grid.chunks) * V,
            depth = p.R * p.S * D;
  for (int c = threadIdx.x; c < channels; c += blockDim.x) {
    const int k = first_chunk * V + c;
    const T* w = static_cast<const T*>(p.at.w) + p.weight.first + k / D * p.weight.group +
                 int64_t(k % D) * p.weight.k;
    for (int i = 0; i < depth; ++i) {
      const int at = c % V * D + i % D;  // among the V D
      const int vector = (i / D * D + at / V) * grid.chunks + c / V;
      const int r = i / D / p.S, s = i / D - r * p.S;
      ptx::st_shared(shared + (vector * V + at % V) * uint32_t(sizeof(T)),
                     ptx::ld_global(w + int64_t(i % D) * p.weight.c + int64_t(r) * p.weight.r +
                                    int64_t(s) * p.weight.s));
    }
  }
}

// acc[j] += x w of one row of taps, of a kernel of constant width.
template <class Config>
FASTCONV_DEVICE void add_row(float (&acc)[Config::kOutputs][Config::V], const ConvParams& p,
                             const typename Config::T* row, int w0, uint32_t weights, int step) {
  using Vector = typename Config::Vector;
  constexpr int V = Config::V, kS = Config::kS, kColumns = Config::kColumns;
  Vector x[kColumns];
  bool have[kColumns];
#pragma unroll
  for (int i = 0; i < kColumns; ++i) {
    have[i] = unsigned(w0 + i) < unsigned(p.W);
    if (have[i]) x[i] = ptx::ld_global(reinterpret_cast<const Vector*>(row + i * p.at.x_pixel));
  }
  float w[kS][V];
#pragma unroll
  for (int s = 0; s < kS; ++s) {
    const auto vector = ptx::ld_shared<Vector>(weights + s * step);
#pragma unroll
    for (int v = 0; v < V; ++v) w[s][v] = widen(vector.at[v]);
  }
#pragma unroll
  for (int i = 0; i < kColumns; ++i) {
    if (!have[i]) continue;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const float value = widen(x[i].at[v]);
#pragma unroll
      for (int j = 0; j < Config::kOutputs; ++j) {
        const int s = i - j * Config::kStride;
        if (s >= 0 && s < kS) acc[j][v] += value * w[s < 0 ? 0 : s < kS ? s : 0][v];
      }
    }
  }
}

// The same for any width, stride and dilation: tap by tap, the repeated loads come from L1.
template <class Config>
FASTCONV_DEVICE void add_taps(float (&acc)[Config::kOutputs][Config::V], const ConvParams& p,
                              const typename Config::T* row, int w0, uint32_t weights, int step) {
  using Vector = typename Config::Vector;
  constexpr int V = Config::V, D = Config::D;
#pragma unroll 1
  for (int s = 0; s < p.S; ++s, w0 += p.dil_w, row += p.dil_w * p.at.x_pixel) {
    float w[V * D];
#pragma unroll
    for (int d = 0; d < D; ++d) {
      const auto vector = ptx::ld_shared<Vector>(weights + (s * D + d) * step);
#pragma unroll
      for (int v = 0; v < V; ++v) w[d * V + v] = widen(vector.at[v]);
    }
#pragma unroll
    for (int j = 0; j < Config::kOutputs; ++j) {
      if (unsigned(w0 + j * p.stride_w) >= unsigned(p.W)) continue;
      const auto x = ptx::ld_global(
          reinterpret_cast<const Vector*>(row + int64_t(j * p.stride_w) * p.at.x_pixel));
#pragma unroll
      for (int v = 0; v < V; ++v)
#pragma unroll
        for (int d = 0; d < D; ++d) acc[j][v] += widen(x.at[v / D * D + d]) * w[v * D + d];
    }
  }
}

// grid: strips, then chunks of channels.
template <class Config>
__global__ void __launch_bounds__(kDepthwiseThreads, kDepthwiseBlocks)
    conv_depthwise(const ConvParams __grid_constant__ p,
                   const DepthwiseGrid __grid_constant__ grid) {
  using T = typename Config::T;
  using Vector = typename Config::Vector;
  constexpr int V = Config::V, kOutputs = Config::kOutputs;
  const uint32_t shared = ptx::shared_address(shared_memory());
  const int first_chunk = blockIdx.y * grid.chunks, local = threadIdx.x % grid.chunks;
  load_weights<Config>(p, grid, first_chunk, shared);
  __syncthreads();
  const int chunk = first_chunk + local;
  if (chunk >= grid.all) return;
  const int step = grid.chunks * int(sizeof(Vector));  // from one vector of weights to the next
  const T* bias_at = static_cast<const T*>(p.at.bias);
  const auto bias = chunk_or_zero<T, V>(bias_at != nullptr ? bias_at + chunk * V : nullptr);
#pragma unroll 1
  for (int strip = blockIdx.x * grid.strips_at_once + threadIdx.x / grid.chunks; strip < grid.total;
       strip += gridDim.x * grid.strips_at_once) {
    int64_t n = strip;
    const int q = int(take_remainder(n, grid.strips)) * kOutputs;
    const int row = int(take_remainder(n, grid.rows));
    const int h0 = row * p.stride_h - p.pad_t, w0 = q * p.stride_w - p.pad_l;
    const T* x =
        static_cast<const T*>(p.at.x) + chunk * V + ((n * p.H + h0) * p.W + w0) * p.at.x_pixel;
    float acc[kOutputs][V] = {};
#pragma unroll 1
    for (int r = 0; r < p.R; ++r, x += int64_t(p.dil_h) * p.W * p.at.x_pixel) {
      if (unsigned(h0 + r * p.dil_h) >= unsigned(p.H) || p.depth == 0) continue;
      const uint32_t weights =
          shared + (r * p.S * Config::D * grid.chunks + local) * uint32_t(sizeof(Vector));
      if constexpr (Config::kS > 0)
        add_row<Config>(acc, p, x, w0, weights, step);
      else
        add_taps<Config>(acc, p, x, w0, weights, step);
    }
    const int64_t pixel = p.place.first + n * p.place.image + row * p.place.line + q * p.place.step;
#pragma unroll
    for (int j = 0; j < kOutputs; ++j) {
      if (q + j >= p.Q) break;
      const T* residual = static_cast<const T*>(p.at.residual);
      const int64_t to = pixel + j * p.place.step;
      if (residual != nullptr) residual += to * p.at.residual_pixel + chunk * V;
      finish_chunk(acc[j], bias, chunk_or_zero<T, V>(residual), p.activation,
                   static_cast<T*>(p.at.y) + to * p.at.y_pixel + chunk * V);
    }
  }
}

// ---- Launches ----

template <class Config>
Status launch_depthwise_config(const ConvParams& p, Stream stream) {
  using T = typename Config::T;
  constexpr int V = Config::V, D = Config::D, kS = Config::kS;
  static const KernelLabel label(
      kS > 0 ? "conv_depthwise_%s_width%d_stride%d" : "conv_depthwise_%s_x%d_groups%d",
      kTypeName<T>, kS > 0 ? kS : V, kS > 0 ? Config::kStride : D);
  const int all = p.K * p.groups / V;
  const int64_t vector = V * sizeof(T), weights = int64_t(p.R) * p.S * D * vector;
  const int64_t most = depthwise_chunks(weights);
  const int tiles = int((all + most - 1) / most);
  const int rows = int(int64_t(p.by_image.d) / p.Q),
            strips = (p.Q + Config::kOutputs - 1) / Config::kOutputs;
  DepthwiseGrid grid = {};
  grid.strips = make_axis(strips), grid.rows = make_axis(rows);
  grid.all = all, grid.chunks = (all + tiles - 1) / tiles;
  grid.strips_at_once = kDepthwiseThreads / grid.chunks;
  grid.total = int(int64_t(p.M) / p.Q * strips);
  int blocks = (grid.total + grid.strips_at_once - 1) / grid.strips_at_once;
  // Where there is work for any GPU a block takes four lots, for the sake of loading weights.
  if (blocks >= 8192) blocks = (blocks + 3) / 4;
  if (blocks == 0) return {label.text, nullptr};
  if (tiles > kMostRows) return {label.text, kTooManyRows};
  return launch(label.text, conv_depthwise<Config>, dim3(blocks, tiles),
                grid.chunks * grid.strips_at_once, int(weights * grid.chunks), stream, p, grid);
}

template <class T>
Status launch_depthwise(const ConvParams& p, Stream stream) {
  constexpr int V = 16 / sizeof(T);
  auto aligned = [](const void* data, int64_t pixel) {
    return uintptr_t(data) % 16 == 0 && pixel % V == 0;
  };
  const bool wide = p.K * p.groups % V == 0 && aligned(p.at.x, p.at.x_pixel) &&
                    aligned(p.at.y, p.at.y_pixel) && aligned(p.at.bias, 0) &&
                    aligned(p.at.residual, p.at.residual_pixel);
  if (!wide && p.C > 1) return {"conv_depthwise", "pointers or pixels are not aligned to 16 bytes"};
  if (p.C == 4) return launch_depthwise_config<Depthwise<T, V, 4, 0, 0>>(p, stream);
  if (p.C == 2) return launch_depthwise_config<Depthwise<T, V, 2, 0, 0>>(p, stream);
  if (!wide) return launch_depthwise_config<Depthwise<T, 1, 1, 0, 0>>(p, stream);
  if (p.dil_w == 1 && p.S == 3 && p.stride_w == 1)
    return launch_depthwise_config<Depthwise<T, V, 1, 3, 1>>(p, stream);
  if (p.dil_w == 1 && p.S == 3 && p.stride_w == 2)
    return launch_depthwise_config<Depthwise<T, V, 1, 3, 2>>(p, stream);
  if (p.dil_w == 1 && p.S == 5 && p.stride_w == 1)
    return launch_depthwise_config<Depthwise<T, V, 1, 5, 1>>(p, stream);
  if (p.dil_w == 1 && p.S == 7 && p.stride_w == 1)
    return launch_depthwise_config<Depthwise<T, V, 1, 7, 1>>(p, stream);
  return launch_depthwise_config<Depthwise<T, V, 1, 0, 0>>(p, stream);
}

}  // namespace fastconv::cuda
