#include "../pool_grad.cuh"

namespace fastconv::cuda {

Status launch_avg_pool_grad(const PoolJob& params, Stream stream) {
  return for_dtype(params.p.dtype, [&](auto zero) {
    return launch_avg_pool_grad<decltype(zero)>(params, static_cast<Stream>(stream));
  });
}

}  // namespace fastconv::cuda
