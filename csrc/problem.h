// The problem: sizes of one convolution, checked once. PODs only: no torch, no STL header.
//
// Legend, used in every kernel, planner and blocking file:
//   N batch   C input channels   H W input size   K output channels   R S kernel size
//   P Q output size   G groups   m output pixels   T type of the arithmetic   S (type) storage
//   y[n,k,p,q] = sum_{c,r,s} x[n, c, p*stride_h + r*dil_h - pad_t, q*stride_w + s*dil_w - pad_l] *
//   w[k,c,r,s]
#pragma once
#include <stdint.h>

namespace fastconv {

enum class DType : int32_t { f32 = 0, f64 = 1, bf16 = 2, f16 = 3 };
inline int64_t element_bytes(DType d) { return d == DType::f64 ? 8 : d == DType::f32 ? 4 : 2; }
enum class Activation : int32_t { none = 0, relu = 1, sigmoid = 2 };
// What float32 products may be made of; a code of the ops, of no meaning on the CPU.
enum class Precision : int32_t { ieee = 0, tf32 = 1 };
enum class Direction : int32_t { forward = 0, input_grad = 1, weight_grad = 2 };

// A 4-D tensor in memory: strides in elements, any order, 0 where expanded.
struct View {
  void* data;       // may be null where an operand is optional
  int64_t size[4];  // N C H W
  int64_t stride[4];
};

struct ConvProblem {
  int64_t N, C, H, W;  // input
  int64_t K, R, S;     // weight (K, C / G, R, S)
  int64_t P, Q;        // output
  int64_t G;
  int64_t stride_h, stride_w;
  int64_t pad_t, pad_l, pad_b, pad_r;
  int64_t dil_h, dil_w;
  DType dtype;
  Activation activation;
};

// What the caller asked for besides the sizes of the operands.
struct ConvSettings {
  int64_t stride_h, stride_w, pad_t, pad_l, pad_b, pad_r, dil_h, dil_w, groups, activation;
};

// Output size along one axis: floor((in + pad_before + pad_after - dil * (k - 1) - 1) / stride)
// + 1.
int64_t conv_output_size(int64_t in, int64_t k, int64_t stride, int64_t pad_before,
                         int64_t pad_after, int64_t dil);

// The taps of a kernel along one axis, an arithmetic progression in position and in weight index.
struct TapAxis {
  int64_t count;                // may be 0 in a phase of the input gradient
  int64_t index, index_step;    // weight row (column) of tap i: index + i * index_step
  int64_t offset, offset_step;  // input position of tap i relative to p * stride; offset_step >= 0
};

// Of the forward direction: tap r at p * stride + r * dil - pad.
TapAxis forward_axis(int64_t taps, int64_t dil, int64_t pad);

// One stride phase of the input gradient: dx at h = phase + stride * i takes the taps r with
// (phase + pad - r * dil) divisible by stride, at dy position i + (phase + pad - r * dil) / stride.
TapAxis grad_axis(int64_t taps, int64_t dil, int64_t pad, int64_t stride, int64_t phase);

// Builds and checks a problem; throws std::runtime_error naming the argument, the value and the
// sizes on both sides. weight_sizes is (K, C / G, R, S).
ConvProblem make_conv_problem(const int64_t input_sizes[4], const int64_t weight_sizes[4],
                              const ConvSettings& settings, DType dtype);

}  // namespace fastconv
