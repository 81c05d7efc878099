#include "../gemm_launch.cuh"

namespace fastconv::cuda {
template Status launch_input_grad<Math::f16, false>(const PhaseParams&, int, int, Stream);
template Status launch_input_grad<Math::f16, true>(const PhaseParams&, int, int, Stream);
}  // namespace fastconv::cuda
