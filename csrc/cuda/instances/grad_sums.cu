#include "../grad_sums.cuh"

namespace fastconv::cuda {

Status launch_add_parts(const GradSums& sums, Stream stream) {
  return for_dtype(sums.dtype,
                   [&](auto zero) { return launch_add_parts_of<decltype(zero)>(sums, stream); });
}

}  // namespace fastconv::cuda
