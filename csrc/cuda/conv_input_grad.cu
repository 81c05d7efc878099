#include "conv_input_grad.h"

#include "gemm_instances.cuh"

namespace fastconv::cuda {

Status launch_conv_input_grad(const PhaseParams& all, int phases, bool pointwise, Math math,
                              int tile, Stream stream) {
  return with_math(math, [&](auto constant) {
    constexpr Math kMath = decltype(constant)::value;
    return pointwise ? launch_input_grad<kMath, true>(all, phases, tile, stream)
                     : launch_input_grad<kMath, false>(all, phases, tile, stream);
  });
}

}  // namespace fastconv::cuda
