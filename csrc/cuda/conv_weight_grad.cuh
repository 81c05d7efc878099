// Weight gradient as a matrix product on tensor cores: M = K channels times R S C over the N P Q
// pixels. Both operands lie across the depth, pixels of channels, and are transposed on the way to
// registers. Splits of the pixels leave float32 sums, which add_parts (grad_sums.cuh) adds in
// order.
//
// A thread copies the same chunk of every pixel's row, so its tap (r, s) and channel are fixed for
// the whole loop; pixels advance, and are divided into (n, p, q).
//
// Limits: gemm_grad_refusal() in conv_grad_params.h.
#pragma once
#include "gemm_loop.cuh"
#include "store_tile.cuh"

namespace fastconv::cuda {

template <class Config>
struct GradLoader {
  using A = typename Config::A;
  using B = typename Config::B;
  using T = typename Config::T;
  static constexpr int kSize = Chunk<T>::kSize;

  const T *dy, *x;  // of this thread's chunk: dy at its first row, x at its tap of pixel 0
  int a_pixel, b_pixel, end;
  int tap_h, tap_w;  // of its tap, less the padding; far outside past the last weight
  uint32_t a_to, b_to;

  FASTCONV_DEVICE void start(const ConvParams& p, int m0, int n0, int begin) {
    end = min_of(p.M, begin + p.split_depth);
    const int a_column = threadIdx.x % A::kChunks, a_row = threadIdx.x / A::kChunks;
    a_to = a_row * A::kRowBytes + swizzle_depth<T, A::kRowBytes>(a_row, a_column) * 16;
    a_pixel = begin + a_row;
    // Chunks past the last channel copy that one; their sums are dropped.
    const int k = min_of(m0 + a_column * kSize, p.K - kSize);
    dy = static_cast<const T*>(p.at.y) + int64_t(blockIdx.y) * p.K + k + a_pixel * p.at.y_pixel;

    const int b_column = threadIdx.x % B::kChunks, b_row = threadIdx.x / B::kChunks;
    b_to = Config::kBytesA + b_row * B::kRowBytes +
           swizzle_depth<T, B::kRowBytes>(b_row, b_column) * 16;
    b_pixel = begin + b_row;
    const int n = min_of(n0 + b_column * kSize, p.depth - kSize);
    const int tap = Config::kPointwise ? 0 : divide(n, p.by_channels), r = divide(tap, p.by_taps);
    tap_h = r * p.dil_h - p.pad_t, tap_w = (tap - r * p.S) * p.dil_w - p.pad_l;
    x = static_cast<const T*>(p.at.x) + int64_t(blockIdx.y) * p.C + n - tap * p.C +
        (int64_t(tap_h) * p.W + tap_w) * p.at.x_pixel;
    if constexpr (Config::kPointwise) x += b_pixel * p.at.x_pixel;
  }

  FASTCONV_DEVICE void load(const ConvParams& p, uint32_t stage) {
#pragma unroll
    for (int i = 0; i < A::kLoads; ++i)
      ptx::cp_async<16>(stage + a_to + i * A::kPassBytes, dy + i * A::kRowsPerPass * p.at.y_pixel,
                        a_pixel + i * A::kRowsPerPass < end);
    dy += Config::kTile.bk * p.at.y_pixel;
    a_pixel += Config::kTile.bk;
#pragma unroll
    for (int i = 0; i < B::kLoads; ++i) {
      const int m = b_pixel + i * B::kRowsPerPass;
      const uint32_t to = stage + b_to + i * B::kPassBytes;
      if constexpr (Config::kPointwise) {
        ptx::cp_async<16>(to, x + i * B::kRowsPerPass * p.at.x_pixel, m < end);
      } else {
        const Pixel at = pixel_of(p, m);
        const int h = at.p * p.stride_h, w = at.q * p.stride_w;
        const bool inside =
            unsigned(h + tap_h) < unsigned(p.H) && unsigned(w + tap_w) < unsigned(p.W) && m < end;
        const int pixel = (at.n * p.H + h) * p.W + w;
        ptx::cp_async<16>(to, x + pixel * p.at.x_pixel, inside);
      }
    }
    if constexpr (Config::kPointwise) x += Config::kTile.bk * p.at.x_pixel;
    b_pixel += Config::kTile.bk;
    ptx::cp_async_commit_group();
  }
};

// grid: (tiles of K) x (tiles of R S C), the latter fastest; groups; splits.
template <class Config>
__global__ void __launch_bounds__(Config::kThreads, Config::kTile.blocks)
    conv_weight_grad(const ConvParams __grid_constant__ p) {
  constexpr Tile tile = Config::kTile;
  constexpr int kWarpsN = tile.bn / tile.wn;
  const int tiles_n = (p.depth + tile.bn - 1) / tile.bn;
  const int m0 = blockIdx.x / tiles_n * tile.bm, n0 = blockIdx.x % tiles_n * tile.bn;
  const int begin = blockIdx.z * p.split_depth;
  GradLoader<Config> loader;
  loader.start(p, m0, n0, begin);
  WarpTile<Config> warp;
  multiply_steps<Config>(loader, p, min_of(p.M - begin, p.split_depth),
                         ptx::shared_address(shared_memory()), warp);
  const int lane = threadIdx.x % 32, w = threadIdx.x / 32;
  const int row = m0 + w / kWarpsN * tile.wm + lane / 4;
  const int column = n0 + w % kWarpsN * tile.wn + lane % 4 * 2;
  const int64_t K = int64_t(p.K) * p.groups;
  float* to = p.at.partial + (blockIdx.z * K + int64_t(blockIdx.y) * p.K) * p.depth;
  auto& sums = warp.sums();
#pragma unroll
  for (int i = 0; i < WarpTile<Config>::kRows; ++i)
#pragma unroll
    for (int j = 0; j < WarpTile<Config>::kColumns; ++j)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int k = row + 16 * i + 8 * half, n = column + 8 * j;
        if (k < p.K && n < p.depth)
          ptx::st_global(reinterpret_cast<float2*>(to + int64_t(k) * p.depth + n),
                         make_float2(sums[i][j][2 * half], sums[i][j][2 * half + 1]));
      }
}

}  // namespace fastconv::cuda
