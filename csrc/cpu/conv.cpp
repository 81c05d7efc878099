// Torch side of the convolution on the CPU: tensors to jobs, one parallel region per step.
#include "../conv_op.h"
#include "../plan.h"
#include "blocking.h"
#include "cpu.h"
#include "winograd.h"

#include <initializer_list>

namespace fastconv {
namespace {

constexpr Capabilities kCpu = {Backend::cpu, false};

// A kernel axis of the forward direction: tap r at p * stride + r * dil - pad.
TapAxis forward_axis(int64_t taps, int64_t dil, int64_t pad) { return {taps, 0, 1, -pad, dil}; }

// One stride phase of the input gradient: dx at h = phase + stride * i takes the taps r with
// (phase + pad - r * dil) divisible by stride, at dy position i + (phase + pad - r * dil) / stride.
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

void set_strides(int64_t to[4], const View& v) {
  for (int i = 0; i < 4; ++i) to[i] = v.stride[i];
}

double flops(const TapConv& job) {
  return 2.0 * job.N * job.G * job.K * job.C * job.P * job.Q * job.rows.count * job.cols.count;
}

// A 1x1 without padding reads only the pixels it writes: the stride becomes the view's, and dense
// images become one row, of the whole batch where that is dense too. `operands` are the strides of
// everything that the job walks, its input first.
template <class Job>
void fold_pixels(Job& job, std::initializer_list<const int64_t*> operands) {
  job.xs[2] *= job.stride_h, job.xs[3] *= job.stride_w;
  job.stride_h = job.stride_w = 1;
  job.H = job.P, job.W = job.Q;
  auto continues = [&](int outer, int64_t pixels) {
    for (const int64_t* s : operands)
      if (s[outer] != pixels * s[3]) return false;
    return true;
  };
  if (!continues(2, job.Q)) return;
  job.W = job.Q = job.P * job.Q;
  job.H = job.P = 1;
  if (!continues(0, job.Q)) return;
  job.W = job.Q = job.N * job.Q;
  job.N = 1;
}

void run_direct(const TapConv& job) {
  const KernelTable& kernels = cpu_kernels();
  const bool f64 = job.dtype == DType::f64;
  const int64_t panel = f64 ? kernels.panel_f64 : kernels.panel_f32, element = f64 ? 8 : 4;
  const Blocking b = conv_blocking(job, panel, element, torch::stable::get_num_threads());
  void* packed =
      b.packed ? scratch(Slot::shared, kernels.conv_packed_size(job) * element + 64) : nullptr;
  const double work = flops(job);
  const int64_t panels = job.G * ceil_div(job.K, panel);
  if (packed)
    parallel_tasks(panels, work, [&](int64_t begin, int64_t end) {
      kernels.conv_pack(job, b, packed, begin, end);
    });
  parallel_tasks(b.tasks, work, [&](int64_t begin, int64_t end) {
    void* own = scratch(Slot::own, kernels.conv_scratch(job, b));
    kernels.conv_run(job, b, packed, own, begin, end);
  });
}

void run_winograd(const TapConv& job) {
  const KernelTable& kernels = cpu_kernels();
  const WinogradBlocking b =
      winograd_blocking(job, kernels.panel_f32, torch::stable::get_num_threads());
  const double work = flops(job);
  const int64_t pairs = job.G * ceil_div(job.K, kernels.panel_f32);
  const int64_t u_size = b.packed ? pairs * b.chunks * b.u_chunk : 0;
  // Where several tasks share a block, they share its inputs.
  const int64_t v_size = b.panel_blocks > 1 ? b.blocks * b.form.points() * b.v_point : 0;
  float* shared = (float*)scratch(Slot::shared, (u_size + v_size) * sizeof(float));
  float *u = u_size ? shared : nullptr, *v = v_size ? shared + u_size : nullptr;
  auto own = [&] { return scratch(Slot::own, kernels.winograd_scratch(job, b)); };
  if (u)
    parallel_tasks(pairs, work, [&](int64_t begin, int64_t end) {
      kernels.winograd_pack(job, b, u, own(), begin, end);
    });
  if (v)
    parallel_tasks(b.blocks * ceil_div(job.C, b.lanes), work, [&](int64_t begin, int64_t end) {
      kernels.winograd_inputs(job, b, v, own(), begin, end);
    });
  parallel_tasks(b.tasks, work, [&](int64_t begin, int64_t end) {
    kernels.winograd_run(job, b, u, v, own(), begin, end);
  });
}

void run_winograd_grad(const WeightGrad& job, double work) {
  const KernelTable& kernels = cpu_kernels();
  const WinogradBlocking b = winograd_grad_blocking(job, kernels.panel_f32);
  const int64_t panels = ceil_div(job.K, kernels.panel_f32), points = b.form.points();
  const int64_t v_size = b.segment * points * b.v_point;
  const int64_t a_size = b.segment * points * panels * b.a_point;
  const int64_t z_size = b.segments > 1 ? b.tasks * points * b.m_point : 0;
  float* v = (float*)scratch(Slot::shared, (v_size + a_size + z_size) * sizeof(float));
  float *a = v + v_size, *z = z_size ? a + a_size : nullptr;
  auto own = [&] { return scratch(Slot::own, kernels.winograd_grad_scratch(job, b)); };
  for (int64_t segment = 0; segment < b.segments; ++segment) {
    const int64_t blocks = min64(b.segment, b.blocks - segment * b.segment);
    const int64_t items = blocks * (ceil_div(job.C, b.lanes) + 2 * panels);
    parallel_tasks(items, work, [&](int64_t begin, int64_t end) {
      kernels.winograd_grad_inputs(job, b, segment, v, a, own(), begin, end);
    });
    parallel_tasks(b.tasks, work, [&](int64_t begin, int64_t end) {
      kernels.winograd_grad_run(job, b, segment, v, a, z, own(), begin, end);
    });
  }
}

void run_depthwise(const TapConv& job) {
  const KernelTable& kernels = cpu_kernels();
  parallel_tasks(depthwise_channels(job) ? job.N * job.P : job.N * job.G * job.K, 20 * flops(job),
                 [&](int64_t begin, int64_t end) {
                   void* own = scratch(Slot::own, kernels.depthwise_scratch(job));
                   kernels.depthwise_run(job, own, begin, end);
                 });
}

void run(TapConv job, const PlanRow& row, Direction direction) {
  if (job.N * job.G * job.K * job.P * job.Q == 0) return;
  mark_ran(row, direction);
  switch (row.algorithm) {
    case Algorithm::conv1x1:
      fold_pixels(job, {job.xs, job.ys, job.residual ? job.rs : job.ys});
      return run_direct(job);
    case Algorithm::depthwise: return run_depthwise(job);
    case Algorithm::winograd: return run_winograd(job);
    default: return run_direct(job);
  }
}

}  // namespace

Tensor conv2d_cpu(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                  const OptionalTensor& residual, int64_t stride_h, int64_t stride_w, int64_t pad_t,
                  int64_t pad_l, int64_t pad_b, int64_t pad_r, int64_t dil_h, int64_t dil_w,
                  int64_t groups, int64_t activation, int64_t /*precision*/) {
  const ConvProblem p = conv2d_problem(
      input, weight, bias, residual,
      {stride_h, stride_w, pad_t, pad_l, pad_b, pad_r, dil_h, dil_w, groups, activation});
  const View x = view_of(input, "conv2d", "input"), w = view_of(weight, "conv2d", "weight");
  const int64_t y_size[4] = {p.N, p.K, p.P, p.Q};
  const Tensor output = empty4(input, y_size, channels_last(x), p.dtype);
  const View y = view_of(output, "conv2d", "output");
  TapConv job = {};
  job.N = p.N, job.G = p.G, job.C = p.C / p.G, job.K = p.K / p.G;
  job.H = p.H, job.W = p.W, job.P = p.P, job.Q = p.Q;
  job.stride_h = p.stride_h, job.stride_w = p.stride_w;
  job.R = p.R, job.S = p.S;
  job.rows = forward_axis(p.R, p.dil_h, p.pad_t);
  job.cols = forward_axis(p.S, p.dil_w, p.pad_l);
  job.dtype = p.dtype, job.activation = p.activation;
  job.x = x.data, job.w = w.data, job.y = y.data;
  set_strides(job.xs, x);
  set_strides(job.ys, y);
  job.ws[0] = job.K * w.stride[0];
  for (int i = 0; i < 4; ++i) job.ws[i + 1] = w.stride[i];
  if (bias) job.bias = bias->const_data_ptr(), job.bias_s = bias->stride(0);
  if (residual) {
    const View r = view_of(*residual, "conv2d", "residual");
    job.residual = r.data;
    set_strides(job.rs, r);
  }
  run(job, plan(p, kCpu, Direction::forward), Direction::forward);
  return output;
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
  const PlanRow& row = plan(p, kCpu, Direction::input_grad);
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
  const int64_t size = p.dtype == DType::f64 ? 8 : p.dtype == DType::f32 ? 4 : 2;
  for (int64_t a = 0; a < p.stride_h; ++a)
    for (int64_t b = 0; b < p.stride_w; ++b) {
      job.P = ceil_div(p.H - a, p.stride_h), job.Q = ceil_div(p.W - b, p.stride_w);
      if (job.P <= 0 || job.Q <= 0) continue;
      job.stride_h = job.stride_w = 1;
      job.rows = grad_axis(p.R, p.dil_h, p.pad_t, p.stride_h, a);
      job.cols = grad_axis(p.S, p.dil_w, p.pad_l, p.stride_w, b);
      set_strides(job.ys, dx);
      job.y = (char*)dx.data + (a * dx.stride[2] + b * dx.stride[3]) * size;
      job.ys[2] *= p.stride_h, job.ys[3] *= p.stride_w;
      run(job, row, Direction::input_grad);
    }
  return output;
}

Tensor conv2d_weight_grad_cpu(const Tensor& input, const Tensor& grad, int64_t R, int64_t S,
                              int64_t stride_h, int64_t stride_w, int64_t pad_t, int64_t pad_l,
                              int64_t pad_b, int64_t pad_r, int64_t dil_h, int64_t dil_w,
                              int64_t groups, int64_t /*precision*/) {
  const char* op = "conv2d_weight_grad";
  const ConvProblem p = conv2d_weight_grad_problem(
      input, grad, R, S, {stride_h, stride_w, pad_t, pad_l, pad_b, pad_r, dil_h, dil_w, groups, 0});
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
  const KernelTable& kernels = cpu_kernels();
  const double work = 2.0 * p.N * p.K * job.C * p.P * p.Q * p.R * p.S;
  const PlanRow& row = plan(p, kCpu, Direction::weight_grad);
  mark_ran(row, Direction::weight_grad);
  if (row.algorithm == Algorithm::depthwise) {
    parallel_tasks(p.K, 20 * work, [&](int64_t begin, int64_t end) {
      void* own = scratch(Slot::own, kernels.depthwise_weight_grad_scratch(job));
      kernels.depthwise_weight_grad_run(job, own, begin, end);
    });
    return output;
  }
  if (row.algorithm == Algorithm::winograd) {
    run_winograd_grad(job, work);
    return output;
  }
  if (row.algorithm == Algorithm::conv1x1) fold_pixels(job, {job.xs, job.dys});
  const bool f64 = p.dtype == DType::f64;
  const Blocking b = weight_grad_blocking(job, f64 ? kernels.panel_f64 : kernels.panel_f32,
                                          f64 ? 8 : 4, torch::stable::get_num_threads());
  parallel_tasks(b.tasks, work, [&](int64_t begin, int64_t end) {
    void* own = scratch(Slot::own, kernels.weight_grad_scratch(job, b));
    kernels.weight_grad_run(job, b, own, begin, end);
  });
  return output;
}

Tensor conv2d_bias_grad_cpu(const Tensor& grad) {
  const char* op = "conv2d_bias_grad";
  const View dy = view_of(grad, op, "grad");
  const DType dtype = dtype_of(grad, op);
  const int64_t size[1] = {dy.size[1]}, stride[1] = {1};
  const Tensor output = empty(grad, 1, size, stride, torch_dtype(dtype));
  void* db = output.mutable_data_ptr();
  parallel_tasks(
      dy.size[1], 20.0 * dy.size[0] * dy.size[1] * dy.size[2] * dy.size[3],
      [&](int64_t begin, int64_t end) { cpu_kernels().bias_grad_run(dy, dtype, db, begin, end); });
  return output;
}

STABLE_TORCH_LIBRARY_IMPL(fastconv, CPU, m) {
  m.impl("conv2d", TORCH_BOX(&conv2d_cpu));
  m.impl("conv2d_raw", TORCH_BOX(&conv2d_cpu));
  m.impl("conv2d_input_grad", TORCH_BOX(&conv2d_input_grad_cpu));
  m.impl("conv2d_input_grad_raw", TORCH_BOX(&conv2d_input_grad_cpu));
  m.impl("conv2d_weight_grad", TORCH_BOX(&conv2d_weight_grad_cpu));
  m.impl("conv2d_weight_grad_raw", TORCH_BOX(&conv2d_weight_grad_cpu));
  m.impl("conv2d_bias_grad", TORCH_BOX(&conv2d_bias_grad_cpu));
  m.impl("conv2d_bias_grad_raw", TORCH_BOX(&conv2d_bias_grad_cpu));
}

}  // namespace fastconv
