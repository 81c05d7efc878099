// The convolution that runs any valid problem, for callers that are not compiled by nvcc.
#pragma once
#include "../problem.h"
#include "status.h"

namespace fastconv::cuda {

// Operands in any layout: sizes and strides (in elements) are in their views. `w` is (K, C / G, R,
// S), `residual` has the output's size.
struct DirectParams {
  ConvProblem p;
  View x, w, residual, y;  // residual.data may be null
  const void* bias;        // [K], bias_stride apart; may be null
  int64_t bias_stride;
  int64_t w_group;  // elements from one group's weights to the next
};

// Below this many output channels a group a thread computes one output by itself: a tile of 64
// channels would be mostly empty. Counted (loads of each form per product), not measured.
constexpr int64_t kDirectTileChannels = 16;

Status launch_conv_direct(const DirectParams& params, Stream stream);

}  // namespace fastconv::cuda
