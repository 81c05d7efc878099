// The gradients of the implicit GEMM as its kernels see them: pure, no CUDA header.
#pragma once
#include "conv_params.h"

namespace fastconv::cuda {

constexpr int kMostPhases = 16;

// The input gradient: one convolution of dy for each (h mod stride_h, w mod stride_w), by the taps
// that reach it, so that no zero is multiplied. The phases of most taps come first.
struct PhaseParams {
  ConvParams phase[kMostPhases];
};
static_assert(sizeof(PhaseParams) <= 4096, "a kernel's arguments");

// Why conv_input_grad or conv_weight_grad cannot run a problem; null if it can. The pointers must
// be aligned to 16 bytes, and the pixel strides whole chunks.
inline const char* gemm_grad_refusal(const ConvProblem& p, Math math, Direction d) {
  const int64_t limit = INT32_MAX - 1024;
  if (const char* refusal = implicit_gemm_refusal(p, math)) return refusal;
  if (p.N * p.H * p.W > limit || p.R * p.S * (p.K / p.G) > limit / 8) return "sizes beyond 32 bits";
  // The input gradient counts a group's weights in chunks of 16 bytes.
  if (p.R * p.S * (p.C / p.G) * (p.K / p.G) >= (int64_t(1) << 32) * 16 / element_bytes(math))
    return "sizes beyond 32 bits";
  if (d == Direction::weight_grad &&
      (p.H + p.pad_t + p.pad_b > 65535 || p.W + p.pad_l + p.pad_r > 65535))
    return "rows or columns beyond 16 bits";
  // The weight gradient counts the place of a first tap behind the last image too.
  if (d == Direction::weight_grad &&
      (p.N * p.H + p.pad_t + p.pad_b) * p.W + p.pad_l + p.pad_r > limit)
    return "sizes beyond 32 bits";
  if (d == Direction::input_grad && p.stride_h * p.stride_w > kMostPhases)
    return "more than 16 stride phases";
  return nullptr;
}
// The same of conv1x1's gradients.
inline const char* grad1x1_refusal(const ConvProblem& p, Math math, Direction d) {
  if (p.stride_h != 1 || p.stride_w != 1) return "the gradients of a strided 1x1 leave pixels out";
  if (const char* refusal = conv1x1_refusal(p, math)) return refusal;
  return gemm_grad_refusal(p, math, d);
}

// `at`: x is dy, y is dx. Returns the number of phases.
inline int make_phase_params(const ConvProblem& p, const ConvOperands& at, int splits,
                             int split_depth, PhaseParams* out) {
  int count = 0;
  for (int64_t a = 0; a < p.stride_h && a < p.H; ++a)
    for (int64_t b = 0; b < p.stride_w && b < p.W; ++b) {
      const TapAxis rows = grad_axis(p.R, p.dil_h, p.pad_t, p.stride_h, a);
      const TapAxis cols = grad_axis(p.S, p.dil_w, p.pad_l, p.stride_w, b);
      const bool none = rows.count == 0 || cols.count == 0;  // zeros are written
      ConvProblem q = p;
      q.C = p.K, q.H = p.P, q.W = p.Q, q.K = p.C;
      q.R = none ? 1 : rows.count, q.S = none ? 1 : cols.count;
      q.P = (p.H - a + p.stride_h - 1) / p.stride_h;
      q.Q = (p.W - b + p.stride_w - 1) / p.stride_w;
      q.stride_h = q.stride_w = 1;
      q.pad_t = -rows.offset, q.pad_l = -cols.offset;
      q.dil_h = rows.offset_step, q.dil_w = cols.offset_step;
      q.activation = Activation::none;
      ConvParams c = make_conv_params(q, at, splits, split_depth);
      if (none) c.depth = 0;
      const int32_t C = c.K, row = int32_t(p.R * p.S) * C;  // of weights of one output channel
      c.weight = {(rows.index * p.S + cols.index) * C, int64_t(c.C) * row,          1, row,
                  int32_t(rows.index_step * p.S) * C,  int32_t(cols.index_step) * C};
      c.place = {int32_t(a * p.W + b), int32_t(p.H * p.W), int32_t(p.stride_h * p.W),
                 int32_t(p.stride_w)};
      c.total = int32_t(p.N * p.H * p.W);
      int i = count++;
      for (; i > 0 && out->phase[i - 1].depth < c.depth; --i) out->phase[i] = out->phase[i - 1];
      out->phase[i] = c;
    }
  return count;
}

}  // namespace fastconv::cuda
