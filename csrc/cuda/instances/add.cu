#include "../add.cuh"

namespace fastconv::cuda {

Status launch_add(const PairJob& job, Stream stream) {
  return for_dtype(job.dtype, [&](auto zero) {
    using T = decltype(zero);
    return job.grad ? launch_add<T, true>(job, stream) : launch_add<T, false>(job, stream);
  });
}

}  // namespace fastconv::cuda
