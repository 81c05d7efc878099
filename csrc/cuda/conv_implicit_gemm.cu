#include "conv_implicit_gemm.h"

#include "gemm_instances.cuh"

namespace fastconv::cuda {

Status launch_conv_implicit_gemm(const ConvParams& params, Math math, int tile, Stream stream) {
  return with_math(math, [&](auto constant) {
    return launch_gemm<decltype(constant)::value, false>(params, tile, stream);
  });
}

}  // namespace fastconv::cuda
