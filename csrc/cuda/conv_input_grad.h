// The launcher of the tensor-core input gradient, for callers that are not compiled by nvcc.
#pragma once
#include "conv_grad_params.h"
#include "status.h"
#include "tiles.h"

namespace fastconv::cuda {

// `tile` is an index into the gradients' table of `math`. `pointwise`: one phase, of one tap.
Status launch_conv_input_grad(const PhaseParams& all, int phases, bool pointwise, Math math,
                              int tile, Stream stream);

}  // namespace fastconv::cuda
