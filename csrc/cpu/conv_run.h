// Runs the jobs of a convolution on the CPU, by the algorithm that the planner chose.
#pragma once
#include "../plan.h"
#include "../tensor.h"
#include "jobs.h"

namespace fastconv {

// Of the CPU that runs this. `measured_rules`: see plan.h.
Capabilities cpu_capabilities(bool measured_rules = true);

// Weights as a kernel reads them: packed, or transformed. Where two problems agree in `key`, their
// packed weights are the same.
constexpr int kPackingPlan = 6, kPackingKey = 11;
struct Packing {
  int64_t key[kPackingKey];  // the plan: algorithm, panels, chunk, tile; then sizes of the weight
  int64_t size;              // elements of the arithmetic's type; 0: nothing to keep
};

// Of the forward direction; sizes and strides of the job are used, not its pointers.
Packing conv_packing(const TapConv& job, const PlanRow& row);
void conv_pack(const TapConv& job, const PlanRow& row, void* packed);

// From now on Winograd's tiles of a 3x3 are of rows x cols outputs, where its forms leave the
// choice; 0, 0: by the rules in winograd.h. To measure these; no convolution may be running.
void set_winograd_tile(int rows, int cols);

// Whether a 3x3 of this thread may have tiles of 6 x 6 outputs from now on; returns whether it
// might.
bool set_winograd_6x6(bool allowed);

// `packed` as conv_pack made it, or null.
void conv_run(const TapConv& job, const PlanRow& row, Direction direction, const void* packed);
// The stride phases of an input gradient, (a, b) at a * step_w + b. `whole`: dx as the outputs of
// one job, with the taps of the whole kernel.
void conv_run_phases(const TapConv& whole, int64_t step_h, int64_t step_w, const TapConv* phases,
                     const PlanRow& row);
void weight_grad_run(WeightGrad job, const PlanRow& row);  // and the bias gradient, if `db`
void bias_grad_run(const View& dy, DType dtype, void* db);

}  // namespace fastconv
