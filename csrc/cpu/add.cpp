// Residual add and the activation's gradient on the CPU: one parallel region each.
#include "../pair_op.h"
#include "cpu.h"

namespace fastconv {
namespace {

struct Cpu {
  static void run(const PairJob& job, const Tensor&) {
    const bool channels = job.out.stride[1] == 1 && job.out.size[1] > 1;
    const int64_t tasks = job.dense ? (job.total + kPairBlock - 1) / kPairBlock
                                    : job.out.size[0] * job.out.size[channels ? 2 : 1];
    parallel_tasks(tasks, 16.0 * job.total,
                   [&](int64_t begin, int64_t end) { cpu_kernels().pair_run(job, begin, end); });
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastconv, CPU, m) { PairOps<Cpu>::register_on(m); }

}  // namespace fastconv
