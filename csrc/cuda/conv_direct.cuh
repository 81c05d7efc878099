// Convolution in plain arithmetic for any strides, sizes, groups and dilation: float64, and
// whatever the other kernels refuse.
//
// conv_direct: 64 pixels x 64 channels a block through shared memory, one tap at a time, so that a
// tap outside the input is left out whole for a pixel: nothing is multiplied by zero.
// conv_direct_narrow: a thread an output, for groups of few output channels.
#pragma once
#include "conv_direct.h"
#include "epilogue.cuh"

namespace fastconv::cuda {

// Budget: registers for 3 blocks of 256 threads on an SM, 2 in float64; no spills.
struct DirectTile {
  static constexpr int kPixels = 64, kChannels = 64, kDepth = 16, kThreads = 256;
  template <class T>
  static constexpr int kBlocks = sizeof(Compute<T>) == 8 ? 2 : 3;
  template <class T>  // of a row in shared memory: aligned to 16 bytes, each row 8 banks further
  static constexpr int kPitch = kPixels + 32 / sizeof(Compute<T>);
  template <class T>
  static constexpr int kSharedBytes = kPixels * 40 + 2 * kDepth * kPitch<T> * sizeof(Compute<T>);
};

FASTCONV_DEVICE bool inside(int64_t i, int64_t size) { return uint64_t(i) < uint64_t(size); }

// The epilogue of output (n, k, p, q).
template <class T>
FASTCONV_DEVICE void finish_output(const DirectParams& c, Compute<T> v, int64_t n, int64_t k,
                                   int64_t p, int64_t q) {
  const T* bias = static_cast<const T*>(c.bias);
  const T* residual = c.residual.data != nullptr ? element<T>(c.residual, n, k, p, q) : nullptr;
  const Compute<T> acc[1] = {v};
  finish_chunk(acc, chunk_or_zero<T, 1>(bias != nullptr ? bias + k * c.bias_stride : nullptr),
               chunk_or_zero<T, 1>(residual), c.p.activation,
               const_cast<T*>(element<T>(c.y, n, k, p, q)));
}

// The axes of an output's linear index.
struct DirectOrder {
  Axis cols, rows, channels, group_channels;
};

// grid: tiles of pixels x groups x tiles of a group's channels, the last fastest.
template <class T>
__global__ void __launch_bounds__(DirectTile::kThreads, DirectTile::kBlocks<T>)
    conv_direct(const DirectParams __grid_constant__ params,
                const DirectOrder __grid_constant__ order) {
  using V = Compute<T>;
  constexpr int kPixels = DirectTile::kPixels, kChannels = DirectTile::kChannels;
  constexpr int kDepth = DirectTile::kDepth, kPitch = DirectTile::kPitch<T>;
  constexpr int kBytes = sizeof(V), kVector = 16 / kBytes;
  const ConvProblem& p = params.p;
  const int C = int(p.C / p.G), K = int(p.K / p.G), G = int(p.G);
  const int R = int(p.R), S = int(p.S);
  const int tiles_k = (K + kChannels - 1) / kChannels, tile = blockIdx.x / tiles_k;
  const int group = tile % G, k0 = blockIdx.x % tiles_k * kChannels;
  const int last = K - k0 < kChannels ? K - k0 - 1 : kChannels - 1;  // channel of the tile

  // Shared memory: of each pixel, where its tap's element lies in x (-1: outside), its image's
  // offset and its first tap's position; of each channel, where its weights begin; then both
  // operands, [depth][pixel] and [depth][channel].
  const uint32_t sources = ptx::shared_address(shared_memory());
  const uint32_t pixels = sources + kPixels * 8;
  const uint32_t weights = pixels + kPixels * 24;
  const uint32_t a = weights + kChannels * 8, b = a + kDepth * kPitch * kBytes;
  const int t = threadIdx.x;
  if (t < kPixels) {
    int64_t n = int64_t(tile / G) * kPixels + t;
    const int64_t q = take_remainder(n, order.cols), row = take_remainder(n, order.rows);
    const int64_t image = n * params.x.stride[0] + int64_t(group) * C * params.x.stride[1];
    ptx::st_shared(pixels + 24 * t, n < p.N ? image : int64_t(-1));
    ptx::st_shared(pixels + 24 * t + 8, int64_t(row * p.stride_h - p.pad_t));
    ptx::st_shared(pixels + 24 * t + 16, int64_t(q * p.stride_w - p.pad_l));
    // Channels past the last copy that one; their outputs are dropped.
    const int64_t k = k0 + (t < last ? t : last);
    ptx::st_shared(weights + 8 * t, group * params.w_group + k * params.w.stride[0]);
  }
  // A thread copies depths x_depth + 4 i of pixel x_pixel, t % 4 + 4 i of channel t / 4: neighbours
  // copy neighbours in memory where the layout has them.
  const bool x_channels = params.x.stride[1] == 1, y_channels = params.y.stride[1] == 1;
  const int x_pixel = x_channels ? t / 4 : t % 64, x_depth = x_channels ? t % 4 : t / 64;
  // Which outputs it computes.
  const int pixel = 4 * (y_channels ? t / 16 : t % 16),
            channel = 4 * (y_channels ? t % 16 : t / 16);

  V acc[4][4] = {};
#pragma unroll 1
  for (int r = 0, s = 0; r < R; r += s + 1 == S, s = s + 1 == S ? 0 : s + 1) {
    __syncthreads();  // the last tap's table and operands have been read
    if (t < kPixels) {
      const auto image = ptx::ld_shared<int64_t>(pixels + 24 * t);
      const int64_t h = ptx::ld_shared<int64_t>(pixels + 24 * t + 8) + r * p.dil_h;
      const int64_t v = ptx::ld_shared<int64_t>(pixels + 24 * t + 16) + s * p.dil_w;
      const bool valid = image >= 0 && inside(h, p.H) && inside(v, p.W);
      const int64_t source = image + h * params.x.stride[2] + v * params.x.stride[3];
      ptx::st_shared(sources + 8 * t, valid ? source : int64_t(-1));
    }
    const int64_t w_tap = r * params.w.stride[2] + s * params.w.stride[3];
#pragma unroll 1
    for (int c0 = 0; c0 < C; c0 += kDepth) {
      __syncthreads();
      const int depth = C - c0 < kDepth ? C - c0 : kDepth;
      const auto source = ptx::ld_shared<int64_t>(sources + 8 * x_pixel);
      const T* from =
          static_cast<const T*>(params.x.data) + source + (c0 + x_depth) * params.x.stride[1];
      const T* from_w = static_cast<const T*>(params.w.data) + w_tap +
                        ptx::ld_shared<int64_t>(weights + t / 4 * 8) +
                        (c0 + t % 4) * params.w.stride[1];
      T copy_x[4], copy_w[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (source >= 0 && x_depth + 4 * i < depth)
          copy_x[i] = ptx::ld_global(from + 4 * i * params.x.stride[1]);
        if (t % 4 + 4 * i < depth) copy_w[i] = ptx::ld_global(from_w + 4 * i * params.w.stride[1]);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (source >= 0 && x_depth + 4 * i < depth)
          ptx::st_shared(a + ((x_depth + 4 * i) * kPitch + x_pixel) * kBytes, widen(copy_x[i]));
        if (t % 4 + 4 * i < depth)
          ptx::st_shared(b + ((t % 4 + 4 * i) * kPitch + t / 4) * kBytes, widen(copy_w[i]));
      }
      __syncthreads();
      V part[4][4] = {};  // of 16 products at most: half the error of one long sum
#pragma unroll 2
      for (int d = 0; d < depth; ++d) {
        V from_a[4], from_b[4];
#pragma unroll
        for (int i = 0; i < 4; i += kVector) {
          const auto va = ptx::ld_shared<Chunk<V>>(a + (d * kPitch + pixel + i) * kBytes);
          const auto vb = ptx::ld_shared<Chunk<V>>(b + (d * kPitch + channel + i) * kBytes);
#pragma unroll
          for (int e = 0; e < kVector; ++e) from_a[i + e] = va.at[e], from_b[i + e] = vb.at[e];
        }
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
          for (int j = 0; j < 4; ++j) part[i][j] += from_a[i] * from_b[j];
      }
      // Where the tap is outside, `part` was made of what lay in shared memory.
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (ptx::ld_shared<int64_t>(sources + 8 * (pixel + i)) >= 0)
#pragma unroll
          for (int j = 0; j < 4; ++j) acc[i][j] += part[i][j];
    }
  }
  int64_t n = int64_t(tile / G) * kPixels + pixel;
  int64_t q = take_remainder(n, order.cols), row = take_remainder(n, order.rows);
#pragma unroll
  for (int i = 0; i < 4 && n < p.N; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (channel + j <= last)
        finish_output<T>(params, acc[i][j], n, int64_t(group) * K + k0 + channel + j, row, q);
    if (++q < p.Q) continue;
    q = 0;
    if (++row < p.P) continue;
    row = 0, ++n;
  }
}

// A thread an output, in the order of the output's memory.
template <class T>
__global__ void __launch_bounds__(DirectTile::kThreads)
    conv_direct_narrow(const DirectParams __grid_constant__ params,
                       const DirectOrder __grid_constant__ order) {
  using V = Compute<T>;
  const ConvProblem& p = params.p;
  int64_t n = int64_t(blockIdx.x) * DirectTile::kThreads + threadIdx.x;
  if (n >= p.N * p.K * p.P * p.Q) return;
  const bool channels = params.y.stride[1] == 1;
  int64_t k = channels ? take_remainder(n, order.channels) : 0;
  const int64_t q = take_remainder(n, order.cols), row = take_remainder(n, order.rows);
  if (!channels) k = take_remainder(n, order.channels);
  int64_t group = k;
  const int64_t channel = take_remainder(group, order.group_channels);
  const int64_t C = p.C / p.G, x_step = params.x.stride[1], w_step = params.w.stride[1];
  V acc = 0;
  for (int64_t r = 0; r < p.R; ++r) {
    const int64_t h = row * p.stride_h - p.pad_t + r * p.dil_h;
    if (!inside(h, p.H)) continue;
    for (int64_t s = 0; s < p.S; ++s) {
      const int64_t w = q * p.stride_w - p.pad_l + s * p.dil_w;
      if (!inside(w, p.W)) continue;
      const T* from_x = element<T>(params.x, n, group * C, h, w);
      const T* from_w = element<T>(params.w, channel, 0, r, s) + group * params.w_group;
      for (int64_t c = 0; c < C;) {
        V part = 0;
        for (int i = 0; i < 16 && c < C; ++i, ++c, from_x += x_step, from_w += w_step)
          part += widen(ptx::ld_global(from_x)) * widen(ptx::ld_global(from_w));
        acc += part;
      }
    }
  }
  finish_output<T>(params, acc, n, k, row, q);
}

template <class T>
Status launch_direct(const DirectParams& params, Stream stream) {
  const ConvProblem& p = params.p;
  const int64_t K = p.K / p.G, M = p.N * p.P * p.Q, limit = INT32_MAX;
  if (p.C > limit || p.K > limit || p.R > limit || p.S > limit)
    return {"conv_direct", "channels or kernel sizes beyond 32 bits"};
  const DirectOrder order = {make_axis(p.Q), make_axis(p.P), make_axis(p.K), make_axis(K)};
  if (K < kDirectTileChannels) {
    static const KernelLabel label("conv_direct_narrow_%s", kTypeName<T>);
    return launch_line(label.text, conv_direct_narrow<T>, M * p.K, DirectTile::kThreads,
                       DirectTile::kThreads, 0, stream, params, order);
  }
  static const KernelLabel label("conv_direct_%s", kTypeName<T>);
  constexpr int kPixels = DirectTile::kPixels, kChannels = DirectTile::kChannels;
  const int64_t tiles = (M + kPixels - 1) / kPixels * p.G * ((K + kChannels - 1) / kChannels);
  return launch_line(label.text, conv_direct<T>, tiles, 1, DirectTile::kThreads,
                     DirectTile::kSharedBytes<T>, stream, params, order);
}

}  // namespace fastconv::cuda
