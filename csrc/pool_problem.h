// Pooling: sizes of one problem, checked once. PODs only: no torch, no STL header.
#pragma once
#include <stdint.h>

#include "problem.h"

namespace fastconv {

// One axis of a pooling. Window p covers p * stride - pad + i * dil for i < k, within [0, in); an
// adaptive one covers [floor(p * in / out), ceil((p + 1) * in / out)).
struct PoolAxis {
  int64_t in, out, k, stride, pad, dil;
  bool adaptive;
};

struct PoolProblem {
  int64_t N, C;
  PoolAxis rows, cols;
  DType dtype;
  bool count_include_pad;
  int64_t divisor;  // 0: the window's places
};

// What a max pooling says about the place of each maximum.
enum class IndexType : int32_t {
  none,
  window8,   // uint8 r * S + s
  window32,  // int32 r * S + s
  flat64,    // int64 h * W + w
};

// Pooling and its gradients: x is the input's side, y the output's.
struct PoolJob {
  PoolProblem p;
  View x, y;
  View index;  // y's size; data may be null
  IndexType index_type;
  bool max, grad;
};

// What the caller asked for besides the sizes of the operands.
struct PoolSettings {
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dil_h, dil_w, ceil_mode;
};

// Output size along one axis: room / stride + 1 with room = in + 2 pad - dil (k - 1) - 1, rounded
// down or (ceil_mode) up; rounded up, no window starts beyond the input and its first pad.
int64_t pool_output_size(int64_t in, int64_t k, int64_t stride, int64_t pad, int64_t dil,
                         bool ceil_mode);

// Places of a plane from a window's first tap to its last.
int64_t window_span(const PoolProblem& p);

// Builds and checks a problem; throws std::runtime_error naming the argument, the value and the
// sizes on both sides.
PoolProblem make_pool_problem(const char* op, const int64_t input_size[4], const PoolSettings& s,
                              DType dtype);
PoolProblem make_adaptive_problem(const char* op, const int64_t input_size[4], int64_t out_h,
                                  int64_t out_w, DType dtype);
// A gradient's problem: the output size is the one that `grad` has, which either rounding may give.
PoolProblem make_pool_grad_problem(const char* op, const int64_t grad_size[4], int64_t height,
                                   int64_t width, PoolSettings s, DType dtype);

}  // namespace fastconv
