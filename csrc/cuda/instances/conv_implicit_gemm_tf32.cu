#include "../gemm_launch.cuh"

namespace fastconv::cuda {
template Status launch_gemm<Math::tf32, false>(const ConvParams&, int, Stream);
}
