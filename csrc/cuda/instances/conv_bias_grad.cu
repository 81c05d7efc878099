#include "../conv_bias_grad.cuh"

namespace fastconv::cuda {

Status launch_conv_bias_grad(const BiasGradParams& params, Stream stream) {
  return for_dtype(params.dtype,
                   [&](auto zero) { return launch_bias_grad<decltype(zero)>(params, stream); });
}

}  // namespace fastconv::cuda
