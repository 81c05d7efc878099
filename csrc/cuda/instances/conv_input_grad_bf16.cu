#include "../gemm_launch.cuh"

namespace fastconv::cuda {
template Status launch_input_grad<Math::bf16, false>(const PhaseParams&, int, int, Stream);
template Status launch_input_grad<Math::bf16, true>(const PhaseParams&, int, int, Stream);
}  // namespace fastconv::cuda
