#include "conv1x1.h"

#include "gemm_instances.cuh"

namespace fastconv::cuda {

Status launch_conv1x1(const ConvParams& params, Math math, int tile, Stream stream) {
  return launch_math<true>(params, math, tile, stream);
}

}  // namespace fastconv::cuda
