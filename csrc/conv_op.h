// The arguments of the convolution ops at the torch side, checked once for every backend.
#pragma once
#include <tuple>

#include "tensor.h"

namespace fastconv {

struct ConvOperands {
  Operand input, weight;
  std::optional<Operand> bias, residual;
};

inline ConvOperands conv2d_operands(const Tensor& input, const Tensor& weight,
                                    const OptionalTensor& bias, const OptionalTensor& residual) {
  ConvOperands o = {operand_of(input, "conv2d"), operand_of(weight, "conv2d"), {}, {}};
  if (bias) o.bias = operand_of(*bias, "conv2d");
  if (residual) o.residual = operand_of(*residual, "conv2d");
  return o;
}

inline ConvProblem conv2d_problem(const ConvOperands& o, const ConvSettings& settings) {
  const char* op = "conv2d";
  const View x = view_of(o.input, op, "input"), w = view_of(o.weight, op, "weight");
  check_same(o.input, "input", o.weight, "weight", op);
  if (o.bias) check_same(o.input, "input", *o.bias, "bias", op);
  if (o.residual) check_same(o.input, "input", *o.residual, "residual", op);
  const ConvProblem p = make_conv_problem(x.size, w.size, settings, o.input.dtype);
  if (o.bias)
    check(o.bias->dims == 1 && o.bias->size[0] == p.K, "conv2d: bias must have size [", p.K,
          "] (the weight's output channels), got ",
          shape(o.bias->size, static_cast<int>(o.bias->dims)));
  const int64_t y_size[4] = {p.N, p.K, p.P, p.Q};
  if (o.residual) check_size(op, "residual", view_of(*o.residual, op, "residual"), y_size);
  return p;
}

inline ConvProblem conv2d_input_grad_problem(const Tensor& grad, const Tensor& weight, int64_t H,
                                             int64_t W, const ConvSettings& settings) {
  const char* op = "conv2d_input_grad";
  const View dy = view_of(grad, op, "grad"), w = view_of(weight, op, "weight");
  check_same(grad, "grad", weight, "weight", op);
  const int64_t x_size[4] = {dy.size[0], w.size[1] * settings.groups, H, W};
  const ConvProblem p = make_conv_problem(x_size, w.size, settings, dtype_of(grad, op));
  const int64_t y_size[4] = {p.N, p.K, p.P, p.Q};
  check_size(op, "grad", dy, y_size);
  return p;
}

inline ConvProblem conv2d_weight_grad_problem(const Tensor& input, const Tensor& grad, int64_t R,
                                              int64_t S, const ConvSettings& settings) {
  const char* op = "conv2d_weight_grad";
  const View x = view_of(input, op, "input"), dy = view_of(grad, op, "grad");
  check_same(input, "input", grad, "grad", op);
  check(settings.groups > 0 && x.size[1] % settings.groups == 0, op, ": ", x.size[1],
        " input channels are not divisible by groups=", settings.groups);
  const int64_t w_size[4] = {dy.size[1], x.size[1] / settings.groups, R, S};
  const ConvProblem p = make_conv_problem(x.size, w_size, settings, dtype_of(input, op));
  const int64_t y_size[4] = {p.N, p.K, p.P, p.Q};
  check_size(op, "grad", dy, y_size);
  return p;
}

// What a weight gradient reads beside dy: the forward's output where the sum before an activation
// is meant. True where there is such an activation.
inline bool masked_by_output(const char* op, const Tensor& grad, const OptionalTensor& output,
                             int64_t activation) {
  if (activation_of(activation, op) == Activation::none) return false;
  check(output.has_value(), op, ": an activation's gradient needs its output");
  check_same(grad, "grad", *output, "output", op);
  check_size(op, "output", view_of(*output, op, "output"), view_of(grad, op, "grad").size);
  return true;
}

}  // namespace fastconv
