// Weight gradient of a convolution of up to 4 input channels on tensor cores, any stride, NHWC:
// K channels times R S C over the pixels, as conv_weight_grad.
//
// The trick is conv_stem's: the input patch of a tile of 8 x 16 pixels lies in shared memory, where
// weight (r, s, c) of a pixel is one element at an offset that is fixed for a lane, so fragments
// are read from it and nothing is gathered. A row of 16 pixels is one step of depth (floats: two).
// A block keeps its sums over many tiles; what each block leaves add_parts adds in order.
//
// dy comes by asynchronous copies; where the bias gradient is wanted too, through registers, where
// the activation's gradient masks it and a thread sums its own channels.
#pragma once
#include "conv_stem.cuh"

namespace fastconv::cuda {

template <Math kM, int kN>
struct StemGradConfig {
  static constexpr Math kMath = kM;
  using T = typename Storage<kM>::type;
  // Budget: 255 registers for 2 blocks of 128 threads on an SM; no spills.
  static constexpr int kBlocks = 2;
  static constexpr Tile kTile = {kStemGradChannels, kN, 0, kStemGradChannels, kN / 4, 1, 2, 255};
  static constexpr bool kPrefetch = false;
  static constexpr int kDepth = 32 / int(sizeof(T));  // pixels of a step
  using Dy = OperandShape<T, kStemGradChannels, kStemRows * kStemColumns, kStemThreads, true>;
};

// dy of a tile, rows of channels; zeros past the image and past the last channel.
template <class Config>
FASTCONV_DEVICE void fill_dy(const ConvParams& p, int64_t n, int p0, int q0, int k0, bool whole,
                             uint32_t shared) {
  using T = typename Config::T;
  using Dy = typename Config::Dy;
  constexpr int kSize = Chunk<T>::kSize;
  const int P = int(p.by_image.d) / p.Q;
  const T* dy = static_cast<const T*>(p.at.y) + k0;
  auto source = [&](int pixel, bool* inside) {
    const int row = p0 + pixel / kStemColumns, column = q0 + pixel % kStemColumns;
    *inside = row < P && column < p.Q;
    return dy + ((n * P + row) * p.Q + column) * p.at.y_pixel;
  };
  auto place = [&](int pixel, int chunk) {
    return shared + pixel * Dy::kRowBytes + swizzle_depth<T, Dy::kRowBytes>(pixel, chunk) * 16;
  };
  if (whole) {
    const int chunk = threadIdx.x % Dy::kChunks;
#pragma unroll 4
    for (int pixel = threadIdx.x / Dy::kChunks; pixel < kStemRows * kStemColumns;
         pixel += Dy::kRowsPerPass) {
      bool inside;
      const T* from = source(pixel, &inside) + chunk * kSize;
      ptx::cp_async<16>(place(pixel, chunk), from, inside && k0 + chunk * kSize < p.K);
    }
    ptx::cp_async_commit_group();
    return;
  }
#pragma unroll 4
  for (int i = threadIdx.x; i < kStemRows * kStemColumns * kStemGradChannels; i += kStemThreads) {
    const int pixel = i / kStemGradChannels, k = i % kStemGradChannels;
    bool inside;
    const T* from = source(pixel, &inside) + k;
    T value = {};
    if (inside && k0 + k < p.K) value = ptx::ld_global(from);
    ptx::st_shared(place(pixel, k / kSize) + k % kSize * uint32_t(sizeof(T)), value);
  }
}

// The same through registers, V channels at a time: masked by the activation's gradient, and added
// to this thread's sums at `sums`, of its channels from `k` on.
template <class Config, int V>
FASTCONV_DEVICE void fill_masked_dy(const ConvParams& p, const OutputMask& mask, int64_t n, int p0,
                                    int q0, int k0, uint32_t shared, uint32_t sums) {
  using T = typename Config::T;
  using Dy = typename Config::Dy;
  using Vector = Chunk<T, V>;
  constexpr int kSize = Chunk<T>::kSize, kAcross = kStemGradChannels / V;
  const int P = int(p.by_image.d) / p.Q, k = threadIdx.x % kAcross * V;
  const T* dy = static_cast<const T*>(p.at.y) + k0 + k;
  const T* y = static_cast<const T*>(mask.y) + k0 + k;
  float part[V] = {};
#pragma unroll 4
  for (int pixel = threadIdx.x / kAcross; pixel < kStemRows * kStemColumns;
       pixel += kStemThreads / kAcross) {
    const int row = p0 + pixel / kStemColumns, column = q0 + pixel % kStemColumns;
    const int64_t m = (n * P + row) * p.Q + column;
    Vector v = {};
    if (row < P && column < p.Q && k0 + k < p.K) {
      v = ptx::ld_global(reinterpret_cast<const Vector*>(dy + m * p.at.y_pixel));
      if (mask.y != nullptr) {
        const auto at = ptx::ld_global(reinterpret_cast<const Vector*>(y + m * mask.pixel));
        v = activation_grad(v, at, mask.activation);
      }
    }
#pragma unroll
    for (int e = 0; e < V; ++e) part[e] += widen(v.at[e]);
    const uint32_t chunk = swizzle_depth<T, Dy::kRowBytes>(pixel, k / kSize) * 16;
    ptx::st_shared(shared + pixel * Dy::kRowBytes + chunk + k % kSize * uint32_t(sizeof(T)), v);
  }
#pragma unroll
  for (int e = 0; e < V; ++e)
    ptx::st_shared(sums + e * 4, ptx::ld_shared<float>(sums + e * 4) + part[e]);
}

// Fragments of x: pixels of a step times this warp's weights; `at` is the patch at the step's first
// pixel. Pixels past the row are left out, as zero times infinity would be NaN.
template <class Config>
FASTCONV_DEVICE void read_patch(WarpTile<Config>& warp, const uint32_t* offsets, uint32_t at,
                                int pixel, int pixels) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if constexpr (sizeof(typename Config::T) == 2) {
      const int first = lane % 4 * 2 + half * 8;
      const uint32_t from = at + first * pixel;
      const uint32_t mask = (first < pixels ? 0xffffu : 0u) | (first + 1 < pixels ? ~0xffffu : 0u);
#pragma unroll
      for (int j = 0; j < WarpTile<Config>::kColumns; ++j) {
        const uint32_t low = ptx::ld_shared<uint16_t>(from + offsets[j]);
        const uint32_t high = ptx::ld_shared<uint16_t>(from + pixel + offsets[j]);
        warp.b[0][j / 2][j % 2 * 2 + half] = (low | high << 16) & mask;
      }
    } else {
      const int first = lane % 4 + half * 4;
      const uint32_t from = at + first * pixel, mask = first < pixels ? ~0u : 0u;
#pragma unroll
      for (int j = 0; j < WarpTile<Config>::kColumns; ++j)
        warp.b[0][j / 2][j % 2 * 2 + half] = ptx::ld_shared<uint32_t>(from + offsets[j]) & mask;
    }
  }
}

// grid: splits, each of which takes every gridDim.x-th tile; tiles of channels times of weights.
template <class Config>
__global__ void __launch_bounds__(kStemThreads, Config::kBlocks)
    conv_stem_weight_grad(const ConvParams __grid_constant__ p,
                          const StemShape __grid_constant__ shape,
                          const StemGrid __grid_constant__ grid,
                          const StemBiasGrad __grid_constant__ bias) {
  using T = typename Config::T;
  using Warp = WarpTile<Config>;
  using Dy = typename Config::Dy;
  constexpr int kColumns = Warp::kColumns;
  const uint32_t shared = ptx::shared_address(shared_memory());
  const int lane = threadIdx.x % 32, tiles_n = (p.depth + Config::kTile.bn - 1) / Config::kTile.bn;
  const int k0 = blockIdx.y / tiles_n * kStemGradChannels;
  const int n0 = blockIdx.y % tiles_n * Config::kTile.bn + threadIdx.x / 32 * Config::kTile.wn;
  const int row_length = p.S * p.C, pixel = p.stride_w * p.C * int(sizeof(T));
  const int P = int(p.by_image.d) / p.Q;
  uint32_t offsets[kColumns];  // of this lane's weights in the patch of a pixel
#pragma unroll
  for (int j = 0; j < kColumns; ++j) {
    // Past the last weight that one; its sums are dropped.
    const int n = min_of(n0 + 8 * j + lane / 4, p.depth - 1), r = n / row_length;
    offsets[j] = r * shape.patch_pitch + (n - r * row_length) * int(sizeof(T));
  }
  const uint32_t dy = shared + Warp::template start_of<Dy, true>(0, lane % 16, lane / 16);
  // A thread's sums of dy: [threads along pixels][channels].
  const int vector = grid.whole ? Chunk<T>::kSize : 1;
  const uint32_t sums_of_dy = shared + shape.slab, own_sums = sums_of_dy + threadIdx.x * vector * 4;
  if (bias.partial != nullptr)
    for (int e = 0; e < vector; ++e) ptx::st_shared(own_sums + e * 4, 0.f);
  Warp warp;
  clear(warp);
#pragma unroll 1
  for (int tile = blockIdx.x; tile < grid.tiles; tile += gridDim.x) {
    int64_t n = tile;
    const int q0 = int(take_remainder(n, grid.columns)) * kStemColumns;
    const int p0 = int(take_remainder(n, grid.rows)) * kStemRows;
    __syncthreads();  // the last tile has been read
    if (bias.partial == nullptr)
      fill_dy<Config>(p, n, p0, q0, k0, grid.whole, shared);
    else if (grid.whole)
      fill_masked_dy<Config, Chunk<T>::kSize>(p, bias.mask, n, p0, q0, k0, shared, own_sums);
    else
      fill_masked_dy<Config, 1>(p, bias.mask, n, p0, q0, k0, shared, own_sums);
    fill_patch<Config>(p, shape, n, p0 * p.stride_h - p.pad_t, q0 * p.stride_w - p.pad_l, shared);
    ptx::cp_async_wait_group<0>();
    __syncthreads();
    const int rows = min_of(kStemRows, P - p0);
#pragma unroll 1
    for (int row = 0; row < rows; ++row) {
      const uint32_t patch = shared + shape.patch + row * p.stride_h * shape.patch_pitch;
#pragma unroll
      for (int step = 0; step < kStemColumns / Config::kDepth; ++step) {
        const int first = step * Config::kDepth;
        read_patch<Config>(warp, offsets, patch + first * pixel, pixel, p.Q - q0 - first);
#pragma unroll
        for (int i = 0; i < Warp::kRows; ++i)
          Warp::template fragment<Dy, true, true>(warp.a[0][i],
                                                  dy + row * kStemColumns * Dy::kRowBytes, i, step);
        warp.multiply(0);
      }
      warp.promote();  // 16 pixels
    }
  }
  if (bias.partial != nullptr && blockIdx.y % tiles_n == 0) {
    __syncthreads();
    const int k = threadIdx.x;
    if (k < kStemGradChannels && k0 + k < p.K) {
      float sum = 0;
      for (int row = 0; row < kStemThreads * vector / kStemGradChannels; ++row)
        sum += ptx::ld_shared<float>(sums_of_dy + (row * kStemGradChannels + k) * 4);
      ptx::st_global(bias.partial + int64_t(blockIdx.x) * p.K + k0 + k, sum);
    }
  }
  float* to = p.at.partial + int64_t(blockIdx.x) * p.K * p.depth;
  auto& sums = warp.sums();
#pragma unroll
  for (int i = 0; i < Warp::kRows; ++i)
#pragma unroll
    for (int j = 0; j < kColumns; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int k = k0 + 16 * i + lane / 4 + e / 2 * 8, n = n0 + 8 * j + lane % 4 * 2 + e % 2;
        if (k < p.K && n < p.depth) ptx::st_global(to + int64_t(k) * p.depth + n, sums[i][j][e]);
      }
}

// ---- Launches ----

template <Math kMath, int kN>
Status launch_stem_grad_config(const ConvParams& p, const StemShape& shape,
                               const StemBiasGrad& bias, Stream stream) {
  using Config = StemGradConfig<kMath, kN>;
  const char* const names[] = {"f16", "bf16", "tf32", "f32"};
  static const KernelLabel label("conv_stem_weight_grad_%s_64x%d", names[int(kMath)], kN);
  const int rows = (int(p.by_image.d) / p.Q + kStemRows - 1) / kStemRows;
  const int columns = (p.Q + kStemColumns - 1) / kStemColumns;
  const int images = p.M / int(p.by_image.d);
  StemGrid grid = {make_axis(columns), make_axis(rows), images * rows * columns, false};
  constexpr int kSize = Chunk<typename Config::T>::kSize;
  grid.whole = p.K % kSize == 0 && uintptr_t(p.at.y) % 16 == 0 && p.at.y_pixel % kSize == 0 &&
               uintptr_t(bias.mask.y) % 16 == 0 && bias.mask.pixel % kSize == 0;
  const int64_t tiles =
      int64_t(p.K + kStemGradChannels - 1) / kStemGradChannels * ((p.depth + kN - 1) / kN);
  if (tiles > kMostRows) return {label.text, kTooManyRows};
  return launch(label.text, conv_stem_weight_grad<Config>, dim3(p.splits, unsigned(tiles)),
                kStemThreads, shape.shared_bytes, stream, p, shape, grid, bias);
}

template <Math kMath>
Status launch_stem_weight_grad(const ConvParams& p, const StemBiasGrad& bias, Stream stream) {
  const StemShape shape = stem_grad_shape(p.C, p.R, p.S, p.stride_h, p.stride_w, kMath);
  return stem_grad_columns(p.depth) == 32
             ? launch_stem_grad_config<kMath, 32>(p, shape, bias, stream)
             : launch_stem_grad_config<kMath, 160>(p, shape, bias, stream);
}

}  // namespace fastconv::cuda
