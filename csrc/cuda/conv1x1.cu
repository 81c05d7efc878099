#include "conv1x1.h"

#include "gemm_instances.cuh"

namespace fastconv::cuda {

Status launch_conv1x1(const ConvParams& params, Math math, int tile, Stream stream) {
  return with_math(math, [&](auto constant) {
    return launch_gemm<decltype(constant)::value, true>(params, tile, stream);
  });
}

}  // namespace fastconv::cuda
