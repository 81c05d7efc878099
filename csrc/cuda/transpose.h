// A copy of a tensor into another layout, for callers that are not compiled by nvcc.
#pragma once
#include "../problem.h"
#include "status.h"

namespace fastconv::cuda {

struct TransposeParams {
  View from, to;  // of one size, any strides
  DType dtype;
};

Status launch_transpose(const TransposeParams& params, Stream stream);

}  // namespace fastconv::cuda
