// Weight gradient as a matrix product on tensor cores: M = K channels times R S C over the N P Q
// pixels. Both operands lie across the depth, pixels of channels, and are transposed on the way to
// registers. Splits of the pixels leave float32 sums, which add_parts (grad_sums.cuh) adds in
// order.
//
// A thread copies the same chunk of every pixel's row, so its tap (r, s) and channel are fixed for
// the whole loop. Where a pixel reads the input is divided out once, a few steps ahead, and passed
// through a ring in shared memory. As its channels are fixed too, the blocks of the first tile of
// R S C sum the dy that they copied for the bias gradient.
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
  static constexpr int kSize = Chunk<T>::kSize, kBk = Config::kTile.bk;
  // Of the ring, behind the stages: two halves of as many steps as there are stages, 8 bytes a
  // pixel. A step's part is written that many steps before it is read, so barriers lie between.
  static constexpr uint32_t kStep = kBk * 8, kHalf = kStep * Config::kTile.stages;
  static_assert(kBk <= Config::kThreads && 2 * kHalf <= kPixelRingBytes);

  const T *dy, *x;  // of this thread's chunk: dy at its first row, x at its tap of pixel 0
  int a_pixel, b_pixel, end;
  int tap_h, tap_w;  // of its tap, less the padding
  uint32_t a_to, b_to, ring, turn;
  bool summing;
  float sums[kSize];  // of this thread's channels and pixels

  FASTCONV_DEVICE void start(const ConvParams& p, int m0, int n0, int begin) {
    end = begin + min_of(p.M - begin, p.split_depth);
    const int a_column = threadIdx.x % A::kChunks, a_row = threadIdx.x / A::kChunks;
    a_to = a_row * A::kRowBytes + swizzle_depth<T, A::kRowBytes>(a_row, a_column) * 16;
    a_pixel = begin + a_row;
#pragma unroll
    for (int e = 0; e < kSize; ++e) sums[e] = 0;
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
    if constexpr (Config::kPointwise) {
      x += b_pixel * p.at.x_pixel;
    } else {
      ring = ptx::shared_address(shared_memory()) + Config::kTile.stages * Config::kStageBytes;
      turn = 0;
      for (int i = threadIdx.x; i < kBk * Config::kTile.stages; i += Config::kThreads)
        note(p, ring + i * 8, begin + i);
      b_pixel = begin + kBk * Config::kTile.stages + threadIdx.x;  // that it notes next
      __syncthreads();
    }
  }

  // Of a stage, what this thread copied.
  FASTCONV_DEVICE void sum_dy(uint32_t stage) {
    if (!summing) return;
    float part[kSize] = {};
#pragma unroll
    for (int i = 0; i < A::kLoads; ++i) {
      const auto chunk = ptx::ld_shared<Chunk<T>>(stage + a_to + i * A::kPassBytes);
#pragma unroll
      for (int e = 0; e < kSize; ++e) part[e] += widen(chunk.at[e]);
    }
#pragma unroll
    for (int e = 0; e < kSize; ++e) sums[e] += part[e];
  }

  // The block's sums of dy in order, to the K of its `channels`; the stages are free.
  FASTCONV_DEVICE void store_sums(float* to, int channels) {
    static_assert(A::kRowsPerPass * Config::kTile.bm * 4 <= Config::kSharedBytes);
    const uint32_t shared = ptx::shared_address(shared_memory());
    const int column = threadIdx.x % A::kChunks, row = threadIdx.x / A::kChunks;
#pragma unroll
    for (int e = 0; e < kSize; ++e)
      ptx::st_shared(shared + (row * Config::kTile.bm + column * kSize + e) * 4, sums[e]);
    __syncthreads();
    for (int k = threadIdx.x; k < min_of(Config::kTile.bm, channels); k += Config::kThreads) {
      float sum = 0;
      for (int i = 0; i < A::kRowsPerPass; ++i)
        sum += ptx::ld_shared<float>(shared + (i * Config::kTile.bm + k) * 4);
      ptx::st_global(to + k, sum);
    }
  }

  // Pixel m's place in x, and its row and column there, 16 bits each: far outside past the end.
  FASTCONV_DEVICE void note(const ConvParams& p, uint32_t to, int m) const {
    int2 at = make_int2(0, -1);
    if (m < end) {
      const Pixel out = pixel_of(p, m);
      const int h = out.p * p.stride_h, w = out.q * p.stride_w;
      at = make_int2((out.n * p.H + h) * p.W + w, int(unsigned(h) | unsigned(w) << 16));
    }
    ptx::st_shared(to, at);
  }

  FASTCONV_DEVICE void load(const ConvParams& p, uint32_t stage) {
#pragma unroll
    for (int i = 0; i < A::kLoads; ++i)
      ptx::cp_async<16>(stage + a_to + i * A::kPassBytes, dy + i * A::kRowsPerPass * p.at.y_pixel,
                        a_pixel + i * A::kRowsPerPass < end);
    dy += kBk * p.at.y_pixel;
    a_pixel += kBk;
    if constexpr (Config::kPointwise) {
#pragma unroll
      for (int i = 0; i < B::kLoads; ++i)
        ptx::cp_async<16>(stage + b_to + i * B::kPassBytes, x + i * B::kRowsPerPass * p.at.x_pixel,
                          b_pixel + i * B::kRowsPerPass < end);
      x += kBk * p.at.x_pixel;
    } else {
      const uint32_t from = ring + turn + threadIdx.x / B::kChunks * 8;
#pragma unroll
      for (int i = 0; i < B::kLoads; ++i) {
        const int2 at = ptx::ld_shared<int2>(from + i * B::kRowsPerPass * 8);
        const unsigned h = (at.y & 0xffff) + tap_h, w = (unsigned(at.y) >> 16) + tap_w;
        ptx::cp_async<16>(stage + b_to + i * B::kPassBytes, x + at.x * p.at.x_pixel,
                          h < unsigned(p.H) && w < unsigned(p.W));
      }
      const uint32_t later = turn < kHalf ? turn + kHalf : turn - kHalf;
      if (threadIdx.x < kBk) note(p, ring + later + threadIdx.x * 8, b_pixel);
      turn = turn + kStep == 2 * kHalf ? 0 : turn + kStep;
    }
    b_pixel += kBk;
    ptx::cp_async_commit_group();
  }
};

// `bias`: [splits][K], the bias gradient's parts; may be null.
// grid: (tiles of K) x (tiles of R S C), the latter fastest; groups; splits.
template <class Config>
__global__ void __launch_bounds__(Config::kThreads, Config::kTile.blocks)
    conv_weight_grad(const ConvParams __grid_constant__ p, float* bias) {
  constexpr Tile tile = Config::kTile;
  constexpr int kWarpsN = tile.bn / tile.wn;
  const int tiles_n = (p.depth + tile.bn - 1) / tile.bn;
  const int m0 = blockIdx.x / tiles_n * tile.bm, n0 = blockIdx.x % tiles_n * tile.bn;
  const int begin = blockIdx.z * p.split_depth;
  GradLoader<Config> loader;
  loader.summing = bias != nullptr && n0 == 0;
  loader.start(p, m0, n0, begin);
  WarpTile<Config> warp;
  multiply_steps<Config>(loader, p, min_of(p.M - begin, p.split_depth),
                         ptx::shared_address(shared_memory()), warp);
  const int lane = threadIdx.x % 32, w = threadIdx.x / 32;
  const int row = m0 + w / kWarpsN * tile.wm + lane / 4;
  const int column = n0 + w % kWarpsN * tile.wn + lane % 4 * 2;
  const int64_t K = int64_t(p.K) * p.groups;
  if (loader.summing)
    loader.store_sums(bias + blockIdx.z * K + int64_t(blockIdx.y) * p.K + m0, p.K - m0);
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
