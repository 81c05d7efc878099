#include "../gemm_launch.cuh"

namespace fastconv::cuda {
template Status launch_gemm<Math::f16, true>(const ConvParams&, int, Stream);
}
