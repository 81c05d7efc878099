#include "conv_weight_grad.h"

#include "gemm_instances.cuh"

namespace fastconv::cuda {

Status launch_conv_weight_grad(const ConvParams& params, float* bias, bool pointwise, Math math,
                               int tile, Stream stream) {
  return with_math(math, [&](auto constant) {
    constexpr Math kMath = decltype(constant)::value;
    return pointwise ? launch_weight_grad<kMath, true>(params, bias, tile, stream)
                     : launch_weight_grad<kMath, false>(params, bias, tile, stream);
  });
}

}  // namespace fastconv::cuda
