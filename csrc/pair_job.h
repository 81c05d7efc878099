// Elementwise work on two operands of one size. PODs only: no torch, no STL header.
#pragma once
#include "problem.h"

namespace fastconv {

// out = activation(a + b), or the gradient of the activation: a at the output b.
struct PairJob {
  View a, b, out;  // one size
  DType dtype;
  Activation activation;
  bool grad;
  bool dense;  // the same dense strides: elements [0, total) in memory order
  int64_t total;
};

}  // namespace fastconv
