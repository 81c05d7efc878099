#include "../gemm_launch.cuh"

namespace fastconv::cuda {
template Status launch_gemm<Math::f32, false>(const ConvParams&, int, Stream);
}
