#include "../gemm_launch.cuh"

namespace fastconv::cuda {
template Status launch_gemm<Math::bf16, false>(const ConvParams&, int, Stream);
}
