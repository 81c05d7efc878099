#include "../conv_direct_grad.cuh"

namespace fastconv::cuda {

Status launch_conv_direct_weight_grad(const DirectWeightGradParams& params, Stream stream) {
  return for_dtype(params.p.dtype, [&](auto zero) {
    return launch_direct_weight_grad<decltype(zero)>(params, stream);
  });
}

}  // namespace fastconv::cuda
