// Gradients of any valid convolution, for callers that are not compiled by nvcc.
#pragma once
#include "conv_direct.h"
#include "grad_sums.h"

namespace fastconv::cuda {

// One stride phase of the input gradient is a convolution of dy, of stride 1, by the taps that
// reach the phase, flipped: conv_direct runs it on views. Axes of grad_axis(), whose count is not
// 0; (a, b) is the phase.
inline DirectParams direct_input_grad(const ConvProblem& p, const View& dy, const View& w,
                                      const View& dx, int64_t a, int64_t b, const TapAxis& rows,
                                      const TapAxis& cols) {
  const int64_t bytes = element_bytes(p.dtype);
  DirectParams d = {p, dy, w, {}, dx, nullptr, 0, p.K / p.G * w.stride[0]};
  d.p.C = p.K, d.p.H = p.P, d.p.W = p.Q, d.p.K = p.C;
  d.p.R = rows.count, d.p.S = cols.count;
  d.p.P = (p.H - a + p.stride_h - 1) / p.stride_h;
  d.p.Q = (p.W - b + p.stride_w - 1) / p.stride_w;
  d.p.stride_h = d.p.stride_w = 1;
  d.p.pad_t = -rows.offset, d.p.pad_l = -cols.offset;
  d.p.dil_h = rows.offset_step, d.p.dil_w = cols.offset_step;
  d.p.activation = Activation::none;
  d.w.data =
      static_cast<char*>(w.data) + (rows.index * w.stride[2] + cols.index * w.stride[3]) * bytes;
  d.w.stride[0] = w.stride[1], d.w.stride[1] = w.stride[0];
  d.w.stride[2] *= rows.index_step, d.w.stride[3] *= cols.index_step;
  d.y.data = static_cast<char*>(dx.data) + (a * dx.stride[2] + b * dx.stride[3]) * bytes;
  d.y.stride[2] *= p.stride_h, d.y.stride[3] *= p.stride_w;
  return d;
}

// Below this many products of a group's input and output channels a warp sums one weight by
// itself: a tile of 64 x 64 would be mostly empty. Counted (loads of each form per product), not
// measured.
constexpr int64_t kDirectGradTileWeights = 256;

struct DirectWeightGradParams {
  ConvProblem p;
  View x, dy;     // any layout
  void* partial;  // [splits][K][R][S][C / G], float (float64: double)
  PixelSplit split;
};

inline bool direct_grad_is_narrow(const ConvProblem& p) {
  return p.C / p.G * (p.K / p.G) < kDirectGradTileWeights;
}

inline PixelSplit direct_weight_split(const ConvProblem& p, int64_t sms) {
  const int64_t C = p.C / p.G, K = p.K / p.G;
  const int64_t tiles = direct_grad_is_narrow(p)
                            ? (p.K * C * p.R * p.S + 7) / 8
                            : p.G * ((K + 63) / 64) * ((C + 63) / 64) * p.R * p.S;
  return split_pixels(p.N * p.P * p.Q, tiles, sms, 64);
}

Status launch_conv_direct_weight_grad(const DirectWeightGradParams& params, Stream stream);

}  // namespace fastconv::cuda
