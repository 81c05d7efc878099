#include "../gemm_launch.cuh"

namespace fastconv::cuda {
template Status launch_gemm<Math::bf16, true>(const ConvParams&, int, Stream);
}
