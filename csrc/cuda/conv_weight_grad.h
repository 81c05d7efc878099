// The launcher of the tensor-core weight gradient, for callers that are not compiled by nvcc.
#pragma once
#include "conv_grad_params.h"
#include "status.h"
#include "tiles.h"

namespace fastconv::cuda {

// `params` are the forward problem's, where y is dy, `splits` and `split_depth` are of the sum over
// the N P Q pixels, and the result is at.partial, [splits][K][R][S][C]. `tile` is an index into the
// gradients' table of `math`. `pointwise`: 1x1, of stride 1, without padding. `bias`: the sums of
// dy, [splits][K]; may be null.
Status launch_conv_weight_grad(const ConvParams& params, float* bias, bool pointwise, Math math,
                               int tile, Stream stream);

}  // namespace fastconv::cuda
