#include "problem.h"

#include "error.h"

namespace fastconv {

int64_t conv_output_size(int64_t in, int64_t k, int64_t stride, int64_t pad_before,
                         int64_t pad_after, int64_t dil) {
  return (in + pad_before + pad_after - dil * (k - 1) - 1) / stride + 1;
}

TapAxis forward_axis(int64_t taps, int64_t dil, int64_t pad) { return {taps, 0, 1, -pad, dil}; }

TapAxis grad_axis(int64_t taps, int64_t dil, int64_t pad, int64_t stride, int64_t phase) {
  int64_t first = -1, second = -1, count = 0, last = -1;
  for (int64_t r = 0; r < taps; ++r) {
    if ((phase + pad - r * dil) % stride != 0) continue;
    if (count == 0) first = r;
    if (count == 1) second = r;
    last = r, ++count;
  }
  const int64_t step = count > 1 ? second - first : 1;
  if (count == 0) return {0, 0, 1, 0, 1};
  // From the last tap down, so that positions ascend.
  return {count, last, -step, (phase + pad - last * dil) / stride, step * dil / stride};
}

namespace {

void check_settings(const ConvSettings& s) {
  check(s.stride_h > 0 && s.stride_w > 0, "conv2d: stride must be positive, got (", s.stride_h,
        ", ", s.stride_w, ")");
  check(s.dil_h > 0 && s.dil_w > 0, "conv2d: dilation must be positive, got (", s.dil_h, ", ",
        s.dil_w, ")");
  check(s.pad_t >= 0 && s.pad_l >= 0 && s.pad_b >= 0 && s.pad_r >= 0,
        "conv2d: padding must not be negative, got (", s.pad_t, ", ", s.pad_l, ")");
  check(s.groups > 0, "conv2d: groups must be positive, got ", s.groups);
  check(s.activation >= 0 && s.activation <= 2, "conv2d: activation code must be 0, 1 or 2, got ",
        s.activation);
}

}  // namespace

ConvProblem make_conv_problem(const int64_t input_sizes[4], const int64_t weight_sizes[4],
                              const ConvSettings& s, DType dtype) {
  check_settings(s);
  const int64_t N = input_sizes[0], C = input_sizes[1], H = input_sizes[2], W = input_sizes[3];
  const int64_t K = weight_sizes[0], R = weight_sizes[2], S = weight_sizes[3];
  const Shape x = shape(input_sizes, 4), w = shape(weight_sizes, 4);
  check(K > 0 && R > 0 && S > 0 && weight_sizes[1] > 0,
        "conv2d: weight must have no empty dimension, got weight of size ", w);
  check(C > 0 && H >= 0 && W >= 0, "conv2d: input must have no empty dimension but the batch, got ",
        "input of size ", x);
  check(C == weight_sizes[1] * s.groups, "conv2d: weight of size ", w, " has ", weight_sizes[1],
        " input channels per group, but input of size ", x, " has ", C, " channels in ", s.groups,
        " groups");
  check(K % s.groups == 0, "conv2d: ", K, " output channels (weight of size ", w,
        ") are not divisible by groups=", s.groups);
  const int64_t span_h = s.dil_h * (R - 1) + 1, span_w = s.dil_w * (S - 1) + 1;
  check(H + s.pad_t + s.pad_b >= span_h && W + s.pad_l + s.pad_r >= span_w,
        "conv2d: kernel of size (", span_h, " x ", span_w, ", with dilation) is larger than the ",
        "padded input of size (", H + s.pad_t + s.pad_b, " x ", W + s.pad_l + s.pad_r, ")");
  ConvProblem p;
  p.N = N, p.C = C, p.H = H, p.W = W, p.K = K, p.R = R, p.S = S, p.G = s.groups;
  p.P = conv_output_size(H, R, s.stride_h, s.pad_t, s.pad_b, s.dil_h);
  p.Q = conv_output_size(W, S, s.stride_w, s.pad_l, s.pad_r, s.dil_w);
  p.stride_h = s.stride_h, p.stride_w = s.stride_w;
  p.pad_t = s.pad_t, p.pad_l = s.pad_l, p.pad_b = s.pad_b, p.pad_r = s.pad_r;
  p.dil_h = s.dil_h, p.dil_w = s.dil_w;
  p.dtype = dtype;
  p.activation = static_cast<Activation>(s.activation);
  return p;
}

}  // namespace fastconv
