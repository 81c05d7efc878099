// Runs Winograd's jobs: their blocking, scratch and parallel regions.
#pragma once
#include "../tensor.h"
#include "cpu.h"
#include "fold.h"
#include "winograd.h"

namespace fastconv {

inline int64_t panel_of(DType dtype) {
  return dtype == DType::f64 ? cpu_kernels().panel_f64 : cpu_kernels().panel_f32;
}

inline int64_t panel_pairs(const TapConv& job) {  // (group, panel)
  return job.G * ceil_div(job.K, panel_of(job.dtype));
}

inline double flops(const TapConv& job) {
  if (job.transposed)
    return 2.0 * job.N * job.G * job.K * job.C * job.H * job.W * job.rows.count * job.cols.count;
  return 2.0 * job.N * job.G * job.K * job.C * job.P * job.Q * job.rows.count * job.cols.count;
}

// `kept`: its weights are transformed before, and kept between calls.
WinogradBlocking winograd_blocking(const TapConv& job, bool kept);
void pack_winograd(const TapConv& job, const WinogradBlocking& b, float* u);
void run_winograd(const TapConv& job, const float* u);
void run_winograd_grad(const WeightGrad& job, double work);

// Of jobs that are to be folded. False: the result is not finite somewhere, and must be made again
// by the direct kernel.
void pack_folded(const TapConv& job, float* u);
bool run_folded(const TapConv& job, const float* u);
bool run_folded_grad(const WeightGrad& job, double work);

}  // namespace fastconv
