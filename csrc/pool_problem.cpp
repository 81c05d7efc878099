#include "pool_problem.h"

#include "error.h"

namespace fastconv {

int64_t pool_output_size(int64_t in, int64_t k, int64_t stride, int64_t pad, int64_t dil,
                         bool ceil_mode) {
  const int64_t room = in + 2 * pad - dil * (k - 1) - 1;
  if (room < 0 && !(ceil_mode && room > -stride)) return 0;
  const int64_t out = (room + (ceil_mode ? stride - 1 : 0)) / stride + 1;
  return ceil_mode && (out - 1) * stride >= in + pad ? out - 1 : out;
}

int64_t window_span(const PoolProblem& p) {
  return (p.rows.k - 1) * p.rows.dil * p.cols.in + (p.cols.k - 1) * p.cols.dil;
}

namespace {

void check_settings(const char* op, const PoolSettings& s) {
  auto both = [&](bool good, const char* name, const char* rule, int64_t h, int64_t w) {
    check(good, op, ": ", name, " must ", rule, ", got (", h, ", ", w, ")");
  };
  both(s.kernel_h > 0 && s.kernel_w > 0, "kernel_size", "be greater than zero", s.kernel_h,
       s.kernel_w);
  both(s.stride_h > 0 && s.stride_w > 0, "stride", "be greater than zero", s.stride_h, s.stride_w);
  both(s.dil_h > 0 && s.dil_w > 0, "dilation", "be greater than zero", s.dil_h, s.dil_w);
  both(s.pad_h >= 0 && s.pad_w >= 0, "padding", "be non-negative", s.pad_h, s.pad_w);
  check(s.pad_h <= s.kernel_h / 2 && s.pad_w <= s.kernel_w / 2, op,
        ": padding must be at most half of kernel_size, got padding=(", s.pad_h, ", ", s.pad_w,
        ") with kernel_size=(", s.kernel_h, ", ", s.kernel_w, ")");
  check(s.kernel_h <= INT32_MAX / s.kernel_w, op, ": kernel_size=(", s.kernel_h, ", ", s.kernel_w,
        ") has more than 2^31 - 1 places");
}

void check_input(const char* op, const int64_t size[4]) {
  check(size[1] > 0 && size[2] > 0 && size[3] > 0, op,
        ": input must have no empty dimension but the batch, got input of size ", shape(size, 4));
}

PoolProblem problem(const int64_t input_size[4], const PoolSettings& s, DType dtype) {
  PoolProblem p = {};
  p.N = input_size[0], p.C = input_size[1];
  p.rows = {input_size[2], 0, s.kernel_h, s.stride_h, s.pad_h, s.dil_h, false};
  p.cols = {input_size[3], 0, s.kernel_w, s.stride_w, s.pad_w, s.dil_w, false};
  p.dtype = dtype;
  return p;
}

int64_t output_size(const PoolAxis& a, bool ceil_mode) {
  return pool_output_size(a.in, a.k, a.stride, a.pad, a.dil, ceil_mode);
}

}  // namespace

PoolProblem make_pool_problem(const char* op, const int64_t input_size[4], const PoolSettings& s,
                              DType dtype) {
  check_settings(op, s);
  check_input(op, input_size);
  PoolProblem p = problem(input_size, s, dtype);
  p.rows.out = output_size(p.rows, s.ceil_mode), p.cols.out = output_size(p.cols, s.ceil_mode);
  check(p.rows.out > 0 && p.cols.out > 0, op, ": input of size ", shape(input_size, 4),
        " with kernel_size=(", s.kernel_h, ", ", s.kernel_w, "), padding=(", s.pad_h, ", ", s.pad_w,
        "), dilation=(", s.dil_h, ", ", s.dil_w, ") gives an output of size (", p.rows.out, " x ",
        p.cols.out, "), which is too small");
  return p;
}

PoolProblem make_adaptive_problem(const char* op, const int64_t input_size[4], int64_t out_h,
                                  int64_t out_w, DType dtype) {
  check(out_h >= 0 && out_w >= 0, op, ": output_size must be non-negative, got (", out_h, ", ",
        out_w, ")");
  check_input(op, input_size);
  PoolProblem p = {};
  p.N = input_size[0], p.C = input_size[1];
  p.rows = {input_size[2], out_h, 1, 1, 0, 1, true};
  p.cols = {input_size[3], out_w, 1, 1, 0, 1, true};
  p.dtype = dtype;
  return p;
}

PoolProblem make_pool_grad_problem(const char* op, const int64_t grad_size[4], int64_t height,
                                   int64_t width, PoolSettings s, DType dtype) {
  check_settings(op, s);
  const int64_t input_size[4] = {grad_size[0], grad_size[1], height, width};
  check_input(op, input_size);
  PoolProblem p = problem(input_size, s, dtype);
  p.rows.out = grad_size[2], p.cols.out = grad_size[3];
  auto fits = [](const PoolAxis& a) {
    return a.out > 0 && (a.out == output_size(a, false) || a.out == output_size(a, true));
  };
  check(fits(p.rows) && fits(p.cols), op, ": grad of size ", shape(grad_size, 4),
        " must have the output's size, which is (", output_size(p.rows, false), " x ",
        output_size(p.cols, false), ") for an input of size ", shape(input_size, 4));
  return p;
}

}  // namespace fastconv
