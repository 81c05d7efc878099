// Convolution as a matrix product on tensor cores: M = N P Q pixels times K channels over the depth
// R S C, whose operand of pixels is never stored (implicit GEMM). The input gradient is the same
// product of dy, stride phase by stride phase, with the weights read in place (conv_grad_params.h).
//
// The trick: the depth is cut into 16-byte chunks of channels, and a thread copies the same chunk
// column of every row, so one position (r, s, c), advanced without divisions, serves all its rows;
// what a tap reads outside the input is one bit of a row's word of R + S bits.
//
// Limits: implicit_gemm_refusal() in conv_params.h. conv1x1 is the same loop without taps.
#pragma once
#include "conv_grad_params.h"
#include "gemm_loop.cuh"
#include "store_tile.cuh"

namespace fastconv::cuda {

// One thread's share of copying a step of the pixels into a stage.
template <class Config>
struct PixelLoader {
  using A = typename Config::A;
  static constexpr int kBytes = sizeof(typename Config::T);
  static constexpr uint32_t kNever = 1u << 15;  // a tap that is outside for every row

  const char* row_at[A::kLoads];
  uint32_t outside_at[A::kLoads];  // bit r, and bit 16 + s: the tap is outside the input
  int64_t offset;                  // bytes from a row's first tap to this position
  int64_t next_s, next_r;          // added to it where c, where s begins anew
  int left, c;                     // depth left and channel, of this thread's chunk column
  uint32_t tap_r, tap_s;           // 1 << r, 1 << (16 + s)
  uint32_t to;                     // of its first row in a stage

  FASTCONV_DEVICE void start(const ConvParams& p, int m0, int k_begin) {
    const int column = threadIdx.x % A::kChunks, row = threadIdx.x / A::kChunks;
    to = row * A::kRowBytes + swizzle<A::kRowBytes>(row, column) * 16;
    const int k = k_begin + column * Chunk<typename Config::T>::kSize;
    left = min_of(p.depth, k_begin + p.split_depth) - k;
    const int tap = Config::kPointwise ? 0 : k / p.C, r = tap / p.S, s = tap - r * p.S;
    c = k - tap * p.C;
    tap_r = 1u << r, tap_s = 1u << (16 + s);
    const int64_t pixel = p.at.x_pixel * kBytes, line = p.W * pixel;
    offset = r * p.dil_h * line + s * p.dil_w * pixel + c * kBytes;
    next_s = p.dil_w * pixel - p.C * kBytes;
    next_r = p.dil_h * line - p.S * p.dil_w * pixel;
    const char* x = static_cast<const char*>(p.at.x) + int64_t(blockIdx.y) * p.C * kBytes;
#pragma unroll
    for (int i = 0; i < A::kLoads; ++i) {
      const int m = m0 + row + i * A::kRowsPerPass;
      row_at[i] = x;
      outside_at[i] = ~0u;
      if (m >= p.M) continue;
      const Pixel at = pixel_of(p, m);
      const int h = at.p * p.stride_h - p.pad_t, w = at.q * p.stride_w - p.pad_l;
      row_at[i] = x + at.n * (p.H * line) + h * line + w * pixel;
      outside_at[i] = Config::kPointwise ? ~(1u | 1u << 16) : outside(p, h, w);
    }
  }

  static FASTCONV_DEVICE uint32_t outside(const ConvParams& p, int h, int w) {
    uint32_t word = ~0u;
#pragma unroll 1
    for (int r = 0; r < p.R; ++r, h += p.dil_h)
      if (h >= 0 && h < p.H) word &= ~(1u << r);
#pragma unroll 1
    for (int s = 0; s < p.S; ++s, w += p.dil_w)
      if (w >= 0 && w < p.W) word &= ~(1u << (16 + s));
    return word;
  }

  FASTCONV_DEVICE void load(uint32_t stage) const {
    const uint32_t tap = left > 0 ? tap_r | tap_s : kNever;
#pragma unroll
    for (int i = 0; i < A::kLoads; ++i)
      ptx::cp_async<16>(stage + to + i * A::kPassBytes, row_at[i] + offset,
                        (outside_at[i] & tap) == 0);
  }

  FASTCONV_DEVICE void move(const ConvParams& p) {
    left -= Config::kTile.bk;
    offset += Config::kTile.bk * kBytes;
    if constexpr (Config::kPointwise) return;
    c += Config::kTile.bk;
    while (c >= p.C) {
      c -= p.C;
      offset += next_s;
      tap_s <<= 1;
      if (tap_s == 1u << (16 + p.S)) {
        tap_s = 1u << 16, tap_r <<= 1;
        offset += next_r;
      }
    }
  }
};

// The weights of the forward pass: a row is the whole depth of an output channel.
template <class Config>
struct WeightLoader {
  using B = typename Config::B;
  static constexpr int kBytes = sizeof(typename Config::T);
  const char* row_at[B::kLoads];
  uint32_t to;

  FASTCONV_DEVICE void start(const ConvParams& p, int n0, int k_begin) {
    const int column = threadIdx.x % B::kChunks, row = threadIdx.x / B::kChunks;
    to = Config::kBytesA + row * B::kRowBytes + swizzle<B::kRowBytes>(row, column) * 16;
    const int k = k_begin + column * Chunk<typename Config::T>::kSize;
    const char* weights = static_cast<const char*>(p.at.w);
#pragma unroll
    for (int i = 0; i < B::kLoads; ++i) {
      // Rows past the last channel copy that channel; their outputs are dropped.
      const int n = min_of(n0 + row + i * B::kRowsPerPass, p.K - 1);
      row_at[i] = weights + ((int64_t(blockIdx.y) * p.K + n) * p.depth + k) * kBytes;
    }
  }

  // `left`: depth left in this thread's chunk column.
  FASTCONV_DEVICE void load(const ConvParams&, uint32_t stage, int left) {
#pragma unroll
    for (int i = 0; i < B::kLoads; ++i) {
      ptx::cp_async<16>(stage + to + i * B::kPassBytes, row_at[i], left > 0);
      row_at[i] += Config::kTile.bk * kBytes;
    }
  }
};

// The weights of the input gradient in place: a row of depth (r, s, k) is chunks of c. Behind the
// stages lies for each tap where its weights begin, less what k = tap K adds.
template <class Config>
struct WeightGradLoader {
  using B = typename Config::B;
  using T = typename Config::T;
  const T* from;
  int depth, end;  // of this thread's first row
  uint32_t to, taps;

  FASTCONV_DEVICE void start(const ConvParams& p, int n0, int k_begin) {
    const int column = threadIdx.x % B::kChunks, row = threadIdx.x / B::kChunks;
    to = Config::kBytesA + row * B::kRowBytes + swizzle_depth<T, B::kRowBytes>(row, column) * 16;
    // Chunks past the last copy that one; their outputs are dropped.
    const int n = min_of(n0 + column * Chunk<T>::kSize, p.K - Chunk<T>::kSize);
    from = static_cast<const T*>(p.at.w) + p.weight.first + blockIdx.y * p.weight.group + n;
    depth = k_begin + row;
    end = min_of(p.depth, k_begin + p.split_depth);
    if constexpr (Config::kPointwise) return;
    taps = ptx::shared_address(shared_memory()) + Config::kTile.stages * Config::kStageBytes;
    for (int tap = threadIdx.x; tap < p.R * p.S; tap += Config::kThreads) {
      const int r = tap / p.S, s = tap - r * p.S;
      const int64_t start = int64_t(r) * p.weight.r + int64_t(s) * p.weight.s;
      ptx::st_shared(taps + tap * 8, start - int64_t(tap) * p.C * p.weight.c);
    }
    __syncthreads();
  }

  FASTCONV_DEVICE void load(const ConvParams& p, uint32_t stage, int) {
#pragma unroll
    for (int i = 0; i < B::kLoads; ++i) {
      const int k = depth + i * B::kRowsPerPass;
      const T* row = from + int64_t(k) * p.weight.c;
      if constexpr (!Config::kPointwise)
        row += ptx::ld_shared<int64_t>(taps + (k < end ? divide(k, p.by_channels) : 0) * 8);
      ptx::cp_async<16>(stage + to + i * B::kPassBytes, row, k < end);
    }
    depth += Config::kTile.bk;
  }
};

template <class Config>
struct ConvLoader {
  PixelLoader<Config> pixels;
  typename std::conditional<Config::kDepthRowsB, WeightGradLoader<Config>,
                            WeightLoader<Config>>::type weights;

  FASTCONV_DEVICE void load(const ConvParams& p, uint32_t stage) {
    pixels.load(stage);
    weights.load(p, stage, pixels.left);
    ptx::cp_async_commit_group();
    pixels.move(p);
  }
};

// grid: (tiles of M) x (tiles of K), those of K fastest; groups; phases x splits.
template <class Config>
__global__ void __launch_bounds__(Config::kThreads, Config::kTile.blocks)
    conv_implicit_gemm(const ParamsOf<Config::kDirection> __grid_constant__ all) {
  constexpr Tile tile = Config::kTile;
  const ConvParams& params = phase_of(all, blockIdx.z);
  const int tiles_n = (params.K + tile.bn - 1) / tile.bn;
  const int m0 = blockIdx.x / tiles_n * tile.bm, n0 = blockIdx.x % tiles_n * tile.bn;
  if (Config::kDirection != Direction::forward && m0 >= params.M) return;  // of a smaller phase
  const int split = split_of<Config::kDirection>(params, blockIdx.z);
  const int k_begin = split * params.split_depth;
  const int depth = min_of(params.depth - k_begin, params.split_depth);
  const uint32_t first = ptx::shared_address(shared_memory());
  ConvLoader<Config> loader;
  loader.pixels.start(params, m0, k_begin);
  loader.weights.start(params, n0, k_begin);
  WarpTile<Config> warp;
  multiply_steps<Config>(loader, params, depth, first, warp);
  store_tile<Config>(params, warp.sums(), first, m0, n0, split);
}

}  // namespace fastconv::cuda
