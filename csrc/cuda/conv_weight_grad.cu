#include "conv_weight_grad.h"

#include "gemm_instances.cuh"

namespace fastconv::cuda {

Status launch_conv_weight_grad(const ConvParams& params, bool pointwise, Math math, int tile,
                               Stream stream) {
  return with_math(math, [&](auto constant) {
    constexpr Math kMath = decltype(constant)::value;
    return pointwise ? launch_weight_grad<kMath, true>(params, tile, stream)
                     : launch_weight_grad<kMath, false>(params, tile, stream);
  });
}

}  // namespace fastconv::cuda
