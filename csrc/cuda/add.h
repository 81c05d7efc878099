// Launcher of residual add and the activation's gradient.
#pragma once
#include "../pair_job.h"
#include "status.h"

namespace fastconv::cuda {

Status launch_add(const PairJob& job, Stream stream);

}  // namespace fastconv::cuda
