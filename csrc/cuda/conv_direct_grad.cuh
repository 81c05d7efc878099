// Weight gradient in plain arithmetic for any strides, sizes, groups and dilation. Parts
// of the sum over pixels go to add_parts (grad_sums.cuh), which adds them in order: no atomics.
//
// conv_direct_weight_grad: 64 output x 64 input channels of one tap a block, through shared memory.
// conv_direct_weight_grad_narrow: a warp a weight, for groups of few channels.
// A pixel whose tap is outside the input is zero in both operands: no zero meets an infinite one.
#pragma once
#include "conv_direct.cuh"
#include "conv_direct_grad.h"

namespace fastconv::cuda {

// Where a pixel's dy and its tap's x lie: in elements, x < 0 where the tap is outside.
struct PixelSource {
  int64_t dy, x;
};
template <class P>
FASTCONV_DEVICE PixelSource source_of(const P& params, int64_t m, int r, int s, const Axis& rows,
                                      const Axis& cols) {
  const ConvProblem& p = params.p;
  int64_t n = m;
  const int64_t col = take_remainder(n, cols), row = take_remainder(n, rows);
  const int64_t h = row * p.stride_h - p.pad_t + r * p.dil_h;
  const int64_t w = col * p.stride_w - p.pad_l + s * p.dil_w;
  const View &x = params.x, &dy = params.dy;
  return {n * dy.stride[0] + row * dy.stride[2] + col * dy.stride[3],
          inside(h, p.H) && inside(w, p.W) ? n * x.stride[0] + h * x.stride[2] + w * x.stride[3]
                                           : int64_t(-1)};
}

struct WeightGradOrder {
  Axis cols, rows, taps, tiles_c, tiles_k, groups;
};

// Budget: 128 registers for 2 blocks of 256 threads on an SM, one block in float64; no spills.
template <class T>
constexpr int kWeightGradBlocks = sizeof(Compute<T>) == 8 ? 1 : 2;

// grid: taps, tiles of a group's input, output channels, groups, splits; the first fastest.
template <class T>
__global__ void __launch_bounds__(DirectTile::kThreads, kWeightGradBlocks<T>)
    conv_direct_weight_grad(const DirectWeightGradParams __grid_constant__ params,
                            const WeightGradOrder __grid_constant__ order) {
  using V = Compute<T>;
  constexpr int kDepth = DirectTile::kDepth, kPitch = DirectTile::kPitch<T>, kLot = 64;
  constexpr int kBytes = sizeof(V), kVector = 16 / kBytes;
  const ConvProblem& p = params.p;
  const int64_t C = p.C / p.G, K = p.K / p.G;
  int64_t split = blockIdx.x;
  const int tap = int(take_remainder(split, order.taps));
  const int64_t c0 = take_remainder(split, order.tiles_c) * 64;
  const int64_t k0 = take_remainder(split, order.tiles_k) * 64;
  const int64_t group = take_remainder(split, order.groups);
  const int r = tap / int(p.S), s = tap % int(p.S), t = threadIdx.x;
  const int64_t begin = split * params.split.pixels, pixels = p.N * p.P * p.Q;
  const int64_t end = begin + params.split.pixels < pixels ? begin + params.split.pixels : pixels;

  // Shared memory: the sources of 64 pixels, then dy and x of 16 of them, [pixel][channel].
  const uint32_t sources = ptx::shared_address(shared_memory());
  const uint32_t a = sources + kLot * 16, b = a + kDepth * kPitch * kBytes;
  // Neighbouring threads copy neighbours in memory.
  auto place = [&](const View& v, int i, int& pixel, int& channel) {
    const bool rows_of_channels = v.stride[1] == 1;
    pixel = rows_of_channels ? t / 64 + 4 * i : t % 16;
    channel = rows_of_channels ? t % 64 : t / 16 + 16 * i;
  };
  auto copy = [&](const View& v, int64_t first, int64_t count, int lot, bool of_x, uint32_t to) {
    V values[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      int pixel, channel;
      place(v, i, pixel, channel);
      const auto source = ptx::ld_shared<int2>(sources + (lot + pixel) * 16 + 8);
      values[i] = 0;
      if (source.y < 0 || channel >= count) continue;
      const auto from = ptx::ld_shared<int64_t>(sources + (lot + pixel) * 16 + (of_x ? 8 : 0));
      values[i] = widen(
          ptx::ld_global(static_cast<const T*>(v.data) + from + (first + channel) * v.stride[1]));
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      int pixel, channel;
      place(v, i, pixel, channel);
      ptx::st_shared(to + (pixel * kPitch + channel) * kBytes, values[i]);
    }
  };
  const int row = t / 16 * 4, column = t % 16 * 4;  // of this thread's weights
  V acc[4][4] = {};
#pragma unroll 1
  for (int64_t lot = begin; lot < end; lot += kLot) {
    __syncthreads();
    if (t < kLot) {
      PixelSource source = {0, -1};
      if (lot + t < end) source = source_of(params, lot + t, r, s, order.rows, order.cols);
      ptx::st_shared(sources + t * 16, source.dy);
      ptx::st_shared(sources + t * 16 + 8, source.x);
    }
#pragma unroll 1
    for (int first = 0; first < kLot && lot + first < end; first += kDepth) {
      __syncthreads();
      copy(params.dy, group * K + k0, K - k0, first, false, a);
      copy(params.x, group * C + c0, C - c0, first, true, b);
      __syncthreads();
      V part[4][4] = {};  // of 16 products: half the error of one long sum
#pragma unroll 2
      for (int d = 0; d < kDepth; ++d) {
        V from_a[4], from_b[4];
#pragma unroll
        for (int i = 0; i < 4; i += kVector) {
          const auto va = ptx::ld_shared<Chunk<V>>(a + (d * kPitch + row + i) * kBytes);
          const auto vb = ptx::ld_shared<Chunk<V>>(b + (d * kPitch + column + i) * kBytes);
#pragma unroll
          for (int e = 0; e < kVector; ++e) from_a[i + e] = va.at[e], from_b[i + e] = vb.at[e];
        }
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
          for (int j = 0; j < 4; ++j) part[i][j] += from_a[i] * from_b[j];
      }
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) acc[i][j] += part[i][j];
    }
  }
  const int64_t taps = p.R * p.S;
  V* to = static_cast<V*>(params.partial) + split * p.K * taps * C;
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (k0 + row + i < K && c0 + column + j < C)
        ptx::st_global(to + ((group * K + k0 + row + i) * taps + tap) * C + c0 + column + j,
                       acc[i][j]);
}

struct NarrowGradOrder {
  Axis C, S, R, K;  // of the weights, C of a group
  Axis group_K, cols, rows;
};

// grid: weights, then splits, eight warps a block.
template <class T>
__global__ void __launch_bounds__(DirectTile::kThreads)
    conv_direct_weight_grad_narrow(const DirectWeightGradParams __grid_constant__ params,
                                   const NarrowGradOrder __grid_constant__ order) {
  using V = Compute<T>;
  const ConvProblem& p = params.p;
  const int64_t index = int64_t(blockIdx.x) * (DirectTile::kThreads / 32) + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  int64_t split = index;
  const int64_t c = take_remainder(split, order.C);
  const int s = int(take_remainder(split, order.S)), r = int(take_remainder(split, order.R));
  const int64_t k = take_remainder(split, order.K);
  if (split >= params.split.splits) return;
  int64_t group = k;
  take_remainder(group, order.group_K);
  const int64_t begin = split * params.split.pixels, pixels = p.N * p.P * p.Q;
  const int64_t end = begin + params.split.pixels < pixels ? begin + params.split.pixels : pixels;
  const T* dy = element<T>(params.dy, 0, k, 0, 0);
  const T* x = element<T>(params.x, 0, group * (p.C / p.G) + c, 0, 0);
  V acc = 0;
#pragma unroll 1
  for (int64_t m = begin + lane; m < end;) {
    V part = 0;
#pragma unroll 1
    for (int i = 0; i < 16 && m < end; ++i, m += 32) {
      const PixelSource at = source_of(params, m, r, s, order.rows, order.cols);
      if (at.x >= 0) part += widen(ptx::ld_global(dy + at.dy)) * widen(ptx::ld_global(x + at.x));
    }
    acc += part;
  }
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) acc += ptx::shfl_bfly(acc, lanes);
  if (lane == 0) ptx::st_global(static_cast<V*>(params.partial) + index, acc);
}

// ---- Launches ----

template <class T>
Status launch_direct_weight_grad(const DirectWeightGradParams& params, Stream stream) {
  const ConvProblem& p = params.p;
  const int64_t C = p.C / p.G, K = p.K / p.G, splits = params.split.splits;
  const Axis cols = make_axis(p.Q), rows = make_axis(p.P);
  if (p.R > INT32_MAX || p.S > INT32_MAX || p.R * p.S > INT32_MAX)
    return {"conv_direct_weight_grad", "kernel sizes beyond 32 bits"};
  if (direct_grad_is_narrow(p)) {
    static const KernelLabel label("conv_direct_weight_grad_narrow_%s", kTypeName<T>);
    const NarrowGradOrder order = {
        make_axis(C), make_axis(p.S), make_axis(p.R), make_axis(p.K), make_axis(K), cols, rows};
    return launch_line(label.text, conv_direct_weight_grad_narrow<T>, p.K * C * p.R * p.S * splits,
                       DirectTile::kThreads / 32, DirectTile::kThreads, 0, stream, params, order);
  }
  static const KernelLabel label("conv_direct_weight_grad_%s", kTypeName<T>);
  const int64_t tiles_c = (C + 63) / 64, tiles_k = (K + 63) / 64;
  const WeightGradOrder order = {
      cols, rows, make_axis(p.R * p.S), make_axis(tiles_c), make_axis(tiles_k), make_axis(p.G)};
  constexpr int kShared =
      64 * 16 + 2 * DirectTile::kDepth * DirectTile::kPitch<T> * int(sizeof(Compute<T>));
  return launch_line(label.text, conv_direct_weight_grad<T>,
                     p.R * p.S * tiles_c * tiles_k * p.G * splits, 1, DirectTile::kThreads, kShared,
                     stream, params, order);
}

}  // namespace fastconv::cuda
