// Convolution of up to 4 input channels on tensor cores, any stride, NHWC.
//
// The trick: a filter row is S C neighbouring elements of the weights and of the input, so the
// depth is R rows of that length, rounded up to 16 bytes, and nothing is gathered: the input patch
// of a tile of pixels lies in shared memory and fragments are 4-byte reads from it. What a row
// reads past its end is masked, as zero times infinity would be NaN.
//
// Limits: stem_refusal() in conv_stem.h.
#pragma once
#include "conv_stem.h"
#include "store_tile.cuh"

namespace fastconv::cuda {

template <Math kM, int kN>
struct StemConfig {
  static constexpr Math kMath = kM;
  using T = typename Storage<kM>::type;
  // Budget: 128 registers in half precision (4 blocks on an SM), 168 in float (3); no spills.
  static constexpr int kBlocks = sizeof(T) == 2 ? 4 : 3;
  static constexpr Tile kTile = {kStemRows * kStemColumns, kN, 0, 32, kN, 1, kBlocks, 0};
  static constexpr bool kPrefetch = false;
  static constexpr int kSize = Chunk<T>::kSize, kSlabPitch = kN + 8;
};

struct StemGrid {
  Axis columns, rows;  // tiles of an image
  int32_t tiles;
  bool whole;  // outputs are aligned chunks of channels
};

// Weights of channels n0 .. n0 + kN: rows of the filter at whole chunks, zeros between.
template <class Config>
FASTCONV_DEVICE void fill_weights(const ConvParams& p, const StemShape& s, int n0,
                                  uint32_t shared) {
  using T = typename Config::T;
  const int lane = threadIdx.x % 32, row = p.S * p.C;
  for (int n = threadIdx.x / 32; n < Config::kTile.bn; n += kStemThreads / 32) {
    const uint32_t to = shared + n * s.weight_pitch;
    for (int i = lane * 16; i < s.weight_pitch; i += 512)
      ptx::st_shared(to + i, make_uint4(0, 0, 0, 0));
    ptx::syncwarp();
    if (n0 + n >= p.K) continue;
    const T* w = static_cast<const T*>(p.at.w) + int64_t(n0 + n) * p.depth;
    constexpr int kAtOnce = 4;
    for (int i = lane; i < p.depth; i += 32 * kAtOnce) {
      T values[kAtOnce];
#pragma unroll
      for (int e = 0; e < kAtOnce; ++e)
        if (i + 32 * e < p.depth) values[e] = ptx::ld_global(w + i + 32 * e);
#pragma unroll
      for (int e = 0; e < kAtOnce; ++e) {
        const int r = (i + 32 * e) / row, at = i + 32 * e - r * row;
        if (i + 32 * e < p.depth)
          ptx::st_shared(to + r * s.row_chunks * 16 + at * uint32_t(sizeof(T)), values[e]);
      }
    }
  }
}

// The input around a tile whose first tap is (h0, w0), zeros outside the image.
template <class Config>
FASTCONV_DEVICE void fill_patch(const ConvParams& p, const StemShape& s, int64_t n, int h0, int w0,
                                uint32_t shared) {
  using T = typename Config::T;
  constexpr int kWarps = kStemThreads / 32, kRows = 3, kAtOnce = 4;  // loads on their way: 12
  constexpr uint32_t kBytes = sizeof(T);
  const int lane = threadIdx.x % 32;
  // The elements of a row that are inside the image.
  const int columns = s.patch_row / p.C, right = p.W - w0 < columns ? p.W - w0 : columns;
  const int first = w0 >= 0 ? 0 : -w0 < columns ? -w0 * p.C : s.patch_row, end = right * p.C;
  const T* x = static_cast<const T*>(p.at.x) + ((n * p.H + h0) * p.W + w0) * p.at.x_pixel;
  const bool dense = p.at.x_pixel == p.C;
#pragma unroll 1
  for (int row0 = threadIdx.x / 32; row0 < s.patch_rows; row0 += kWarps * kRows) {
#pragma unroll 1
    for (int i0 = lane; i0 < s.patch_row; i0 += 32 * kAtOnce) {
      T values[kRows][kAtOnce];
#pragma unroll
      for (int j = 0; j < kRows; ++j) {
        const int row = row0 + kWarps * j;
        const bool inside = row < s.patch_rows && unsigned(h0 + row) < unsigned(p.H);
        const T* from = x + int64_t(row) * p.W * p.at.x_pixel;
#pragma unroll
        for (int e = 0; e < kAtOnce; ++e) {
          const int i = i0 + 32 * e;
          values[j][e] = T{};
          if (inside && i >= first && i < end)
            values[j][e] = ptx::ld_global(from + (dense ? i : i / p.C * p.at.x_pixel + i % p.C));
        }
      }
#pragma unroll
      for (int j = 0; j < kRows; ++j) {
        const int row = row0 + kWarps * j;
        const uint32_t to = shared + row * s.patch_pitch;
#pragma unroll
        for (int e = 0; e < kAtOnce; ++e) {
          const int i = i0 + 32 * e;
          if (row >= s.patch_rows || i >= s.patch_row) continue;
          ptx::st_shared(to + s.patch + i * kBytes, values[j][e]);
          if (s.copy != 0 && i > 0) ptx::st_shared(to + s.copy + (i - 1) * kBytes, values[j][e]);
        }
      }
    }
  }
}

template <class Config>
FASTCONV_DEVICE void clear(WarpTile<Config>& warp) {
#pragma unroll
  for (int i = 0; i < WarpTile<Config>::kRows; ++i)
#pragma unroll
    for (int j = 0; j < WarpTile<Config>::kColumns; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        warp.acc[i][j][e] = 0;
        if constexpr (Config::kMath == Math::f32) warp.total[i][j][e] = 0;
      }
}

// Two rows of 16 pixels a warp, times kN channels.
template <class Config>
FASTCONV_DEVICE void multiply_patch(const ConvParams& p, const StemShape& s, WarpTile<Config>& warp,
                                    uint32_t shared) {
  using T = typename Config::T;
  constexpr int kBytes = sizeof(T), kColumns = WarpTile<Config>::kColumns;
  const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 2;
  // This lane's words: word lane % 4 of each chunk of two pixels.
  const int pixel = p.stride_w * p.C, start = lane / 4 * s.pixel_step * pixel;
  const int far = (s.pixel_step == 2 ? 1 : 8) * pixel * kBytes;
  const bool odd = s.copy != 0 && start % 2 == 1;
  const uint32_t a0 = shared + (odd ? s.copy - kBytes : s.patch) +
                      row * p.stride_h * s.patch_pitch + start * kBytes + lane % 4 * 4;
  const uint32_t a_next = p.stride_h * s.patch_pitch;
  uint32_t b = shared + (lane % 8 + lane / 16 * 8) * s.weight_pitch + lane / 8 % 2 * 16;
  // Elements of a row's last chunk that belong to the row.
  const int rest = p.S * p.C - (s.row_chunks - 1) * Config::kSize, word = lane % 4 * (4 / kBytes);
  const uint32_t tail = kBytes == 4
                            ? (word < rest ? ~0u : 0u)
                            : (word < rest ? 0xffffu : 0u) | (word + 1 < rest ? 0xffff0000u : 0u);
  int left = s.chunks, chunk = 0;
  uint32_t offset = 0;
#pragma unroll 1
  for (int step = 0; left > 0; ++step, b += 32) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t mask = left <= 0 ? 0u : chunk == s.row_chunks - 1 ? tail : ~0u;
      const uint32_t from = a0 + (left > 0 ? offset : 0u);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        warp.a[0][i][2 * half] = ptx::ld_shared<uint32_t>(from + i * a_next) & mask;
        warp.a[0][i][2 * half + 1] = ptx::ld_shared<uint32_t>(from + i * a_next + far) & mask;
      }
      --left, offset += 16;
      if (++chunk == s.row_chunks) chunk = 0, offset += s.patch_pitch - s.row_chunks * 16;
    }
#pragma unroll
    for (int j = 0; j < kColumns / 2; ++j)
      ptx::ldmatrix_x4(warp.b[0][j], b + j * 16 * s.weight_pitch);
    warp.multiply(0);
    if (Config::kMath == Math::f32 && step % 4 == 3) warp.promote();
  }
  warp.promote();
}

// The outputs (p0 + row, q0 ...) of the warp's two rows, through a slab of its own.
template <class Config>
FASTCONV_DEVICE void store_pixels(const ConvParams& p, const StemShape& s, WarpTile<Config>& warp,
                                  int64_t n, int p0, int q0, int n0, bool whole, uint32_t shared) {
  using T = typename Config::T;
  constexpr int kSize = Config::kSize, kPitch = Config::kSlabPitch;
  constexpr int kLanesPerRow = Config::kTile.bn / kSize, kRowsAtOnce = 32 / kLanesPerRow;
  const int lane = threadIdx.x % 32, column = lane % kLanesPerRow * kSize, k = n0 + column;
  const uint32_t slab = shared + s.slab + threadIdx.x / 32 * 16 * kPitch * 4;
  // The four-float halves of a chunk change places by row and by 32 columns: no bank conflicts.
  auto place = [&](int row, int at) {
    return slab + 4 * (row * kPitch + (at ^ ((row ^ at >> 5) & 1) << 2));
  };
  const int P = int(p.by_image.d) / p.Q;
  const T* bias = static_cast<const T*>(p.at.bias);
  const T* residual = static_cast<const T*>(p.at.residual);
  T* y = static_cast<T*>(p.at.y);
  auto& acc = warp.sums();
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = p0 + threadIdx.x / 32 * 2 + i;
#pragma unroll
    for (int j = 0; j < WarpTile<Config>::kColumns; ++j) {
      const int at = 8 * j + lane % 4 * 2;
      ptx::st_shared(place(lane / 4, at), make_float2(acc[i][j][0], acc[i][j][1]));
      ptx::st_shared(place(lane / 4 + 8, at), make_float2(acc[i][j][2], acc[i][j][3]));
    }
    ptx::syncwarp();
#pragma unroll 1
    for (int from = lane / kLanesPerRow; from < 16; from += kRowsAtOnce) {
      const int q = q0 + (s.pixel_step == 2 ? from % 8 * 2 + from / 8 : from);
      if (row >= P || q >= p.Q || k >= p.K) continue;
      float v[kSize];
#pragma unroll
      for (int e = 0; e < kSize; e += 4) {
        const float4 four = ptx::ld_shared<float4>(place(from, column + e));
        v[e] = four.x, v[e + 1] = four.y, v[e + 2] = four.z, v[e + 3] = four.w;
      }
      const int m = int((n * P + row) * p.Q + q);
      if constexpr (Config::kMath == Math::f32) {
#pragma unroll
        for (int e = 0; e < kSize; ++e) v[e] = k + e < p.K ? v[e] : 0.f;
        mend(v, p, m, k);
      }
      const T* add = residual != nullptr ? residual + m * p.at.residual_pixel + k : nullptr;
      T* to = y + m * p.at.y_pixel + k;
      if (whole) {
        finish_chunk(v, chunk_or_zero(bias != nullptr ? bias + k : nullptr), chunk_or_zero(add),
                     p.activation, to);
        continue;
      }
#pragma unroll
      for (int e = 0; e < kSize; ++e) {
        if (k + e >= p.K) break;
        const float one[1] = {v[e]};
        finish_chunk(one, chunk_or_zero<T, 1>(bias != nullptr ? bias + k + e : nullptr),
                     chunk_or_zero<T, 1>(add != nullptr ? add + e : nullptr), p.activation, to + e);
      }
    }
    ptx::syncwarp();
  }
}

// grid: blocks, each of which takes every gridDim.x-th tile; tiles of channels.
template <class Config>
__global__ void __launch_bounds__(kStemThreads, Config::kBlocks)
    conv_stem(const ConvParams __grid_constant__ p, const StemShape __grid_constant__ shape,
              const StemGrid __grid_constant__ grid) {
  const uint32_t shared = ptx::shared_address(shared_memory());
  const int n0 = blockIdx.y * Config::kTile.bn;
  fill_weights<Config>(p, shape, n0, shared);
#pragma unroll 1
  for (int tile = blockIdx.x; tile < grid.tiles; tile += gridDim.x) {
    int64_t n = tile;
    const int q0 = int(take_remainder(n, grid.columns)) * kStemColumns;
    const int p0 = int(take_remainder(n, grid.rows)) * kStemRows;
    __syncthreads();  // the last tile's patch has been read
    fill_patch<Config>(p, shape, n, p0 * p.stride_h - p.pad_t, q0 * p.stride_w - p.pad_l, shared);
    __syncthreads();
    WarpTile<Config> warp;
    clear(warp);
    multiply_patch<Config>(p, shape, warp, shared);
    store_pixels<Config>(p, shape, warp, n, p0, q0, n0, grid.whole, shared);
  }
}

// ---- Launches ----

template <Math kMath, int kN>
Status launch_stem_config(const ConvParams& p, const StemShape& shape, int most_blocks,
                          Stream stream) {
  using Config = StemConfig<kMath, kN>;
  const char* const names[] = {"f16", "bf16", "tf32", "f32"};
  static const KernelLabel label("conv_stem_%s_8x16x%d", names[int(kMath)], kN);
  if (p.M == 0) return {label.text, nullptr};
  constexpr int kSize = Config::kSize;
  auto whole = [](const void* data, int64_t pixel) {
    return uintptr_t(data) % 16 == 0 && pixel % kSize == 0;
  };
  const int rows = (int(p.by_image.d) / p.Q + kStemRows - 1) / kStemRows;
  const int columns = (p.Q + kStemColumns - 1) / kStemColumns;
  const int images = p.M / int(p.by_image.d);
  StemGrid grid = {make_axis(columns), make_axis(rows), images * rows * columns, false};
  grid.whole = p.K % kSize == 0 && whole(p.at.y, p.at.y_pixel) && whole(p.at.bias, 0) &&
               whole(p.at.residual, p.at.residual_pixel);
  const int tiles_k = (p.K + kN - 1) / kN;
  if (tiles_k > kMostRows) return {label.text, kTooManyRows};
  int blocks = (most_blocks + tiles_k - 1) / tiles_k;
  blocks = blocks < 1 ? 1 : blocks < grid.tiles ? blocks : grid.tiles;
  return launch(label.text, conv_stem<Config>, dim3(blocks, tiles_k), kStemThreads,
                shape.shared_bytes, stream, p, shape, grid);
}

template <Math kMath>
Status launch_stem(const ConvParams& p, int most_blocks, Stream stream) {
  const StemShape shape = stem_shape(p.C, p.R, p.S, p.stride_h, p.stride_w, kMath);
  if constexpr (element_bytes(kMath) == 2)
    if (shape.channels == 64) return launch_stem_config<kMath, 64>(p, shape, most_blocks, stream);
  return launch_stem_config<kMath, 32>(p, shape, most_blocks, stream);
}

}  // namespace fastconv::cuda
