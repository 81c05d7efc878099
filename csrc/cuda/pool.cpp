// Pooling on CUDA.
#include "pool.h"

#include "../pool_op.h"
#include "op.h"

namespace fastconv::cuda {
namespace {

struct Cuda {
  static void run(PoolKernel kernel, const PoolJob& job, const Tensor& operand) {
    const PoolProblem& p = job.p;
    if (p.N * p.C * p.rows.out * p.cols.out == 0) return;
    const OnDevice on(device_of(operand));
    switch (kernel) {
      case PoolKernel::max: return must(launch_max_pool(job, on.place().stream), p);
      case PoolKernel::avg: return must(launch_avg_pool(job, on.place().stream), p);
      default: fail("fastconv: the gradients of pooling are not written for CUDA yet");
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
