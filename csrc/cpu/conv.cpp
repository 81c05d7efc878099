// Torch side of the convolution on the CPU: tensors to jobs, which conv_run.cpp runs.
#include <vector>

#include "../choice.h"
#include "../pages.h"
#include "add.h"
#include "blocking.h"
#include "conv_call.h"

namespace fastconv {
namespace {

void set_strides(int64_t to[4], const View& v) {
  for (int i = 0; i < 4; ++i) to[i] = v.stride[i];
}

// The forward job of a problem with a dense output; x and w may be sizes and strides only.
TapConv forward_job(const ConvProblem& p, const View& x, const View& w) {
  TapConv job = {};
  job.N = p.N, job.G = p.G, job.C = p.C / p.G, job.K = p.K / p.G;
  job.H = p.H, job.W = p.W, job.P = p.P, job.Q = p.Q;
  job.stride_h = p.stride_h, job.stride_w = p.stride_w;
  job.R = p.R, job.S = p.S;
  job.rows = forward_axis(p.R, p.dil_h, p.pad_t);
  job.cols = forward_axis(p.S, p.dil_w, p.pad_l);
  job.dtype = p.dtype, job.activation = p.activation;
  job.x = x.data, job.w = w.data;
  set_strides(job.xs, x);
  job.ws[0] = job.K * w.stride[0];
  for (int i = 0; i < 4; ++i) job.ws[i + 1] = w.stride[i];
  const int64_t y_size[4] = {p.N, p.K, p.P, p.Q};
  dense_strides(y_size, channels_last(x), job.ys);
  return job;
}

// A tensor of packed weights: its key and the window, then they.
constexpr int64_t kPackingHead = 64;  // elements: whole cache lines
constexpr int kWindow = 9;            // stride, padding, dilation, groups

double head_number(const Operand& packed, int i) {
  return packed.dtype == DType::f64 ? ((const double*)packed.data)[i]
                                    : ((const float*)packed.data)[i];
}

bool has_head(const Operand& packed) {
  return packed.dims == 1 && packed.size[0] >= kPackingHead && packed.stride[0] == 1 &&
         (packed.dtype == DType::f32 || packed.dtype == DType::f64);
}

constexpr char kOtherProblem[] = "conv2d_packed: packed holds the weights of another problem";

// The weights in `packed`, once it is seen to be this weight's; null where another plan's.
const void* unpacked(const Operand& packed, const TapConv& job, const PlanRow& row) {
  const Packing packing = conv_packing(job, row);
  const bool f64 = job.dtype == DType::f64;
  bool fits = (packed.dtype == DType::f64) == f64;
  auto agrees = [&](int i) { return head_number(packed, i) == packing.key[i]; };
  for (int i = kPackingPlan; fits && i < kPackingKey; ++i) fits = agrees(i);
  bool same_plan = fits;
  for (int i = 0; same_plan && i < kPackingPlan; ++i) same_plan = agrees(i);
  fits = fits && (!same_plan || packed.size[0] == kPackingHead + packing.size);
  check(fits, kOtherProblem);
  return same_plan && packing.size ? (const char*)packed.data + kPackingHead * (f64 ? 8 : 4)
                                   : nullptr;
}

}  // namespace

ConvCall conv2d_call(const ConvOperands& o, const ConvSettings& settings) {
  ConvCall call = {conv2d_problem(o, settings), {}, nullptr, nullptr};
  call.job = forward_job(call.problem, view_of(o.input, "conv2d", "input"),
                         view_of(o.weight, "conv2d", "weight"));
  if (o.bias) call.job.bias = o.bias->data, call.job.bias_s = o.bias->stride[0];
  if (o.residual) {
    const View r = view_of(*o.residual, "conv2d", "residual");
    call.job.residual = r.data;
    set_strides(call.job.rs, r);
  }
  call.row = &chosen(call.problem, cpu_capabilities(), Direction::forward);
  return call;
}

ConvCall conv2d_packed_call(const ConvOperands& o, const Operand& packed, int64_t height,
                            int64_t width, int64_t activation) {
  check(has_head(packed), kOtherProblem);
  int64_t window[kWindow];
  for (int i = 0; i < kWindow; ++i) {
    const double number = head_number(packed, kPackingKey + i);
    check(number >= 0 && number <= 1 << 24, kOtherProblem);
    window[i] = static_cast<int64_t>(number);
  }
  const auto [stride_h, stride_w, pad_t, pad_l, pad_b, pad_r, dil_h, dil_w, groups] = window;
  ConvCall call = conv2d_call(
      o, {stride_h, stride_w, pad_t, pad_l, pad_b, pad_r, dil_h, dil_w, groups, activation});
  check(call.problem.P == height && call.problem.Q == width, kOtherProblem);
  call.weights = unpacked(packed, call.job, *call.row);
  return call;
}

void run(ConvCall& call, void* output) {
  call.job.y = output;
  conv_run(call.job, *call.row, Direction::forward, call.weights);
}

namespace {

Tensor output_of(ConvCall call, const Tensor& input) {
  const ConvProblem& p = call.problem;
  const int64_t size[4] = {p.N, p.K, p.P, p.Q};
  const Tensor output = empty(input, 4, size, call.job.ys, torch_dtype(p.dtype));
  run(call, output.mutable_data_ptr());
  return output;
}

}  // namespace

Tensor conv2d_cpu(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                  const OptionalTensor& residual, int64_t stride_h, int64_t stride_w, int64_t pad_t,
                  int64_t pad_l, int64_t pad_b, int64_t pad_r, int64_t dil_h, int64_t dil_w,
                  int64_t groups, int64_t activation, int64_t /*precision*/) {
  return output_of(conv2d_call(conv2d_operands(input, weight, bias, residual),
                               {stride_h, stride_w, pad_t, pad_l, pad_b, pad_r, dil_h, dil_w,
                                groups, activation}),
                   input);
}

Tensor conv2d_packed_cpu(const Tensor& input, const Tensor& weight, const Tensor& packed,
                         const OptionalTensor& bias, const OptionalTensor& residual, int64_t height,
                         int64_t width, int64_t activation) {
  return output_of(
      conv2d_packed_call(conv2d_operands(input, weight, bias, residual),
                         operand_of(packed, "conv2d_packed"), height, width, activation),
      input);
}

Tensor conv2d_pack_cpu(const Tensor& input, const Tensor& weight, int64_t stride_h,
                       int64_t stride_w, int64_t pad_t, int64_t pad_l, int64_t pad_b, int64_t pad_r,
                       int64_t dil_h, int64_t dil_w, int64_t groups) {
  const ConvCall call =
      conv2d_call(conv2d_operands(input, weight, {}, {}),
                  {stride_h, stride_w, pad_t, pad_l, pad_b, pad_r, dil_h, dil_w, groups, 0});
  const Packing packing = conv_packing(call.job, *call.row);
  const int64_t size[1] = {kPackingHead + packing.size}, stride[1] = {1};
  const int64_t window[kWindow] = {stride_h, stride_w, pad_t, pad_l, pad_b,
                                   pad_r,    dil_h,    dil_w, groups};
  const bool f64 = call.problem.dtype == DType::f64;
  const Tensor packed = empty(weight, 1, size, stride, torch_dtype(f64 ? DType::f64 : DType::f32));
  want_huge_pages(packed.mutable_data_ptr(), size[0] * (f64 ? 8 : 4));
  for (int i = 0; i < kPackingHead; ++i) {
    const double value = i < kPackingKey             ? (double)packing.key[i]
                         : i < kPackingKey + kWindow ? (double)window[i - kPackingKey]
                                                     : 0;
    if (f64)
      ((double*)packed.mutable_data_ptr())[i] = value;
    else
      ((float*)packed.mutable_data_ptr())[i] = (float)value;
  }
  if (packing.size)
    conv_pack(call.job, *call.row, (char*)packed.mutable_data_ptr() + kPackingHead * (f64 ? 8 : 4));
  return packed;
}

Tensor conv2d_input_grad_cpu(const Tensor& grad, const Tensor& weight, int64_t H, int64_t W,
                             int64_t stride_h, int64_t stride_w, int64_t pad_t, int64_t pad_l,
                             int64_t pad_b, int64_t pad_r, int64_t dil_h, int64_t dil_w,
                             int64_t groups, int64_t /*precision*/) {
  const char* op = "conv2d_input_grad";
  const ConvProblem p = conv2d_input_grad_problem(
      grad, weight, H, W,
      {stride_h, stride_w, pad_t, pad_l, pad_b, pad_r, dil_h, dil_w, groups, 0});
  const View dy = view_of(grad, op, "grad"), w = view_of(weight, op, "weight");
  const int64_t x_size[4] = {p.N, p.C, p.H, p.W};
  const Tensor output = empty4(grad, x_size, channels_last(dy), p.dtype);
  const View dx = view_of(output, op, "output");
  const PlanRow& row = chosen(p, cpu_capabilities(), Direction::input_grad);
  TapConv job = {};
  job.N = p.N, job.G = p.G, job.C = p.K / p.G, job.K = p.C / p.G;
  job.H = p.P, job.W = p.Q;
  job.R = p.R, job.S = p.S;
  job.dtype = p.dtype;
  job.x = dy.data, job.w = w.data;
  set_strides(job.xs, dy);
  job.ws[0] = p.K / p.G * w.stride[0];
  job.ws[1] = w.stride[1], job.ws[2] = w.stride[0];
  job.ws[3] = w.stride[2], job.ws[4] = w.stride[3];
  if (row.algorithm == Algorithm::winograd && p.stride_h > 1) {
    job.transposed = true;
    job.P = p.H, job.Q = p.W;
    job.stride_h = p.stride_h, job.stride_w = p.stride_w;
    job.rows = {p.R, p.R - 1, -1, 0, 1}, job.cols = {p.S, p.S - 1, -1, 0, 1};
    job.y = dx.data;
    set_strides(job.ys, dx);
    conv_run(job, row, Direction::input_grad, nullptr);
    return output;
  }
  const int64_t size = element_bytes(p.dtype);
  job.stride_h = job.stride_w = 1;
  job.P = p.H, job.Q = p.W;
  job.y = dx.data;
  set_strides(job.ys, dx);
  job.rows.count = p.R, job.cols.count = p.S;
  std::vector<TapConv> phases;
  for (int64_t a = 0; a < p.stride_h; ++a)
    for (int64_t b = 0; b < p.stride_w; ++b) {
      TapConv phase = job;
      phase.P = max64(ceil_div(p.H - a, p.stride_h), 0);
      phase.Q = max64(ceil_div(p.W - b, p.stride_w), 0);
      phase.rows = grad_axis(p.R, p.dil_h, p.pad_t, p.stride_h, a);
      phase.cols = grad_axis(p.S, p.dil_w, p.pad_l, p.stride_w, b);
      phase.y = (char*)dx.data + (a * dx.stride[2] + b * dx.stride[3]) * size;
      phase.ys[2] *= p.stride_h, phase.ys[3] *= p.stride_w;
      phases.push_back(phase);
    }
  conv_run_phases(job, p.stride_h, p.stride_w, phases.data(), row);
  return output;
}

Tensor bias_like(const Tensor& grad, int64_t channels, DType dtype) {
  const int64_t size[1] = {channels}, stride[1] = {1};
  return empty(grad, 1, size, stride, torch_dtype(dtype));
}

// dw, and db where `bias` is not null.
Tensor weight_grad(const Tensor& input, const Tensor& grad, int64_t R, int64_t S,
                   const ConvSettings& settings, Tensor* bias) {
  const char* op = "conv2d_weight_grad";
  const ConvProblem p = conv2d_weight_grad_problem(input, grad, R, S, settings);
  const View x = view_of(input, op, "input"), dy = view_of(grad, op, "grad");
  const int64_t w_size[4] = {p.K, p.C / p.G, R, S};
  const Tensor output = empty4(input, w_size, false, p.dtype);
  const View dw = view_of(output, op, "output");
  WeightGrad job = {};
  job.N = p.N, job.G = p.G, job.C = p.C / p.G, job.K = p.K / p.G;
  job.H = p.H, job.W = p.W, job.P = p.P, job.Q = p.Q;
  job.stride_h = p.stride_h, job.stride_w = p.stride_w;
  job.rows = forward_axis(p.R, p.dil_h, p.pad_t);
  job.cols = forward_axis(p.S, p.dil_w, p.pad_l);
  job.dtype = p.dtype;
  job.x = x.data, job.dy = dy.data, job.dw = dw.data;
  set_strides(job.xs, x);
  set_strides(job.dys, dy);
  if (bias) {
    *bias = bias_like(grad, p.K, p.dtype);
    job.db = bias->mutable_data_ptr();
  }
  weight_grad_run(job, chosen(p, cpu_capabilities(), Direction::weight_grad));
  return output;
}

Tensor conv2d_weight_grad_cpu(const Tensor& input, const Tensor& grad, int64_t R, int64_t S,
                              int64_t stride_h, int64_t stride_w, int64_t pad_t, int64_t pad_l,
                              int64_t pad_b, int64_t pad_r, int64_t dil_h, int64_t dil_w,
                              int64_t groups, int64_t /*precision*/) {
  return weight_grad(input, grad, R, S,
                     {stride_h, stride_w, pad_t, pad_l, pad_b, pad_r, dil_h, dil_w, groups, 0},
                     nullptr);
}

Tensor conv2d_bias_grad_cpu(const Tensor& grad) {
  const char* op = "conv2d_bias_grad";
  const View dy = view_of(grad, op, "grad");
  const DType dtype = dtype_of(grad, op);
  const Tensor output = bias_like(grad, dy.size[1], dtype);
  bias_grad_run(dy, dtype, output.mutable_data_ptr());
  return output;
}

// Two passes: the second finds in the caches what small tensors left there.
std::tuple<Tensor, Tensor> activation_bias_grad_cpu(const Tensor& grad, const Tensor& output,
                                                    int64_t activation) {
  const PairCall call("activation_bias_grad", grad, "grad", output, "output", activation, true);
  const Tensor dz = PairOps<CpuPairs>::run(call, grad);
  return {dz, conv2d_bias_grad_cpu(dz)};
}

std::tuple<Tensor, Tensor> conv2d_weight_bias_grad_cpu(
    const Tensor& input, const Tensor& grad, int64_t R, int64_t S, int64_t stride_h,
    int64_t stride_w, int64_t pad_t, int64_t pad_l, int64_t pad_b, int64_t pad_r, int64_t dil_h,
    int64_t dil_w, int64_t groups, int64_t /*precision*/, const OptionalTensor& output,
    int64_t activation) {
  const bool masked = masked_by_output("conv2d_weight_bias_grad", grad, output, activation);
  const Tensor dz = masked ? PairOps<CpuPairs>::activation_grad(grad, *output, activation) : grad;
  Tensor db;
  const Tensor dw =
      weight_grad(input, dz, R, S,
                  {stride_h, stride_w, pad_t, pad_l, pad_b, pad_r, dil_h, dil_w, groups, 0}, &db);
  return {dw, db};
}

STABLE_TORCH_LIBRARY_IMPL(fastconv, CPU, m) {
  m.impl("conv2d", TORCH_BOX(&conv2d_cpu));
  m.impl("conv2d_raw", TORCH_BOX(&conv2d_cpu));
  m.impl("conv2d_pack", TORCH_BOX(&conv2d_pack_cpu));
  m.impl("conv2d_packed", TORCH_BOX(&conv2d_packed_cpu));
  m.impl("conv2d_input_grad", TORCH_BOX(&conv2d_input_grad_cpu));
  m.impl("conv2d_input_grad_raw", TORCH_BOX(&conv2d_input_grad_cpu));
  m.impl("conv2d_weight_grad", TORCH_BOX(&conv2d_weight_grad_cpu));
  m.impl("conv2d_weight_grad_raw", TORCH_BOX(&conv2d_weight_grad_cpu));
  m.impl("conv2d_bias_grad", TORCH_BOX(&conv2d_bias_grad_cpu));
  m.impl("conv2d_bias_grad_raw", TORCH_BOX(&conv2d_bias_grad_cpu));
  m.impl("activation_bias_grad", TORCH_BOX(&activation_bias_grad_cpu));
  m.impl("activation_bias_grad_raw", TORCH_BOX(&activation_bias_grad_cpu));
  m.impl("conv2d_weight_bias_grad", TORCH_BOX(&conv2d_weight_bias_grad_cpu));
  m.impl("conv2d_weight_bias_grad_raw", TORCH_BOX(&conv2d_weight_bias_grad_cpu));
}

}  // namespace fastconv
