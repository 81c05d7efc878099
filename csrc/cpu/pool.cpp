// Pooling on the CPU: one parallel region each.
#include "pool.h"

#include "cpu.h"

namespace fastconv {
namespace {

// The kernel counts places from a window's first tap on in 32 bits.
void check_places(const PoolJob& job) {
  check(job.index_type != IndexType::flat64 || window_span(job.p) <= INT32_MAX,
        "max_pool2d: a window that spans more than 2^31 - 1 places of a plane has no indices, got ",
        "kernel_size=(", job.p.rows.k, ", ", job.p.cols.k, ") with rows of ", job.p.cols.in);
}

using Run = void (*)(const PoolJob&, void* scratch, int64_t begin, int64_t end);

void run(const PoolJob& job, Run kernel) {
  const PoolProblem& p = job.p;
  // Tasks are of the side that is written: output rows forward, input rows backward.
  const int64_t planes = p.N * p.C, result = job.grad ? p.rows.in : p.rows.out;
  if (planes * p.rows.out * p.cols.out == 0 && !job.grad) return;
  const int64_t bytes = cpu_kernels().pool_scratch(job);
  parallel_tasks(
      pool_channels(job) ? p.N * result : planes, flops(job),
      [&](int64_t begin, int64_t end) { kernel(job, scratch(Slot::own, bytes), begin, end); });
}

struct Cpu {
  static void run(PoolKernel kernel, const PoolJob& job, const Tensor&) {
    fastconv::run(kernel, job);
  }
};

}  // namespace

double flops(const PoolJob& job) {
  const PoolAxis &h = job.p.rows, &w = job.p.cols;
  return 16.0 * job.p.N * job.p.C * (double(h.in) * w.in + double(h.out) * w.out);
}

void run(PoolKernel kernel, const PoolJob& job) {
  const KernelTable& kernels = cpu_kernels();
  switch (kernel) {
    case PoolKernel::max: check_places(job); return run(job, kernels.max_pool_run);
    case PoolKernel::max_grad: return run(job, kernels.max_pool_grad_run);
    case PoolKernel::avg: return run(job, kernels.avg_pool_run);
    case PoolKernel::avg_grad: return run(job, kernels.avg_pool_grad_run);
    case PoolKernel::max_gather:
      return parallel_tasks(
          job.p.N * job.p.rows.out, 40.0 * job.p.N * job.p.C * job.p.rows.out * job.p.cols.out,
          [&](int64_t begin, int64_t end) { kernels.max_pool_gather_run(job, begin, end); });
  }
}

STABLE_TORCH_LIBRARY_IMPL(fastconv, CPU, m) { PoolOps<Cpu>::register_on(m); }

}  // namespace fastconv
