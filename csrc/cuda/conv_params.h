// What the host tells a convolution kernel: a POD made from a ConvProblem. No CUDA header here.
// Activations are N H W C with `pixel` elements from one pixel to the next (C, or more where the
// tensor is a slice of channels); weights are K R S C/G, without gaps.
#pragma once
#include <stdint.h>

#include "../problem.h"

namespace fastconv::cuda {

// How products are made: by tensor cores in half precision, in tf32, or in float32 by three tf32
// products (3xTF32).
enum class Math : int32_t { f16 = 0, bf16 = 1, tf32 = 2, f32 = 3 };

constexpr int element_bytes(Math math) { return math == Math::f16 || math == Math::bf16 ? 2 : 4; }

// float64 has none.
constexpr Math math_of(DType dtype, bool tf32) {
  return dtype == DType::f16    ? Math::f16
         : dtype == DType::bf16 ? Math::bf16
         : tf32                 ? Math::tf32
                                : Math::f32;
}

// n / d for 0 <= n < 2^31 by a multiplication, as (2n * factor >> 32) >> shift: with 2^shift >= d
// the factor ceil(2^(31+shift) / d) is off by less than one, so the quotient by less than n / 2^31
// of 1 / d (Granlund and Montgomery, 1994).
struct Divisor {
  uint32_t d, factor, shift;
};
inline Divisor make_divisor(int64_t d) {
  uint32_t l = 0;
  while ((int64_t(1) << l) < d) ++l;
  return {uint32_t(d), uint32_t(((uint64_t(1) << (31 + l)) + d - 1) / d), l};
}

struct ConvOperands {
  const void *x, *w;
  const void *bias, *residual;  // may be null
  void* y;
  float* partial;  // splits x N P Q x K, where splits > 1
  int64_t x_pixel, y_pixel, residual_pixel;
};

// Where weight (k, c, r, s) of a group lies, in elements; k is a channel of the product's outputs.
struct WeightStrides {
  int64_t first, group;
  int32_t k, c, r, s;
};

// Where output (n, p, q) lies, in pixels.
struct OutputPlace {
  int32_t first, image, line, step;
};

struct ConvParams {
  ConvOperands at;
  WeightStrides weight;
  int32_t H, W, R, S, Q;
  int32_t M;     // output pixels, N P Q
  int32_t C, K;  // of one group
  int32_t groups;
  int32_t stride_h, stride_w, pad_t, pad_l, dil_h, dil_w;
  Activation activation;
  Divisor by_image, by_row;  // P Q, Q
  int32_t depth;             // length of the reduction, R S C
  int32_t splits, split_depth;
  // A stride phase of the input gradient (conv_grad_params.h) is a convolution of dy whose outputs
  // are some of the pixels of dx. Elsewhere `total` is M.
  OutputPlace place;
  int32_t total;                 // pixels of all phases
  Divisor by_channels, by_taps;  // C, S
};

// The problem of operands whose channels zeros fill up to whole 16-byte chunks.
inline ConvProblem filled(ConvProblem p, Math math) {
  const int64_t chunk = 16 / element_bytes(math);
  if (p.G == 1) p.C = (p.C + chunk - 1) / chunk * chunk, p.K = (p.K + chunk - 1) / chunk * chunk;
  return p;
}

// Copies of the operands and tensor cores beside the direct kernel: from so many products on, which
// take that one some 30 us of an H100 by its roofline of FMA. Computed, not measured; tests lower
// it.
inline double least_filled_products = 1 << 29;
constexpr int64_t kMostFilling = 8;  // times as many products

inline const char* filling_refusal(const ConvProblem& p, Math math) {
  const int64_t chunk = 16 / element_bytes(math);
  if (p.C / p.G % chunk == 0 && p.K / p.G % chunk == 0) return nullptr;
  if (p.G > 1) return "the channels of a group are not whole 16-byte chunks";
  const ConvProblem q = filled(p, math);
  if (double(p.N * p.P * p.Q) * double(p.C * p.K * p.R * p.S) < least_filled_products ||
      q.C * q.K > kMostFilling * p.C * p.K)
    return "the channels are not whole 16-byte chunks, and filling them up would not pay";
  return nullptr;
}

// Blocks along y and z of a grid, and why a planner's row refuses what would need more.
constexpr int64_t kMostRows = 65535;
constexpr char kTooManyRows[] = "more channels than a grid has rows";

// Why the implicit GEMM kernels (conv_implicit_gemm, conv1x1) cannot run a problem; null if they
// can, as filled(). The pointers must be aligned to 16 bytes, and the pixel strides whole chunks.
inline const char* implicit_gemm_refusal(const ConvProblem& p, Math math) {
  const int64_t limit = INT32_MAX - 1024;  // a tile more fits
  if (const char* refusal = filling_refusal(p, math)) return refusal;
  if (p.R > 15 || p.S > 15) return "the kernel is larger than 15x15";
  if (p.N * p.P * p.Q > limit || p.C > limit || p.K > limit || p.R * p.S * (p.C / p.G) > limit / 8)
    return "sizes beyond 32 bits";
  if (p.H + p.pad_t + p.pad_b > limit / 2 || p.W + p.pad_l + p.pad_r > limit / 2)
    return "sizes beyond 32 bits";
  if (p.G > kMostRows) return "more groups than a grid has rows";
  return nullptr;
}
inline const char* conv1x1_refusal(const ConvProblem& p, Math math) {
  if (p.R != 1 || p.S != 1) return "the kernel is larger than 1x1";
  if (p.pad_t || p.pad_l || p.pad_b || p.pad_r) return "outputs outside the input";
  return implicit_gemm_refusal(p, math);
}

inline ConvParams make_conv_params(const ConvProblem& p, const ConvOperands& at, int splits,
                                   int split_depth) {
  ConvParams c = {};
  c.at = at;
  c.H = int32_t(p.H), c.W = int32_t(p.W);
  c.R = int32_t(p.R), c.S = int32_t(p.S), c.Q = int32_t(p.Q);
  c.M = int32_t(p.N * p.P * p.Q);
  c.C = int32_t(p.C / p.G), c.K = int32_t(p.K / p.G), c.groups = int32_t(p.G);
  c.stride_h = int32_t(p.stride_h), c.stride_w = int32_t(p.stride_w);
  c.pad_t = int32_t(p.pad_t), c.pad_l = int32_t(p.pad_l);
  c.dil_h = int32_t(p.dil_h), c.dil_w = int32_t(p.dil_w);
  c.activation = p.activation;
  c.by_image = make_divisor(p.P * p.Q);
  c.by_row = make_divisor(p.Q);
  c.depth = c.R * c.S * c.C;
  c.weight = {0, int64_t(c.K) * c.depth, c.depth, 1, c.S * c.C, c.C};
  c.place = {0, int32_t(p.P * p.Q), c.Q, 1};
  c.total = c.M;
  c.by_channels = make_divisor(c.C);
  c.by_taps = make_divisor(c.S);
  c.splits = splits, c.split_depth = split_depth;
  return c;
}

}  // namespace fastconv::cuda
