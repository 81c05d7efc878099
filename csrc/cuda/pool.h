// Launchers of the poolings, for callers that are not compiled by nvcc.
#pragma once
#include "../pool_problem.h"
#include "status.h"

namespace fastconv::cuda {

// As max_pool2d and avg_pool2d on the CPU: the first of equal values wins, and any NaN; a window
// without a place inside the input has -inf, index 0, and average 0.
Status launch_max_pool(const PoolJob& params, Stream stream);
Status launch_max_pool_grad(const PoolJob& params, Stream stream);
// y = x at the index's places: the gradient of max_pool_grad.
Status launch_max_pool_gather(const PoolJob& params, Stream stream);
// Adaptive and global averages too.
Status launch_avg_pool(const PoolJob& params, Stream stream);
Status launch_avg_pool_grad(const PoolJob& params, Stream stream);

}  // namespace fastconv::cuda
