// One forward convolution on the CPU between its operands and its output: checked, planned, not
// run.
#pragma once
#include "../conv_op.h"
#include "conv_run.h"

namespace fastconv {

struct ConvCall {
  ConvProblem problem;
  TapConv job;  // the output's strides in `ys`; its pointer is run's
  const PlanRow* row;
  const void* weights;  // packed before, or null
};

// Throw where the operands do not fit, as the op does.
ConvCall conv2d_call(const ConvOperands& operands, const ConvSettings& settings);
ConvCall conv2d_packed_call(const ConvOperands& operands, const Operand& packed, int64_t height,
                            int64_t width, int64_t activation);

// `output`: (N, K, P, Q) at the job's strides.
void run(ConvCall& call, void* output);

}  // namespace fastconv
