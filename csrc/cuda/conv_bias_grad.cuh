// Bias gradient, alone or with an activation's gradient in one pass: dy and y are read once, the
// masked dy is written, and its sums over a part of the pixels are left for add_parts.
//
// A thread reads V elements at a time, 16 bytes where every operand has them next to each other,
// along channels or along pixels. It keeps its channels for the whole loop, so sums stay in
// registers, and a block adds its threads' in order: no atomics.
#pragma once
#include "conv_bias_grad.h"
#include "epilogue.cuh"

namespace fastconv::cuda {

constexpr int kBiasThreads = 256;

struct BiasGradOrder {
  Axis cols, rows;
  int32_t blocks;  // of channels
};

// How a block's threads lie over channels and pixels.
template <int V, bool kChannelsLast>
struct BiasTile {
  static constexpr int kColumns = !kChannelsLast ? 8 : V > 1 ? 8 : 32;  // threads along channels
  static constexpr int kRows = kBiasThreads / kColumns;                 // threads along pixels
  static constexpr int kSums = kChannelsLast ? V : 1;                   // of a thread
  static constexpr int kChannels = kColumns * kSums;
  static constexpr int kPixels = kRows * (kChannelsLast ? 1 : V);  // of a step
};

// grid: blocks of channels, then splits of the pixels.
template <class T, int V, bool kChannelsLast, bool kMasked>
__global__ void __launch_bounds__(kBiasThreads)
    bias_grad(const BiasGradParams __grid_constant__ params,
              const BiasGradOrder __grid_constant__ order) {
  using Tile = BiasTile<V, kChannelsLast>;
  using Sum = Compute<T>;
  using Vector = Chunk<T, V>;
  const int t = threadIdx.x;
  const int column = kChannelsLast ? t % Tile::kColumns : t / Tile::kRows;
  const int row = kChannelsLast ? t / Tile::kColumns : t % Tile::kRows;
  const int64_t K = params.dy.size[1];
  const int64_t k0 = int64_t(blockIdx.x % order.blocks) * Tile::kChannels;
  const int64_t k = k0 + column * Tile::kSums;
  const int64_t split = blockIdx.x / order.blocks, begin = split * params.split.pixels;
  const int64_t pixels = params.dy.size[0] * order.rows.size * order.cols.size;
  const int64_t end = begin + params.split.pixels < pixels ? begin + params.split.pixels : pixels;
  Sum sums[Tile::kSums] = {};
  if (k < K) {
    int64_t n = begin + row * (kChannelsLast ? 1 : V), left = end - n;
    int64_t q = take_remainder(n, order.cols), p = take_remainder(n, order.rows);
    auto at = [&](const View& v) { return element<T>(v, n, k, p, q); };
#pragma unroll 1
    while (left > 0) {
      Sum part[Tile::kSums] = {};  // of 16 steps: less error than one long sum
#pragma unroll 4
      for (int i = 0; i < 16 && left > 0; ++i, left -= Tile::kPixels) {
        auto dz = ptx::ld_global(reinterpret_cast<const Vector*>(at(params.dy)));
        if constexpr (kMasked) {
          const auto y = ptx::ld_global(reinterpret_cast<const Vector*>(at(params.y)));
          dz = activation_grad(dz, y, params.activation);
          ptx::st_global(reinterpret_cast<Vector*>(const_cast<T*>(at(params.dz))), dz);
        }
#pragma unroll
        for (int e = 0; e < V; ++e) part[e % Tile::kSums] += widen(dz.at[e]);
        for (q += Tile::kPixels; q >= order.cols.size; q -= order.cols.size)
          if (++p == order.rows.size) p = 0, ++n;
      }
#pragma unroll
      for (int e = 0; e < Tile::kSums; ++e) sums[e] += part[e];
    }
  }
  // Shared memory: [row][channel].
  const uint32_t shared = ptx::shared_address(shared_memory());
  auto place = [&](int row, int channel) {
    return shared + (row * Tile::kChannels + channel) * uint32_t(sizeof(Sum));
  };
#pragma unroll
  for (int e = 0; e < Tile::kSums; ++e)
    ptx::st_shared(place(row, column * Tile::kSums + e), sums[e]);
  __syncthreads();
  if (t >= Tile::kChannels || k0 + t >= K) return;
  Sum sum = 0;
  for (int i = 0; i < Tile::kRows; ++i) sum += ptx::ld_shared<Sum>(place(i, t));
  ptx::st_global(static_cast<Sum*>(params.partial) + split * K + k0 + t, sum);
}

// ---- Launches ----

// Rows that follow each other without gaps in every operand are one, and so are images: fewer turns
// of a row.
inline void join_pixels(View* const* views, int count) {
  auto join = [&](int outer, int inner) {
    for (int i = 0; i < count; ++i) {
      const View& v = *views[i];
      const bool both = v.size[outer] > 1 && v.size[inner] > 1;
      if (both && v.stride[outer] != v.size[inner] * v.stride[inner]) return;
    }
    for (int i = 0; i < count; ++i) {
      View& v = *views[i];
      if (v.size[inner] == 1) v.stride[inner] = v.stride[outer];
      v.size[inner] *= v.size[outer], v.size[outer] = 1;
    }
  };
  join(2, 3);
  if (views[0]->size[2] == 1) join(0, 3);
}

// Whether the pixels of a row are `n` elements of `bytes` at a time, each lot aligned.
inline bool whole_rows_of_pixels(const View& v, int n, int bytes) {
  bool whole = v.stride[3] == 1 && v.size[3] % n == 0 && uintptr_t(v.data) % (n * bytes) == 0;
  for (int i = 0; i < 3; ++i) whole = whole && (v.size[i] == 1 || v.stride[i] % n == 0);
  return whole;
}

template <class T, int V, bool kChannelsLast, bool kMasked>
Status launch_bias_grad(const BiasGradParams& params, Stream stream) {
  using Tile = BiasTile<V, kChannelsLast>;
  static const KernelLabel label("%s_bias_grad_%s%s", kMasked ? "activation" : "conv", kTypeName<T>,
                                 V > 1 ? "_x16" : "");
  const View& dy = params.dy;
  const int64_t blocks = (dy.size[1] + Tile::kChannels - 1) / Tile::kChannels;
  if (blocks > INT32_MAX) return {label.text, "channels beyond 32 bits"};
  const BiasGradOrder order = {make_axis(dy.size[3]), make_axis(dy.size[2]), int32_t(blocks)};
  return launch_line(
      label.text, bias_grad<T, V, kChannelsLast, kMasked>, blocks * params.split.splits, 1,
      kBiasThreads, Tile::kRows * Tile::kChannels * int(sizeof(Compute<T>)), stream, params, order);
}

template <class T, bool kMasked>
Status launch_bias_grad(BiasGradParams params, Stream stream) {
  constexpr int V = 16 / int(sizeof(T));
  View* const views[] = {&params.dy, &params.y, &params.dz};
  const int count = kMasked ? 3 : 1;
  join_pixels(views, count);
  bool last = params.dy.size[1] > 1, channels = true, rows = true;
  for (int i = 0; i < count; ++i) {
    last = last && views[i]->stride[1] == 1;
    channels = channels && whole_chunks(*views[i], V, int(sizeof(T)));
    rows = rows && whole_rows_of_pixels(*views[i], V, int(sizeof(T)));
  }
  if (last && channels) return launch_bias_grad<T, V, true, kMasked>(params, stream);
  if (last) return launch_bias_grad<T, 1, true, kMasked>(params, stream);
  if (rows) return launch_bias_grad<T, V, false, kMasked>(params, stream);
  return launch_bias_grad<T, 1, false, kMasked>(params, stream);
}

template <class T>
Status launch_bias_grad(const BiasGradParams& params, Stream stream) {
  return params.y.data != nullptr ? launch_bias_grad<T, true>(params, stream)
                                  : launch_bias_grad<T, false>(params, stream);
}

}  // namespace fastconv::cuda
