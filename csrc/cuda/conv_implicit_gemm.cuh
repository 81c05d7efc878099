// Convolution as a matrix product on tensor cores: M = N P Q pixels times K channels over the depth
// R S C, whose operand of pixels is never stored (implicit GEMM). The input gradient is the same
// product of dy, stride phase by stride phase, with the weights read in place (conv_grad_params.h).
//
// The trick: the depth is cut into 16-byte chunks of channels, and a thread copies the same chunk
// column of every row, so one position (r, s, c), advanced without divisions, serves all its rows;
// what a tap reads outside the input is one bit of a row's word of R + S bits. In the input
// gradient the same position says where the weights of that chunk's rows begin: lanes of a warp
// pass it on.
//
// Limits: implicit_gemm_refusal() in conv_params.h. conv1x1 is the same loop without taps.
#pragma once
#include "conv_grad_params.h"
#include "gemm_loop.cuh"
#include "store_tile.cuh"

namespace fastconv::cuda {

// What the next tap adds to a thread's position: where s moves on, and more where s begins anew.
// Of the input gradient it lies behind the stages, or a phase's would take registers.
struct PixelTurn {
  int64_t next_s, next_r;  // bytes
};
struct WeightTurn {
  uint32_t next_s, next_r;  // chunks of 16 bytes
  int32_t C;
  uint32_t end;  // 1 << (16 + S)
};

// One thread's share of copying a step of the pixels into a stage.
template <class Config>
struct PixelLoader {
  using A = typename Config::A;
  static constexpr int kBytes = sizeof(typename Config::T);
  static constexpr uint32_t kNever = 1u << 15;  // a tap that is outside for every row

  const char* row_at[A::kLoads];
  uint32_t outside_at[A::kLoads];  // bit r, and bit 16 + s: the tap is outside the input
  int64_t offset;                  // bytes from a row's first tap to this position
  PixelTurn turn;
  int left, c;            // depth left and channels of this tap left, of this thread's column
  uint32_t tap_r, tap_s;  // 1 << r, 1 << (16 + s)
  uint32_t to;            // of its first row in a stage
  uint32_t turns;         // kPhases: a PixelTurn and a WeightTurn, in shared memory
  uint32_t weights, weights_step;  // kPhases: of this position, in chunks

  FASTCONV_DEVICE void start(const ConvParams& p, int m0, int k_begin) {
    const int column = threadIdx.x % A::kChunks, row = threadIdx.x / A::kChunks;
    to = row * A::kRowBytes + swizzle<A::kRowBytes>(row, column) * 16;
    const int k = k_begin + column * Chunk<typename Config::T>::kSize;
    left = min_of(p.depth, k_begin + p.split_depth) - k;
    const int tap = Config::kPointwise ? 0 : divide(k, p.by_channels), r = divide(tap, p.by_taps),
              s = tap - r * p.S;
    c = (tap + 1) * p.C - k;
    tap_r = 1u << r, tap_s = 1u << (16 + s);
    const int64_t pixel = p.at.x_pixel * kBytes, line = p.W * pixel;
    offset = r * p.dil_h * line + s * p.dil_w * pixel + (p.C - c) * kBytes;
    turn = {p.dil_w * pixel - p.C * kBytes, p.dil_h * line - p.S * p.dil_w * pixel};
    if constexpr (Config::kPhases) start_weights(p, r, s);
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

  FASTCONV_DEVICE void start_weights(const ConvParams& p, int r, int s) {
    constexpr int kSize = Chunk<typename Config::T>::kSize;
    const WeightStrides& at = p.weight;  // whole chunks, but for k
    const auto chunks = [](int64_t elements) { return uint32_t(elements / kSize); };
    weights = chunks(at.first + int64_t(r) * at.r + int64_t(s) * at.s + int64_t(p.C - c) * at.c);
    weights_step = chunks(int64_t(at.c) * Config::kTile.bk);
    turns = ptx::shared_address(shared_memory()) + Config::kTile.stages * Config::kStageBytes;
    static_assert(sizeof(PixelTurn) + sizeof(WeightTurn) <= kTurnBytes);
    if (threadIdx.x == 0) {
      ptx::st_shared(turns, turn);
      ptx::st_shared(turns + uint32_t(sizeof(PixelTurn)),
                     WeightTurn{chunks(at.s - int64_t(p.C) * at.c),
                                chunks(at.r - int64_t(p.S) * at.s), p.C, 1u << (16 + p.S)});
    }
    __syncthreads();
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
    c -= Config::kTile.bk;
    if constexpr (Config::kPhases) {
      weights += weights_step;
      if (c <= 0)
        next_tap(ptx::ld_shared<PixelTurn>(turns),
                 ptx::ld_shared<WeightTurn>(turns + uint32_t(sizeof(PixelTurn))));
    } else {
      if (c <= 0) next_tap(turn, {0, 0, p.C, 1u << (16 + p.S)});
    }
  }

  FASTCONV_DEVICE void next_tap(const PixelTurn& pixel, const WeightTurn& weight) {
#pragma unroll 1
    do {
      c += weight.C;
      offset += pixel.next_s, weights += weight.next_s;
      tap_s <<= 1;
      if (tap_s == weight.end) {
        tap_s = 1u << 16, tap_r <<= 1;
        offset += pixel.next_r, weights += weight.next_r;
      }
    } while (c <= 0);
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

  // `at`: the position of this thread's chunk column.
  FASTCONV_DEVICE void load(const ConvParams&, uint32_t stage, const PixelLoader<Config>& at) {
#pragma unroll
    for (int i = 0; i < B::kLoads; ++i) {
      ptx::cp_async<16>(stage + to + i * B::kPassBytes, row_at[i], at.left > 0);
      row_at[i] += Config::kTile.bk * kBytes;
    }
  }
};

// The weights of the input gradient in place: a row of depth (r, s, k) is chunks of c.
template <class Config>
struct WeightGradLoader {
  using B = typename Config::B;
  using T = typename Config::T;
  static constexpr int kSize = Chunk<T>::kSize;
  const char* from;  // at this thread's next row; kPhases: at its row of the first chunk of depth
  int row;           // its first in a step
  int left;          // pointwise: depth left from its next row on
  uint32_t to;

  FASTCONV_DEVICE void start(const ConvParams& p, int n0, int k_begin) {
    const int column = threadIdx.x % B::kChunks;
    row = threadIdx.x / B::kChunks;
    to = Config::kBytesA + row * B::kRowBytes + swizzle_depth<T, B::kRowBytes>(row, column) * 16;
    // Chunks past the last copy that one; their outputs are dropped.
    const int n = min_of(n0 + column * kSize, p.K - kSize);
    const T* first = static_cast<const T*>(p.at.w) + blockIdx.y * p.weight.group + n;
    if constexpr (Config::kPointwise) {
      first += int64_t(k_begin + row) * p.weight.c;
      left = min_of(p.depth - k_begin, p.split_depth) - row;
    } else {
      first += int64_t(row % kSize) * p.weight.c;
    }
    from = reinterpret_cast<const char*>(first);
  }

  FASTCONV_DEVICE void load(const ConvParams& p, uint32_t stage, const PixelLoader<Config>& at) {
    if constexpr (Config::kPointwise) {
      static_assert(B::kLoads * B::kRowsPerPass == Config::kTile.bk);
      const int64_t pass = int64_t(p.weight.c) * (B::kRowsPerPass * int(sizeof(T)));
#pragma unroll
      for (int i = 0; i < B::kLoads; ++i, from += pass)
        ptx::cp_async<16>(stage + to + i * B::kPassBytes, from, left > i * B::kRowsPerPass);
      left -= Config::kTile.bk;
    } else {
      // Lane j of a warp copies pixels of chunk j of the step's depth: rows j kSize and so on.
      static_assert(Config::A::kChunks <= 32 && 32 % Config::A::kChunks == 0);
      constexpr uint32_t kNone = ~0u;
      const uint32_t mine = at.left > 0 ? at.weights : kNone;
#pragma unroll
      for (int i = 0; i < B::kLoads; ++i) {
        const uint32_t chunk = ptx::shfl_idx(mine, (row + i * B::kRowsPerPass) / kSize);
        ptx::cp_async<16>(stage + to + i * B::kPassBytes, from + size_t(chunk) * 16,
                          chunk != kNone);
      }
    }
  }
};

template <class Config>
struct ConvLoader {
  PixelLoader<Config> pixels;
  typename std::conditional<Config::kDepthRowsB, WeightGradLoader<Config>,
                            WeightLoader<Config>>::type weights;

  FASTCONV_DEVICE void load(const ConvParams& p, uint32_t stage) {
    pixels.load(stage);
    weights.load(p, stage, pixels);
    ptx::cp_async_commit_group();
    pixels.move(p);
  }
};

// grid: (tiles of M) x (tiles of K), those of K fastest; groups; phases x splits.
template <class Config>
__global__ void __launch_bounds__(Config::kThreads, Config::kTile.blocks)
    conv_implicit_gemm(const ParamsOf<Config::kDirection> __grid_constant__ all) {
  constexpr Tile tile = Config::kTile;
  // Splits of a phase are neighbours.
  const int phase = Config::kPhases ? blockIdx.z / first_phase(all).splits : 0;
  BlockParams<Config> params = params_to_load<Config>(all, phase);
  const int tiles_n = (params.K + tile.bn - 1) / tile.bn;
  const int m0 = blockIdx.x / tiles_n * tile.bm, n0 = blockIdx.x % tiles_n * tile.bn;
  if (Config::kDirection != Direction::forward && m0 >= params.M) return;  // of a smaller phase
  const int split = blockIdx.z - phase * params.splits;
  const int k_begin = split * params.split_depth;
  const int depth = min_of(params.depth - k_begin, params.split_depth);
  const uint32_t first = ptx::shared_address(shared_memory());
  ConvLoader<Config> loader;
  loader.pixels.start(params, m0, k_begin);
  loader.weights.start(params, n0, k_begin);
  WarpTile<Config> warp;
  multiply_steps<Config>(loader, params, depth, first, warp);
  store_tile<Config>(params_to_store<Config>(all, phase), warp.sums(), first, m0, n0, split);
}

}  // namespace fastconv::cuda
