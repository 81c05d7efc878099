// From accumulators to outputs: each warp passes 16 rows at a time through a slab of shared memory,
// so that a thread holds 16 bytes of one pixel's channels, which it finishes and stores. The
// residual comes by asynchronous copies, two slabs ahead.
#pragma once
#include "conv_grad_params.h"
#include "epilogue.cuh"
#include "gemm_tile.cuh"

namespace fastconv::cuda {

FASTCONV_DEVICE int divide(int n, Divisor by) {
  return int(ptx::mul_hi(2 * uint32_t(n), by.factor) >> by.shift);
}

struct Pixel {
  int n, p, q;
};
FASTCONV_DEVICE Pixel pixel_of(const ConvParams& c, int m) {
  const int n = divide(m, c.by_image), rest = m - n * int(c.by_image.d), p = divide(rest, c.by_row);
  return {n, p, rest - p * c.Q};
}

template <Direction kD>
using ParamsOf =
    typename std::conditional<kD == Direction::input_grad, PhaseParams, ConvParams>::type;

FASTCONV_DEVICE const ConvParams& first_phase(const ConvParams& p) { return p; }
FASTCONV_DEVICE const ConvParams& first_phase(const PhaseParams& p) { return p.phase[0]; }

// What a block works by: the kernel's argument, or of the input gradient its phase's part of it.
template <class Config>
using BlockParams =
    typename std::conditional<Config::kPhases, const ConvParams, const ConvParams&>::type;

// NOTE the phase is known at run time only, and a use of an argument that an index chooses is a
// load that the next instruction waits for. So what the phases share is read from the first, and
// the rest is put into registers: once before the main loop, which has none to spare for it, and
// once behind it.
FASTCONV_DEVICE const ConvParams& params_of(const ConvParams& all, int) { return all; }
FASTCONV_DEVICE ConvParams params_of(const PhaseParams& all, int i) {
  const ConvParams& first = all.phase[0];
  ConvParams c = all.phase[i];
  c.at = first.at;
  c.weight.group = first.weight.group, c.weight.c = first.weight.c;
  c.H = first.H, c.W = first.W, c.C = first.C, c.K = first.K, c.groups = first.groups;
  c.stride_h = c.stride_w = 1;
  c.splits = first.splits, c.split_depth = first.split_depth, c.total = first.total;
  c.place = {c.place.first, first.place.image, first.place.line, first.place.step};
  c.by_channels = first.by_channels;
  return c;
}
template <class... V>
FASTCONV_DEVICE void keep_all(V&... v) {
  (ptx::keep(v), ...);
}
template <class Config, class Params>
FASTCONV_DEVICE BlockParams<Config> params_to_load(const Params& all, int phase) {
  if constexpr (Config::kPhases) {
    ConvParams c = params_of(all, phase);
    keep_all(c.weight.first, c.weight.r, c.weight.s, c.R, c.S, c.Q, c.M, c.depth);
    keep_all(c.pad_t, c.pad_l, c.dil_h, c.dil_w);
    keep_all(c.by_image.d, c.by_image.factor, c.by_image.shift);
    keep_all(c.by_row.d, c.by_row.factor, c.by_row.shift);
    keep_all(c.by_taps.d, c.by_taps.factor, c.by_taps.shift);
    return c;
  } else {
    return first_phase(all);
  }
}
template <class Config, class Params>
FASTCONV_DEVICE BlockParams<Config> params_to_store(const Params& all, int phase) {
  if constexpr (Config::kPhases) {
    ConvParams c = params_of(all, phase);
    keep_all(c.Q, c.M, c.place.first);
    keep_all(c.by_image.d, c.by_image.factor, c.by_image.shift);
    keep_all(c.by_row.d, c.by_row.factor, c.by_row.shift);
    return c;
  } else {
    return first_phase(all);
  }
}

// Where output m lies, in pixels.
template <bool kPhases>
FASTCONV_DEVICE int place_of(const ConvParams& c, int m) {
  if constexpr (!kPhases) return m;
  const Pixel at = pixel_of(c, m);
  return c.place.first + at.n * c.place.image + at.p * c.place.line + at.q * c.place.step;
}

// One output in plain float32, for the few that 3xTF32 leaves NaN: an infinite operand times a
// rest of zero is NaN where it should be infinite. Ends early where the sum is truly NaN.
FASTCONV_DEVICE float plain_sum(const ConvParams& c, int m, int k) {
  const Pixel at = pixel_of(c, m);
  const int group = k / c.K;
  const float* w = static_cast<const float*>(c.at.w) + c.weight.first + group * c.weight.group +
                   int64_t(k - group * c.K) * c.weight.k;
  const float* x = static_cast<const float*>(c.at.x) + int64_t(group) * c.C;
  float sum = 0;
#pragma unroll 1
  for (int tap = 0; tap < c.R * c.S; ++tap) {
    const int r = tap / c.S, s = tap - r * c.S;
    const int h = at.p * c.stride_h - c.pad_t + r * c.dil_h;
    const int v = at.q * c.stride_w - c.pad_l + s * c.dil_w;
    if (h < 0 || h >= c.H || v < 0 || v >= c.W) continue;
    const float* from = x + ((int64_t(at.n) * c.H + h) * c.W + v) * c.at.x_pixel;
    const float* from_w = w + r * c.weight.r + s * c.weight.s;
#pragma unroll 1
    for (int i = 0; i < c.C && sum == sum; ++i)
      sum += ptx::ld_global(from + i) * ptx::ld_global(from_w + int64_t(i) * c.weight.c);
  }
  return sum;
}

FASTCONV_DEVICE void mend(float (&v)[4], const ConvParams& c, int m, int k) {
#pragma unroll 1
  for (int e = 0; e < 4; ++e) {
    const float was = e == 0 ? v[0] : e == 1 ? v[1] : e == 2 ? v[2] : v[3];
    if (was == was) continue;
    const float sum = plain_sum(c, m, k + e);
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (i == e) v[i] = sum;
  }
}

template <class Config>
struct TileStore {
  using T = typename Config::T;
  static constexpr Tile kTile = Config::kTile;
  static constexpr int kSize = Chunk<T>::kSize, kWarpsN = kTile.bn / kTile.wn;
  static constexpr int kLanesPerRow = kTile.wn / kSize, kRowsAtOnce = 32 / kLanesPerRow;
  static constexpr int kPasses = 16 / kRowsAtOnce;  // of a warp over its slab

  const ConvParams& params;
  int64_t k;             // this lane's first channel
  int first, column;     // row and column of the warp tile's first, this lane's outputs
  bool inside;           // its channels exist
  uint32_t slab, ahead;  // in shared memory: of this warp, of this lane's part of the residual
  int split;

  FASTCONV_DEVICE TileStore(const ConvParams& params, uint32_t shared, int m0, int n0, int split)
      : params(params), split(split) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    column = lane % kLanesPerRow * kSize;
    const int n = n0 + warp % kWarpsN * kTile.wn + column;
    inside = n < params.K;
    k = int64_t(blockIdx.y) * params.K + n;
    first = m0 + warp / kWarpsN * kTile.wm + lane / kLanesPerRow;
    slab = shared + warp * Config::kSlabBytes;
    ahead = slab + 16 * Config::kSlabPitch * 4 + lane * 16;
  }

  // The four-float halves of a chunk change places by row and by 32 columns: no bank conflicts.
  FASTCONV_DEVICE uint32_t place(int row, int at) const {
    return slab + 4 * (row * Config::kSlabPitch + (at ^ ((row ^ at >> 5) & 1) << 2));
  }

  // Starts copying this lane's part of the residual of slab i, which it alone will read.
  FASTCONV_DEVICE void fetch(int i) const {
    if constexpr (!Config::kEpilogue) return;
    const T* residual = static_cast<const T*>(params.at.residual);
    if (residual == nullptr || params.splits > 1) return;
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const int m = first + 16 * i + pass * kRowsAtOnce;
      ptx::cp_async<16>(ahead + (i % 2 * kPasses + pass) * 512,
                        residual + m * params.at.residual_pixel + k, inside && m < params.M);
    }
    ptx::cp_async_commit_group();
  }

  // Finishes the rows of slab i.
  FASTCONV_DEVICE void rows(int i, const Chunk<T>& bias) const {
    const int64_t K = int64_t(params.K) * params.groups;
#pragma unroll 1
    for (int pass = 0; pass < kPasses; ++pass) {
      const int m = first + 16 * i + pass * kRowsAtOnce;
      if (m >= params.M || !inside) continue;
      const int row = threadIdx.x % 32 / kLanesPerRow + pass * kRowsAtOnce;
      const int to = place_of<Config::kPhases>(params, m);
      float v[kSize];
#pragma unroll
      for (int e = 0; e < kSize; e += 4) {
        const float4 four = ptx::ld_shared<float4>(place(row, column + e));
        v[e] = four.x, v[e + 1] = four.y, v[e + 2] = four.z, v[e + 3] = four.w;
      }
      if (params.splits > 1) {
        float* partial = params.at.partial + (int64_t(split) * params.total + to) * K + k;
#pragma unroll
        for (int e = 0; e < kSize; e += 4)
          ptx::st_global(reinterpret_cast<float4*>(partial + e),
                         make_float4(v[e], v[e + 1], v[e + 2], v[e + 3]));
        continue;
      }
      if constexpr (Config::kMath == Math::f32) mend(v, params, m, int(k));
      T* y = static_cast<T*>(params.at.y) + to * params.at.y_pixel + k;
      if constexpr (!Config::kEpilogue) {
        store_chunk(v, y);
      } else {
        Chunk<T> residual = {};
        if (params.at.residual != nullptr)
          residual = ptx::ld_shared<Chunk<T>>(ahead + (i % 2 * kPasses + pass) * 512);
        finish_chunk(v, bias, residual, params.activation, y);
      }
    }
  }
};

template <class Config, int kRows, int kColumns>
FASTCONV_DEVICE void store_tile(const ConvParams& params, const float (&acc)[kRows][kColumns][4],
                                uint32_t shared, int m0, int n0, int split) {
  using T = typename Config::T;
  const TileStore<Config> store(params, shared, m0, n0, split);
  store.fetch(0);
  if (kRows > 1) store.fetch(1);
  Chunk<T> bias = {};
  if constexpr (Config::kEpilogue) {
    const T* from = static_cast<const T*>(params.at.bias);
    bias = chunk_or_zero(from && store.inside ? from + store.k : nullptr);
  }
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      const int row = lane / 4, at = 8 * j + lane % 4 * 2;
      ptx::st_shared(store.place(row, at), make_float2(acc[i][j][0], acc[i][j][1]));
      ptx::st_shared(store.place(row + 8, at), make_float2(acc[i][j][2], acc[i][j][3]));
    }
    if constexpr (Config::kEpilogue) {
      if (i + 1 < kRows)
        ptx::cp_async_wait_group<1>();
      else
        ptx::cp_async_wait_group<0>();
    }
    ptx::syncwarp();
    store.rows(i, bias);
    if (i + 2 < kRows) store.fetch(i + 2);
    ptx::syncwarp();
  }
}

}  // namespace fastconv::cuda
