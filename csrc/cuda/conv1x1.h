// 1x1 convolution, any stride, no padding: conv_implicit_gemm's loop where a row has one tap, so a
// step moves the pointers and nothing else.
#pragma once
#include "conv_implicit_gemm.h"

namespace fastconv::cuda {

Status launch_conv1x1(const ConvParams& params, Math math, int tile, Stream stream);

}  // namespace fastconv::cuda
