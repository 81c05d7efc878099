#include "conv_implicit_gemm.h"

#include "dialect.cuh"

namespace fastconv::cuda {

// Instantiated in instances/, a file each.
template <Math kMath, bool kPointwise>
Status launch_gemm(const ConvParams& params, int tile, Stream stream);

template <bool kPointwise>
static Status launch_math(const ConvParams& params, Math math, int tile, Stream stream) {
  switch (math) {
    case Math::f16: return launch_gemm<Math::f16, kPointwise>(params, tile, stream);
    case Math::bf16: return launch_gemm<Math::bf16, kPointwise>(params, tile, stream);
    case Math::tf32: return launch_gemm<Math::tf32, kPointwise>(params, tile, stream);
    default: return launch_gemm<Math::f32, kPointwise>(params, tile, stream);
  }
}

Status launch_conv_implicit_gemm(const ConvParams& params, Math math, int tile, void* stream) {
  return launch_math<false>(params, math, tile, stream);
}
Status launch_conv1x1(const ConvParams& params, Math math, int tile, void* stream) {
  return launch_math<true>(params, math, tile, stream);
}

}  // namespace fastconv::cuda
