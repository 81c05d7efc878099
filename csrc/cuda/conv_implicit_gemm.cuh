// Convolution as a matrix product on tensor cores: M = N P Q pixels times K channels over the depth
// R S C, whose operand of pixels is never stored (implicit GEMM).
//
// The trick: the depth is cut into 16-byte chunks of channels, and a thread copies the same chunk
// column of every row, so one position (r, s, c), advanced without divisions, serves all its rows;
// what a tap reads outside the input is one bit of a row's word of R + S bits.
//
// Limits: implicit_gemm_refusal() in conv_params.h. conv1x1 is the same loop without taps.
#pragma once
#include "conv_params.h"
#include "dialect.cuh"
#include "gemm_tile.cuh"
#include "store_tile.cuh"
#include "tiles.h"

namespace fastconv::cuda {

// One thread's share of copying the two operands of a step into a stage.
template <class Config>
struct Loader {
  static constexpr int kBytes = sizeof(typename Config::T);
  static constexpr uint32_t kNever = 1u << 15;  // a tap that is outside for every row

  const char* a_row[Config::kLoadsA];
  uint32_t a_outside[Config::kLoadsA];  // bit r, and bit 16 + s: the tap is outside the input
  const char* b_row[Config::kLoadsB];
  int64_t a_offset;        // bytes from a row's first tap to this position
  int64_t next_s, next_r;  // added to it where c, where s begins anew
  int left, c;             // depth left and channel, of this thread's chunk column
  uint32_t tap_r, tap_s;   // 1 << r, 1 << (16 + s)
  uint32_t to;             // of its first row in a stage

  FASTCONV_DEVICE void start(const ConvParams& p, int m0, int n0, int group, int k_begin) {
    const int column = threadIdx.x % Config::kChunks, row = threadIdx.x / Config::kChunks;
    to = row * Config::kRowBytes + swizzle<Config::kRowBytes>(row, column) * 16;
    const int k = k_begin + column * Chunk<typename Config::T>::kSize;
    left = min_of(p.depth, k_begin + p.split_depth) - k;
    const int tap = Config::kPointwise ? 0 : k / p.C, r = tap / p.S, s = tap - r * p.S;
    c = k - tap * p.C;
    tap_r = 1u << r, tap_s = 1u << (16 + s);
    const int64_t pixel = p.at.x_pixel * kBytes, line = p.W * pixel;
    a_offset = r * p.dil_h * line + s * p.dil_w * pixel + c * kBytes;
    next_s = p.dil_w * pixel - p.C * kBytes;
    next_r = p.dil_h * line - p.S * p.dil_w * pixel;
    const char* x = static_cast<const char*>(p.at.x) + int64_t(group) * p.C * kBytes;
#pragma unroll
    for (int i = 0; i < Config::kLoadsA; ++i) {
      const int m = m0 + row + i * Config::kRowsPerPass;
      a_row[i] = x;
      a_outside[i] = ~0u;
      if (m >= p.M) continue;
      const Pixel at = pixel_of(p, m);
      const int h = at.p * p.stride_h - p.pad_t, w = at.q * p.stride_w - p.pad_l;
      a_row[i] = x + at.n * (p.H * line) + h * line + w * pixel;
      a_outside[i] = Config::kPointwise ? ~(1u | 1u << 16) : outside(p, h, w);
    }
    const char* weights = static_cast<const char*>(p.at.w);
#pragma unroll
    for (int i = 0; i < Config::kLoadsB; ++i) {
      // Rows past the last channel copy that channel; their outputs are dropped.
      const int n = min_of(n0 + row + i * Config::kRowsPerPass, p.K - 1);
      b_row[i] = weights + ((int64_t(group) * p.K + n) * p.depth + k) * kBytes;
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

  // Starts copying the current step into `stage` and moves on by one step.
  FASTCONV_DEVICE void load(const ConvParams& p, uint32_t stage) {
    const bool inside = left > 0;
    const uint32_t tap = inside ? tap_r | tap_s : kNever;
    constexpr int kPass = Config::kRowsPerPass * Config::kRowBytes;
#pragma unroll
    for (int i = 0; i < Config::kLoadsA; ++i)
      ptx::cp_async<16>(stage + to + i * kPass, a_row[i] + a_offset, (a_outside[i] & tap) == 0);
#pragma unroll
    for (int i = 0; i < Config::kLoadsB; ++i) {
      ptx::cp_async<16>(stage + Config::kBytesA + to + i * kPass, b_row[i], inside);
      b_row[i] += Config::kTile.bk * kBytes;
    }
    ptx::cp_async_commit_group();
    left -= Config::kTile.bk;
    a_offset += Config::kTile.bk * kBytes;
    if constexpr (Config::kPointwise) return;
    c += Config::kTile.bk;
    while (c >= p.C) {
      c -= p.C;
      a_offset += next_s;
      tap_s <<= 1;
      if (tap_s == 1u << (16 + p.S)) {
        tap_s = 1u << 16, tap_r <<= 1;
        a_offset += next_r;
      }
    }
  }
};

// grid: (tiles of M) x (tiles of K), those of K fastest; groups; splits.
template <class Config>
__global__ void __launch_bounds__(Config::kThreads, Config::kTile.blocks)
    conv_implicit_gemm(const ConvParams __grid_constant__ params) {
  constexpr Tile tile = Config::kTile;
  const int tiles_n = (params.K + tile.bn - 1) / tile.bn;
  const int m0 = blockIdx.x / tiles_n * tile.bm, n0 = blockIdx.x % tiles_n * tile.bn;
  const int k_begin = blockIdx.z * params.split_depth;
  const int depth = min_of(params.depth - k_begin, params.split_depth);
  const uint32_t first = ptx::shared_address(shared_memory());
  const uint32_t end = first + tile.stages * Config::kStageBytes;

  Loader<Config> loader;
  loader.start(params, m0, n0, blockIdx.y, k_begin);
  uint32_t write = first, read = first;
  auto next = [&](uint32_t stage) {
    stage += Config::kStageBytes;
    return stage == end ? first : stage;
  };
#pragma unroll
  for (int i = 0; i < tile.stages - 1; ++i) {
    loader.load(params, write);
    write = next(write);
  }
  WarpTile<Config> warp;
  warp.start();
  if constexpr (Config::kPrefetch) {
    // Fragments are read one step of the tensor core ahead, across the change of stages.
    ptx::cp_async_wait_group<tile.stages - 2>();
    __syncthreads();
    warp.read(read, 0);
  }
#pragma unroll 1
  for (int k = 0; k < depth; k += tile.bk) {
    if constexpr (!Config::kPrefetch) {
      ptx::cp_async_wait_group<tile.stages - 2>();
      __syncthreads();
    }
#pragma unroll
    for (int step = 0; step < Config::kSteps; ++step) {
      const bool last = step == Config::kSteps - 1;
      if constexpr (Config::kPrefetch) {
        if (last) {
          ptx::cp_async_wait_group<tile.stages - 2>();
          __syncthreads();
          read = next(read);
        }
        warp.read(read, (step + 1) % Config::kSteps);
      } else {
        warp.read(read, step);
      }
      if (step == 0) {
        // Into the stage whose last reads were before the latest barrier.
        loader.load(params, write);
        write = next(write);
      }
      warp.multiply(step);
    }
    warp.promote();
    if constexpr (!Config::kPrefetch) read = next(read);
  }
  ptx::cp_async_wait_group<0>();
  __syncthreads();  // the stages become the slabs of store_tile
  store_tile<Config>(params, warp.sums(), first, m0, n0);
}

}  // namespace fastconv::cuda
