// Launcher of the depthwise convolution, for callers that are not compiled by nvcc.
#pragma once
#include "conv_grad_params.h"
#include "grad_sums.h"
#include "status.h"

namespace fastconv::cuda {

constexpr int64_t kDepthwiseSharedBytes = 48 << 10;  // for the weights of a block

// Chunks of `vector` channels that a block takes: as many as their weights fit, up to 32.
inline int64_t depthwise_chunks(int64_t weight_bytes) {
  const int64_t fitting = kDepthwiseSharedBytes / weight_bytes;
  return fitting < 32 ? fitting : 32;
}
// Rows of the grid, of such blocks. Single channels, a `vector` of 1, are where a pointer is not
// aligned, which only the launcher sees.
inline int64_t depthwise_rows(const ConvProblem& p, int64_t vector) {
  const int64_t weight_bytes = p.R * p.S * (p.C / p.G) * vector * element_bytes(p.dtype);
  const int64_t chunks = (p.K + vector - 1) / vector, most = depthwise_chunks(weight_bytes);
  return (chunks + most - 1) / most;
}

// Why conv_depthwise cannot run a problem; null if it can. Groups of 2 and 4 channels need pointers
// aligned to 16 bytes and pixels whole chunks apart; depthwise problems are slower without.
inline const char* depthwise_refusal(const ConvProblem& p) {
  const int64_t width = p.C / p.G, limit = INT32_MAX;
  if (p.dtype == DType::f64) return "float64";
  if (p.K / p.G != width) return "input and output channels of a group differ in number";
  if (width != 1 && width != 2 && width != 4) return "a group has other than 1, 2 or 4 channels";
  const int64_t chunk = p.dtype == DType::f32 ? 4 : 8;
  if (width > 1 && p.C % chunk != 0) return "the channels are not whole 16-byte chunks";
  // A block steps over outputs by as many as all blocks have at once: half of 32 bits for those.
  if (p.N * p.P * p.Q > limit / 2 || p.C > limit || p.R > 3072 || p.S > 3072 ||
      p.H + p.pad_t + p.pad_b > limit / 2 || p.W + p.pad_l + p.pad_r > limit / 2)
    return "sizes beyond 32 bits";
  if (p.R * p.S * width * 16 > kDepthwiseSharedBytes)
    return "the kernel is larger than shared memory";
  if (depthwise_rows(p, chunk) > kMostRows || (width == 1 && depthwise_rows(p, 1) > kMostRows))
    return kTooManyRows;
  return nullptr;
}

// Of the forward pass, or of one phase of the input gradient.
Status launch_conv_depthwise(const ConvParams& params, DType dtype, Stream stream);

inline const char* depthwise_grad_refusal(const ConvProblem& p, Direction d) {
  if (const char* refusal = depthwise_refusal(p)) return refusal;
  if (p.N * p.H * p.W > INT32_MAX / 2) return "sizes beyond 32 bits";
  if (d == Direction::input_grad && p.stride_h * p.stride_w > kMostPhases)
    return "more than 16 stride phases";
  return nullptr;
}

// A block of the weight gradient sums kDepthwiseTaps taps of a filter row for up to 32 chunks of
// channels; `vector` channels are a chunk. params.split_depth pixels are a part.
constexpr int kDepthwiseTaps = 3;

inline PixelSplit depthwise_split(const ConvProblem& p, int vector, int64_t sms) {
  const int64_t chunks = ((p.K + vector - 1) / vector + 31) / 32;  // the last may be padded
  return split_pixels(p.N * p.P * p.Q, chunks * p.R * ((p.S + kDepthwiseTaps - 1) / kDepthwiseTaps),
                      sms, 32);
}

// `params` as of conv_weight_grad: y is dy, the sums go to at.partial.
Status launch_conv_depthwise_weight_grad(const ConvParams& params, DType dtype, Stream stream);

}  // namespace fastconv::cuda
