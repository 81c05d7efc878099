#include "../gemm_launch.cuh"

namespace fastconv::cuda {
template Status launch_gemm<Math::tf32, true>(const ConvParams&, int, Stream);
}
