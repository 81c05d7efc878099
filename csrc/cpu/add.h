// The CPU's side of PairOps (pair_op.h): one parallel region.
#pragma once
#include "../pair_op.h"
#include "cpu.h"

namespace fastconv {

inline double flops(const PairJob& job) { return 16.0 * job.total; }  // of as much time

inline void run(const PairJob& job) {
  const bool channels = job.out.stride[1] == 1 && job.out.size[1] > 1;
  const int64_t tasks = job.dense ? (job.total + kPairBlock - 1) / kPairBlock
                                  : job.out.size[0] * job.out.size[channels ? 2 : 1];
  parallel_tasks(tasks, flops(job),
                 [&](int64_t begin, int64_t end) { cpu_kernels().pair_run(job, begin, end); });
}

struct CpuPairs {
  static void run(const PairJob& job, const Tensor&) { fastconv::run(job); }
};

}  // namespace fastconv
