// Launcher of the depthwise convolution, for callers that are not compiled by nvcc.
#pragma once
#include "conv_params.h"
#include "status.h"

namespace fastconv::cuda {

constexpr int64_t kDepthwiseSharedBytes = 48 << 10;  // for the weights of a block

// Why conv_depthwise cannot run a problem; null if it can. Groups of 2 and 4 channels need pointers
// aligned to 16 bytes and pixels whole chunks apart; depthwise problems are slower without.
inline const char* depthwise_refusal(const ConvProblem& p) {
  const int64_t width = p.C / p.G, limit = INT32_MAX;
  if (p.dtype == DType::f64) return "float64";
  if (p.K / p.G != width) return "input and output channels of a group differ in number";
  if (width != 1 && width != 2 && width != 4) return "a group has other than 1, 2 or 4 channels";
  const int64_t chunk = p.dtype == DType::f32 ? 4 : 8;
  if (width > 1 && p.C % chunk != 0) return "the channels are not whole 16-byte chunks";
  if (p.N * p.P * p.Q > limit || p.C > limit || p.R > 3072 || p.S > 3072 ||
      p.H + p.pad_t + p.pad_b > limit / 2 || p.W + p.pad_l + p.pad_r > limit / 2)
    return "sizes beyond 32 bits";
  if (p.R * p.S * width * 16 > kDepthwiseSharedBytes)
    return "the kernel is larger than shared memory";
  return nullptr;
}

Status launch_conv_depthwise(const ConvParams& params, DType dtype, Stream stream);

}  // namespace fastconv::cuda
