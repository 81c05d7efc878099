#include "../gemm_launch.cuh"

namespace fastconv::cuda {
template Status launch_weight_grad<Math::tf32, false>(const ConvParams&, float*, int, Stream);
template Status launch_weight_grad<Math::tf32, true>(const ConvParams&, float*, int, Stream);
}  // namespace fastconv::cuda
