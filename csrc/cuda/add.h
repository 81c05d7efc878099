// Launcher of the residual add and of an activation's gradient, for callers that are not compiled
// by nvcc.
#pragma once
#include "../pair_job.h"
#include "status.h"

namespace fastconv::cuda {

Status launch_add(const PairJob& job, Stream stream);

}  // namespace fastconv::cuda
