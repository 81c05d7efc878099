#include "../conv_stem_grad.cuh"
#include "../gemm_instances.cuh"

namespace fastconv::cuda {

Status launch_conv_stem_weight_grad(const ConvParams& params, const StemBiasGrad& bias, Math math,
                                    Stream stream) {
  return with_math(math, [&](auto constant) {
    return launch_stem_weight_grad<decltype(constant)::value>(params, bias, stream);
  });
}

}  // namespace fastconv::cuda
