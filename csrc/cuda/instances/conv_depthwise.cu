#include "../conv_depthwise.cuh"

namespace fastconv::cuda {

Status launch_conv_depthwise(const ConvParams& params, DType dtype, Stream stream) {
  switch (dtype) {
    case DType::f32: return launch_depthwise<float>(params, stream);
    case DType::bf16: return launch_depthwise<bf16>(params, stream);
    case DType::f16: return launch_depthwise<half>(params, stream);
    default: return {"conv_depthwise", "float64"};
  }
}

}  // namespace fastconv::cuda
