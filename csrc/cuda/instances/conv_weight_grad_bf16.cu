#include "../gemm_launch.cuh"

namespace fastconv::cuda {
template Status launch_weight_grad<Math::bf16, false>(const ConvParams&, float*, int, Stream);
template Status launch_weight_grad<Math::bf16, true>(const ConvParams&, float*, int, Stream);
}  // namespace fastconv::cuda
