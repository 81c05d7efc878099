#include "../gemm_launch.cuh"

namespace fastconv::cuda {
template Status launch_weight_grad<Math::f32, false>(const ConvParams&, float*, int, Stream);
template Status launch_weight_grad<Math::f32, true>(const ConvParams&, float*, int, Stream);
}  // namespace fastconv::cuda
