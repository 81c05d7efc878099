// The launcher of the tensor-core convolution, for callers that are not compiled by nvcc.
#pragma once
#include "status.h"
#include "tiles.h"

namespace fastconv::cuda {

// `tile` is an index into the table of `math`; params.split_depth a multiple of its bk. Where
// params.splits > 1 a second kernel adds the partial sums in order and carries the epilogue.
Status launch_conv_implicit_gemm(const ConvParams& params, Math math, int tile, Stream stream);

}  // namespace fastconv::cuda
