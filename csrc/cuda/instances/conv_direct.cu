#include "../conv_direct.cuh"

namespace fastconv::cuda {

Status launch_conv_direct(const DirectParams& params, Stream stream) {
  return for_dtype(params.p.dtype,
                   [&](auto zero) { return launch_direct<decltype(zero)>(params, stream); });
}

}  // namespace fastconv::cuda
