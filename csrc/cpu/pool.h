// Pooling on the CPU, for its ops and for eager calls.
#pragma once
#include "../pool_op.h"

namespace fastconv {

void run(PoolKernel kernel, const PoolJob& job);
double flops(const PoolJob& job);  // of as much time

}  // namespace fastconv
