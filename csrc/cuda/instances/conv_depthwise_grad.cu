#include "../conv_depthwise_grad.cuh"

namespace fastconv::cuda {

Status launch_conv_depthwise_weight_grad(const ConvParams& params, DType dtype, Stream stream) {
  switch (dtype) {
    case DType::f32: return launch_depthwise_weight_grad<float>(params, stream);
    case DType::bf16: return launch_depthwise_weight_grad<bf16>(params, stream);
    case DType::f16: return launch_depthwise_weight_grad<half>(params, stream);
    default: return {"conv_depthwise_weight_grad", "float64"};
  }
}

}  // namespace fastconv::cuda
