#include "conv_implicit_gemm.h"

#include "gemm_instances.cuh"

namespace fastconv::cuda {

Status launch_conv_implicit_gemm(const ConvParams& params, Math math, int tile, Stream stream) {
  return launch_math<false>(params, math, tile, stream);
}

}  // namespace fastconv::cuda
