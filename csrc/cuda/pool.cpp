// Pooling on CUDA.
#include "pool.h"

#include "../pool_op.h"
#include "op.h"

namespace fastconv::cuda {
namespace {

struct Cuda {
  static void run(PoolKernel kernel, const PoolJob& job, const Tensor& operand) {
    const OnDevice on(device_of(operand));
    must(launcher(kernel)(job, on.place().stream), job.p);
  }

  static auto launcher(PoolKernel kernel) -> Status (*)(const PoolJob&, Stream) {
    switch (kernel) {
      case PoolKernel::max: return launch_max_pool;
      case PoolKernel::max_grad: return launch_max_pool_grad;
      case PoolKernel::max_gather: return launch_max_pool_gather;
      case PoolKernel::avg: return launch_avg_pool;
      default: return launch_avg_pool_grad;
    }
  }

  static void must(const Status& status, const PoolProblem& p) {
    const int64_t size[4] = {p.N, p.C, p.rows.in, p.cols.in};
    check_launch(status, "a pooling of ", shape(size, 4), " to ", p.rows.out, " x ", p.cols.out);
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(FASTCONV_CUDA_LIBRARY, FASTCONV_CUDA_KEY, m) {
  PoolOps<Cuda>::register_on(m);
}

}  // namespace fastconv::cuda
