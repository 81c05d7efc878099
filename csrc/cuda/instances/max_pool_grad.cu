#include "../pool_grad.cuh"

namespace fastconv::cuda {

Status launch_max_pool_grad(const PoolJob& params, Stream stream) {
  return for_dtype(params.p.dtype, [&](auto zero) {
    return launch_max_pool_grad<decltype(zero)>(params, static_cast<Stream>(stream));
  });
}

Status launch_max_pool_gather(const PoolJob& params, Stream stream) {
  return for_dtype(params.p.dtype, [&](auto zero) {
    return launch_max_pool_gather<decltype(zero)>(params, static_cast<Stream>(stream));
  });
}

}  // namespace fastconv::cuda
