// Launcher of the convolution of few input channels, for callers that are not compiled by nvcc.
#pragma once
#include "grad_sums.h"
#include "tiles.h"

namespace fastconv::cuda {

// A block computes kStemRows x kStemColumns pixels of an image times 64 or 32 channels.
constexpr int kStemRows = 8, kStemColumns = 16, kStemThreads = 128;

// How a problem lies in a block's shared memory. A filter row is S C neighbouring elements, cut
// into 16-byte chunks; `patch` is the input that the block's pixels use, `copy` the same patch one
// element on, for pixels that begin at an odd element where those have 2 bytes. Rows g and g + 8
// of a tensor core's 16 are pixels g and g + 8 where pixel_step is 1, 2 g and 2 g + 1 where it is
// 2: a warp reads four words of each of eight pixels, and their banks should differ.
struct StemShape {
  int32_t channels;               // of a block
  int32_t row_chunks, chunks;     // of a filter row, of a filter
  int32_t weight_pitch;           // bytes of a channel's weights: an odd number of chunks
  int32_t patch_rows, patch_row;  // rows; elements of a row
  int32_t patch_pitch;            // bytes
  int32_t patch, copy, slab;      // offsets; copy is 0 where there is none
  int32_t pixel_step;
  int32_t shared_bytes;
};

inline StemShape stem_shape_of(int64_t C, int64_t R, int64_t S, int64_t stride_h, int64_t stride_w,
                               Math math, int channels) {
  const int64_t bytes = element_bytes(math), chunk = 16 / bytes;
  StemShape s = {};
  s.channels = channels;
  s.row_chunks = int32_t((S * C + chunk - 1) / chunk);
  s.chunks = int32_t(R * s.row_chunks);
  s.weight_pitch = (s.chunks + s.chunks % 2 + 1) * 16;
  s.patch_rows = int32_t((kStemRows - 1) * stride_h + R);
  s.patch_row = int32_t(((kStemColumns - 1) * stride_w + S) * C);
  s.patch_pitch = int32_t((s.patch_row * bytes + 3) / 4 * 4);
  s.patch = channels * s.weight_pitch;
  const int32_t patch_bytes = (s.patch_rows * s.patch_pitch + 16 + 15) / 16 * 16;  // reads overhang
  const bool odd = bytes == 2 && C * stride_w % 2 == 1;
  s.copy = odd ? s.patch + patch_bytes : 0;
  s.pixel_step = !odd && C * stride_w * bytes / 4 % 4 == 2 ? 2 : 1;
  s.slab = s.patch + patch_bytes * (odd ? 2 : 1);
  s.shared_bytes = s.slab + kStemThreads / 32 * 16 * (channels + 8) * 4;
  return s;
}
// 64 channels a block in half precision where three blocks then fit on an SM of an A100.
inline StemShape stem_shape(int64_t C, int64_t R, int64_t S, int64_t stride_h, int64_t stride_w,
                            Math math) {
  const StemShape wide = stem_shape_of(C, R, S, stride_h, stride_w, math, 64);
  if (element_bytes(math) == 2 && wide.shared_bytes <= 52 << 10) return wide;
  return stem_shape_of(C, R, S, stride_h, stride_w, math, 32);
}

// Why conv_stem cannot run a problem; null if it can.
inline const char* stem_refusal(const ConvProblem& p, Math math) {
  const int64_t limit = INT32_MAX - 1024;
  if (p.G != 1) return "groups";
  if (p.C > 4) return "more than 4 input channels";
  if (p.dil_h != 1 || p.dil_w != 1) return "dilation";
  if (p.R > 64 || p.S > 64 || p.stride_h > 64 || p.stride_w > 64)
    return "the patch of a tile is larger than shared memory";
  const StemShape s = stem_shape(p.C, p.R, p.S, p.stride_h, p.stride_w, math);
  if (s.shared_bytes > 99 << 10) return "the patch of a tile is larger than shared memory";
  if (p.N * p.P * p.Q > limit || p.K > limit || p.H + p.pad_t + p.pad_b > limit / 2 ||
      p.W + p.pad_l + p.pad_r > limit / 2)
    return "sizes beyond 32 bits";
  if ((p.K + s.channels - 1) / s.channels > kMostRows) return kTooManyRows;
  return nullptr;
}

// Blocks that run at once: each keeps its weights for several tiles.
inline int32_t stem_blocks(const StemShape& s, const Device& gpu) {
  const int fitting = gpu.shared_per_sm / (s.shared_bytes + 1024);
  return gpu.sms * (fitting > 4 ? 4 : fitting < 1 ? 1 : fitting);
}

// `most_blocks`: of stem_blocks().
Status launch_conv_stem(const ConvParams& params, Math math, int32_t most_blocks, Stream stream);

// ---- Weight gradient: a block sums over tiles of 8 x 16 pixels, for 64 channels times 160 or 32
// of the R S C weights of a channel. In shared memory lie the tile's dy, its patch of the input and
// where `slab` points each thread's sums of dy.

constexpr int kStemGradChannels = 64;

inline int32_t stem_grad_columns(int64_t weights) { return weights <= 32 ? 32 : 160; }

inline StemShape stem_grad_shape(int64_t C, int64_t R, int64_t S, int64_t stride_h,
                                 int64_t stride_w, Math math) {
  StemShape s = stem_shape_of(C, R, S, stride_h, stride_w, math, kStemGradChannels);
  s.patch = kStemRows * kStemColumns * kStemGradChannels * element_bytes(math);
  s.copy = 0;
  s.slab = s.patch + (s.patch_rows * s.patch_pitch + 15) / 16 * 16;
  s.shared_bytes = s.slab + kStemThreads * 16 / int32_t(element_bytes(math)) * 4;
  return s;
}

// Tiles of channels times tiles of weights.
inline int64_t stem_grad_blocks(const ConvProblem& p) {
  const int64_t weights = p.R * p.S * p.C, columns = stem_grad_columns(weights);
  return (p.K + kStemGradChannels - 1) / kStemGradChannels * ((weights + columns - 1) / columns);
}

inline const char* stem_grad_refusal(const ConvProblem& p, Math math, Direction d) {
  if (d == Direction::input_grad) return "it has no input gradient, which sums the other channels";
  if (const char* refusal = stem_refusal(p, math)) return refusal;
  if (stem_grad_shape(p.C, p.R, p.S, p.stride_h, p.stride_w, math).shared_bytes > 99 << 10)
    return "the patch of a tile is larger than shared memory";
  if (stem_grad_blocks(p) > kMostRows) return kTooManyRows;
  return nullptr;
}

inline int64_t stem_tiles(const ConvProblem& p) {
  return p.N * ((p.P + kStemRows - 1) / kStemRows) * ((p.Q + kStemColumns - 1) / kStemColumns);
}

// Splits of the sum: as many blocks as run at once, each with a tile at least.
inline int32_t stem_grad_splits(const ConvProblem& p, Math math, const Device& gpu) {
  const int64_t blocks = stem_grad_blocks(p);
  const StemShape s = stem_grad_shape(p.C, p.R, p.S, p.stride_h, p.stride_w, math);
  const int64_t fitting = gpu.shared_per_sm / (s.shared_bytes + 1024);
  const int64_t at_once = gpu.sms * (fitting > 2 ? 2 : fitting < 1 ? 1 : fitting);
  const int64_t splits = at_once / blocks < 1 ? 1 : at_once / blocks, tiles = stem_tiles(p);
  return int32_t(splits < tiles ? splits : tiles < 1 ? 1 : tiles);
}

// Where the bias gradient is made too: dy is masked and summed on its way to shared memory.
struct StemBiasGrad {
  OutputMask mask;
  float* partial;  // [splits][K]; null where it is not made
};

// `params` as of conv_weight_grad: y is dy, the sums go to at.partial.
Status launch_conv_stem_weight_grad(const ConvParams& params, const StemBiasGrad& bias, Math math,
                                    Stream stream);

}  // namespace fastconv::cuda
