// Launchers of the poolings, for callers that are not compiled by nvcc.
#pragma once
#include "../pool_problem.h"

namespace fastconv::cuda {

struct Status;

struct PoolParams {
  PoolProblem p;
  View x, y;   // any strides
  View index;  // y's size, of max pooling only; unused where index_type is none
  IndexType index_type;
};

// As max_pool2d and avg_pool2d on the CPU: the first of equal values wins, and any NaN; a window
// without a place inside the input has -inf, index 0, and average 0.
Status launch_max_pool(const PoolParams& params, void* stream);
// Adaptive and global averages too.
Status launch_avg_pool(const PoolParams& params, void* stream);

}  // namespace fastconv::cuda
