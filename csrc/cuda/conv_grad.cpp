// Torch side of the convolution's gradients on CUDA: tensors to the parameters of the chosen
// kernel. Sums over pixels are float32 (float64: double) parts, which add_parts adds in order.
#include "../conv_op.h"
#include "../pair_op.h"
#include "../plan.h"
#include "conv_bias_grad.h"
#include "conv_depthwise.h"
#include "conv_direct_grad.h"
#include "conv_input_grad.h"
#include "conv_stem.h"
#include "conv_weight_grad.h"
#include "known_tiles.h"
#include "pixels.h"

namespace fastconv::cuda {
namespace {

// A gradient's operands: (dy, w) -> dx, or (x, dy) -> dw. The problem may have more channels than
// they, which are taken for zeros (filled() in conv_params.h).
struct GradCall {
  const char* op;
  const ConvProblem& p;
  const Tensor &first, &second;
  const Tensor& output;
  const Place& place;

  View a() const { return view_of(first, op, "first"); }
  View b() const { return view_of(second, op, "second"); }
  View out() const { return view_of(output, op, "output"); }
  void must(const Status& status) const {
    check_launch(status, op, " of ", shape(first.sizes().data(), 4), " and ",
                 shape(second.sizes().data(), 4), ", stride (", p.stride_h, ", ", p.stride_w,
                 "), groups ", p.G);
  }
};

// The phases of an axis that some tap reaches.
struct Phase {
  int64_t at;
  TapAxis taps;
};
std::vector<Phase> phases(int64_t size, int64_t taps, int64_t dil, int64_t pad, int64_t stride) {
  std::vector<Phase> found;
  for (int64_t at = 0; at < stride && at < size; ++at) {
    const TapAxis axis = grad_axis(taps, dil, pad, stride, at);
    if (axis.count) found.push_back({at, axis});
  }
  return found;
}

void input_grad_direct(const GradCall& c) {
  const ConvProblem& p = c.p;
  const View dy = c.a(), w = c.b(), dx = c.out();
  const auto rows = phases(p.H, p.R, p.dil_h, p.pad_t, p.stride_h);
  const auto cols = phases(p.W, p.S, p.dil_w, p.pad_l, p.stride_w);
  const int64_t all = (p.stride_h < p.H ? p.stride_h : p.H) * (p.stride_w < p.W ? p.stride_w : p.W);
  if (int64_t(rows.size() * cols.size()) < all) {  // phases without a tap
    Tensor output = c.output;
    torch::stable::zero_(output);
  }
  for (const Phase& r : rows)
    for (const Phase& s : cols)
      c.must(launch_conv_direct(direct_input_grad(p, dy, w, dx, r.at, s.at, r.taps, s.taps),
                                c.place.stream));
}

// Parts of a sum: `splits` times `each` floats, or doubles for float64.
Tensor parts(const Tensor& like, int64_t splits, int64_t each, DType dtype) {
  const int64_t size[1] = {splits * each}, dense[1] = {1};
  return empty(like, 1, size, dense, torch_dtype(dtype == DType::f64 ? DType::f64 : DType::f32));
}

void weight_grad_direct(const GradCall& c) {
  const ConvProblem& p = c.p;
  const PixelSplit split = direct_weight_split(p, c.place.gpu.sms);
  const Tensor partial = parts(c.output, split.splits, c.output.numel(), p.dtype);
  void* data = partial.mutable_data_ptr();
  c.must(launch_conv_direct_weight_grad({p, c.a(), c.b(), data, split}, c.place.stream));
  c.must(launch_add_parts({data, c.out(), split.splits, p.dtype}, c.place.stream));
}

Pixels pixels(const GradCall& c, const Tensor& t, RowsWanted wanted) {
  return as_pixels(t, view_of(t, c.op, "operand"), c.p.dtype, wanted, c.place.stream);
}

// The operands of an input gradient as rows of channels; what had to be copied lives as long.
struct InputGradRows {
  Pixels dy, w;
  View dx, wanted;
  OptionalTensor result;
  ConvOperands at;

  InputGradRows(const GradCall& c, bool aligned)
      : dy(pixels(c, c.first, {aligned, false, c.p.K})),
        w(pixels(c, c.second, {aligned, true, c.p.C / c.p.G, c.p.K})) {
    dx = wanted = c.out();
    if (!pixel_stride(dx) || dx.size[1] != c.p.C) {
      const int64_t size[4] = {c.p.N, c.p.C, c.p.H, c.p.W};
      result = empty4(c.output, size, true, c.p.dtype);
      dx = view_of(*result, c.op, "output");
    }
    at = {dy.view.data, w.view.data, nullptr, nullptr, dx.data, nullptr, dy.pixel, c.p.C, 0};
  }

  // To the output, where the kernel wrote elsewhere.
  void finish(const GradCall& c) const {
    if (result) copy_layout(first_of(dx, wanted.size), wanted, c.p.dtype, c.place.stream);
  }
};

// On tensor cores.
void input_grad_gemm(const GradCall& c, bool pointwise, Math math) {
  const ConvProblem& p = c.p;
  InputGradRows rows(c, true);
  const TileChoice tile = known_tile(p, math, c.place.gpu, Direction::input_grad);
  check(tile.tile >= 0, c.op, ": no tile of this GPU takes the problem");
  OptionalTensor partial;
  if (tile.splits > 1) {
    partial = parts(c.output, tile.splits, p.N * p.C * p.H * p.W, p.dtype);
    rows.at.partial = static_cast<float*>(partial->mutable_data_ptr());
  }
  PhaseParams all;
  const int count = make_phase_params(p, rows.at, tile.splits, tile.split_depth, &all);
  c.must(launch_conv_input_grad(all, count, pointwise, math, tile.tile, c.place.stream));
  rows.finish(c);
}

// A launch for each phase: bound by memory, each works on pixels of its own.
void input_grad_depthwise(const GradCall& c) {
  const InputGradRows rows(c, c.p.C / c.p.G > 1);
  PhaseParams all;
  const int count = make_phase_params(c.p, rows.at, 1, 0, &all);
  for (int i = 0; i < count; ++i)
    c.must(launch_conv_depthwise(all.phase[i], c.p.dtype, c.place.stream));
  rows.finish(c);
}

// `run` leaves `splits` parts of the sum, of operands as rows of channels. `mend`: they are
// 3xTF32's, of dy under `mask`.
template <class Run>
void weight_grad_parts(const GradCall& c, bool mend, bool aligned, int32_t splits, int32_t depth,
                       const Run& run, const OutputMask& mask = {}) {
  const ConvProblem& p = c.p;
  const Pixels x = pixels(c, c.first, {aligned, false, p.C});
  const Pixels dy = pixels(c, c.second, {aligned, false, p.K});
  const Tensor partial = parts(c.output, splits, c.output.numel(), p.dtype);
  float* data = static_cast<float*>(partial.mutable_data_ptr());
  const ConvParams params = make_conv_params(
      p, {x.view.data, nullptr, nullptr, nullptr, dy.view.data, data, x.pixel, dy.pixel, 0}, splits,
      depth);
  c.must(run(params));
  GradSums sums = {data, c.out(), splits, p.dtype};
  sums.mend = mend, sums.conv = params, sums.mask = mask;
  c.must(launch_add_parts(sums, c.place.stream));
}

// The parts of a bias gradient, added up in db.
Status add_bias_parts(const Tensor& partial, int64_t splits, DType dtype, const Tensor& db,
                      const Place& place) {
  const View to = {db.mutable_data_ptr(), {db.numel(), 1, 1, 1}, {1, 1, 1, 1}};
  return launch_add_parts({partial.mutable_data_ptr(), to, splits, dtype}, place.stream);
}

// Parts of a bias gradient that a weight gradient's kernel leaves beside its own, or none.
struct BiasParts {
  OptionalTensor tensor;
  int64_t splits = 0;

  // For `db`, which may be null.
  BiasParts(const GradCall& c, const Tensor* db, int64_t splits) : splits(splits) {
    if (db) tensor = parts(c.output, splits, c.p.K, c.p.dtype);
  }
  float* data() const { return tensor ? static_cast<float*>(tensor->mutable_data_ptr()) : nullptr; }
  void add(const GradCall& c, const Tensor* db) const {
    if (db) c.must(add_bias_parts(*tensor, splits, c.p.dtype, *db, c.place));
  }
};

// The bias gradient too where `db` is given; that of a stem is of dy under `mask`.
void weight_grad_gemm(const GradCall& c, bool pointwise, Math math, const Tensor* db) {
  const TileChoice tile = known_tile(c.p, math, c.place.gpu, Direction::weight_grad);
  check(tile.tile >= 0, c.op, ": no tile of this GPU takes the problem");
  const BiasParts bias(c, db, tile.splits);
  weight_grad_parts(c, math == Math::f32, true, tile.splits, tile.split_depth,
                    [&](const ConvParams& params) {
                      return launch_conv_weight_grad(params, bias.data(), pointwise, math,
                                                     tile.tile, c.place.stream);
                    });
  bias.add(c, db);
}

void weight_grad_depthwise(const GradCall& c) {
  const int vector = int(16 / element_bytes(c.p.dtype));
  const PixelSplit split = depthwise_split(c.p, vector, c.place.gpu.sms);
  weight_grad_parts(c, false, c.p.C / c.p.G > 1, int32_t(split.splits), int32_t(split.pixels),
                    [&](const ConvParams& params) {
                      return launch_conv_depthwise_weight_grad(params, c.p.dtype, c.place.stream);
                    });
}

void weight_grad_stem(const GradCall& c, Math math, const Tensor* db, const OutputMask& mask) {
  const int32_t splits = stem_grad_splits(c.p, math, c.place.gpu);
  const BiasParts bias(c, db, splits);
  weight_grad_parts(
      c, math == Math::f32, false, splits, 0,
      [&](const ConvParams& params) {
        return launch_conv_stem_weight_grad(params, {mask, bias.data()}, math, c.place.stream);
      },
      mask);
  bias.add(c, db);
}

bool is_filled(const PlanRow& row, const ConvProblem& p, Math math) {
  const ConvProblem q = filled(p, math);
  return is_implicit_gemm(row) && (q.C != p.C || q.K != p.K);
}

bool sums_dy(const PlanRow& row, const ConvProblem& p, Math math) {
  return (is_implicit_gemm(row) || row.algorithm == Algorithm::stem) && !is_filled(row, p, math);
}

// Of filled() channels the gradient is the first part of one of whole chunks.
void weight_grad_filled(const GradCall& c, bool pointwise, Math math) {
  const ConvProblem p = filled(c.p, math);
  const int64_t size[4] = {p.K, p.C, p.R, p.S};
  const Tensor whole = empty4(c.output, size, true, p.dtype);
  weight_grad_gemm({c.op, p, c.first, c.second, whole, c.place}, pointwise, math, nullptr);
  const View to = c.out();
  copy_layout(first_of(view_of(whole, c.op, "output"), to.size), to, c.p.dtype, c.place.stream);
}

// `db`, `mask`: see above; of kernels that sums_dy() names.
void weight_grad(const GradCall& c, const PlanRow& row, Math math, const Tensor* db = nullptr,
                 const OutputMask& mask = {}) {
  mark_ran(row, Direction::weight_grad);
  if (is_filled(row, c.p, math))
    return weight_grad_filled(c, row.algorithm == Algorithm::conv1x1, math);
  switch (row.algorithm) {
    case Algorithm::conv1x1: return weight_grad_gemm(c, true, math, db);
    case Algorithm::implicit_gemm: return weight_grad_gemm(c, false, math, db);
    case Algorithm::stem: return weight_grad_stem(c, math, db, mask);
    case Algorithm::depthwise: return weight_grad_depthwise(c);
    case Algorithm::direct: return weight_grad_direct(c);
    default: fail(c.op, ": the plan is none of this backend");
  }
}

// db of a gradient `dy`, which is masked on the way where `y` and `dz` have data.
void bias_grad(const char* op, const Tensor& like, const View& dy, const View& y, const View& dz,
               Activation activation, DType dtype, const Tensor& db, const Place& place) {
  const PixelSplit split = bias_split(dy, element_bytes(dtype), place.gpu.sms);
  const Tensor partial = parts(like, split.splits, dy.size[1], dtype);
  void* data = partial.mutable_data_ptr();
  const Shape words = shape(dy.size, 4);
  check_launch(launch_conv_bias_grad({dy, y, dz, activation, data, split, dtype}, place.stream), op,
               " of ", words);
  check_launch(add_bias_parts(partial, split.splits, dtype, db, place), op, " of ", words);
}

Tensor conv2d_input_grad_cuda(const Tensor& grad, const Tensor& weight, int64_t H, int64_t W,
                              int64_t stride_h, int64_t stride_w, int64_t pad_t, int64_t pad_l,
                              int64_t pad_b, int64_t pad_r, int64_t dil_h, int64_t dil_w,
                              int64_t groups, int64_t precision) {
  const char* op = "conv2d_input_grad";
  const ConvProblem p = conv2d_input_grad_problem(
      grad, weight, H, W,
      {stride_h, stride_w, pad_t, pad_l, pad_b, pad_r, dil_h, dil_w, groups, 0});
  const int64_t x_size[4] = {p.N, p.C, p.H, p.W};
  const Tensor output = empty4(grad, x_size, channels_last(view_of(grad, op, "grad")), p.dtype);
  if (output.numel() == 0) return output;
  const OnDevice on(device_of(grad));
  const Capabilities caps = {Backend::cuda, precision == static_cast<int64_t>(Precision::tf32)};
  const PlanRow& row = plan(p, caps, Direction::input_grad);
  mark_ran(row, Direction::input_grad);
  const Math math = math_of(p.dtype, caps.tf32);
  const ConvProblem q = is_implicit_gemm(row) ? filled(p, math) : p;
  const GradCall call = {op, q, grad, weight, output, on.place()};
  switch (row.algorithm) {
    case Algorithm::conv1x1: input_grad_gemm(call, true, math); break;
    case Algorithm::implicit_gemm: input_grad_gemm(call, false, math); break;
    case Algorithm::depthwise: input_grad_depthwise(call); break;
    case Algorithm::direct: input_grad_direct(call); break;
    default: fail("conv2d_input_grad: the plan is none of this backend");
  }
  return output;
}

// dw, in the input's memory format, as cuDNN's: a network in channels_last has its weights so too,
// and autograd copies a gradient whose strides are not its weight's. conv_fakes.py says the same.
Tensor empty_weight_grad(const Tensor& input, const ConvProblem& p, const char* op) {
  const int64_t size[4] = {p.K, p.C / p.G, p.R, p.S};
  const bool last = is_on_gpu(input) && channels_last(view_of(input, op, "input"));
  return empty4(input, size, last, p.dtype);
}

Tensor conv2d_weight_grad_cuda(const Tensor& input, const Tensor& grad, int64_t R, int64_t S,
                               int64_t stride_h, int64_t stride_w, int64_t pad_t, int64_t pad_l,
                               int64_t pad_b, int64_t pad_r, int64_t dil_h, int64_t dil_w,
                               int64_t groups, int64_t precision) {
  const char* op = "conv2d_weight_grad";
  const ConvProblem p = conv2d_weight_grad_problem(
      input, grad, R, S, {stride_h, stride_w, pad_t, pad_l, pad_b, pad_r, dil_h, dil_w, groups, 0});
  const Tensor output = empty_weight_grad(input, p, op);
  const OnDevice on(device_of(input));
  const Capabilities caps = {Backend::cuda, precision == static_cast<int64_t>(Precision::tf32)};
  const PlanRow& row = plan(p, caps, Direction::weight_grad);
  weight_grad({op, p, input, grad, output, on.place()}, row, math_of(p.dtype, caps.tf32));
  return output;
}

Tensor empty_bias(const Tensor& like, int64_t K, DType dtype) {
  const int64_t size[1] = {K}, stride[1] = {1};
  return empty(like, 1, size, stride, torch_dtype(dtype));
}

Tensor conv2d_bias_grad_cuda(const Tensor& grad) {
  const char* op = "conv2d_bias_grad";
  const View dy = view_of(grad, op, "grad");
  const DType dtype = dtype_of(grad, op);
  const Tensor db = empty_bias(grad, dy.size[1], dtype);
  if (dy.size[1] == 0) return db;
  const OnDevice on(device_of(grad));
  bias_grad(op, grad, dy, {}, {}, Activation::none, dtype, db, on.place());
  return db;
}

std::tuple<Tensor, Tensor> activation_bias_grad_cuda(const Tensor& grad, const Tensor& output,
                                                     int64_t activation) {
  const char* op = "activation_bias_grad";
  const PairCall call(op, grad, "grad", output, "output", activation, true);
  const PairJob& job = call.job;
  const Tensor db = empty_bias(grad, job.a.size[1], job.dtype);
  if (job.a.size[1] == 0) return {call.output, db};
  const OnDevice on(device_of(grad));
  bias_grad(op, grad, job.a, job.b, job.out, job.activation, job.dtype, db, on.place());
  return {call.output, db};
}

// Kernels on tensor cores sum the dy that they read; only a stem's masks it too, of rows of
// channels (see CONTRIBUTING.md). Elsewhere one pass makes the masked dy and its sums before.
std::tuple<Tensor, Tensor> conv2d_weight_bias_grad_cuda(
    const Tensor& input, const Tensor& grad, int64_t R, int64_t S, int64_t stride_h,
    int64_t stride_w, int64_t pad_t, int64_t pad_l, int64_t pad_b, int64_t pad_r, int64_t dil_h,
    int64_t dil_w, int64_t groups, int64_t precision, const OptionalTensor& output,
    int64_t activation) {
  const char* op = "conv2d_weight_bias_grad";
  const ConvProblem p = conv2d_weight_grad_problem(
      input, grad, R, S, {stride_h, stride_w, pad_t, pad_l, pad_b, pad_r, dil_h, dil_w, groups, 0});
  const bool masked = masked_by_output(op, grad, output, activation);
  const Tensor dw = empty_weight_grad(input, p, op);
  const OnDevice on(device_of(input));
  const Capabilities caps = {Backend::cuda, precision == static_cast<int64_t>(Precision::tf32)};
  const PlanRow& row = plan(p, caps, Direction::weight_grad);
  const Math math = math_of(p.dtype, caps.tf32);
  const View dy = view_of(grad, op, "grad"), y = masked ? view_of(*output, op, "output") : View{};
  const bool stem = row.algorithm == Algorithm::stem && pixel_stride(dy) && pixel_stride(y);
  if (masked && !stem) {
    const auto [dz, db] = activation_bias_grad_cuda(grad, *output, activation);
    weight_grad({op, p, input, dz, dw, on.place()}, row, math);
    return {dw, db};
  }
  const GradCall call = {op, p, input, grad, dw, on.place()};
  if (!sums_dy(row, p, math)) {
    weight_grad(call, row, math);
    return {dw, conv2d_bias_grad_cuda(grad)};
  }
  const Tensor db = empty_bias(grad, p.K, p.dtype);
  OutputMask mask = {};
  if (masked) mask = {y.data, pixel_stride(y), static_cast<Activation>(activation)};
  weight_grad(call, row, math, &db, mask);
  return {dw, db};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(FASTCONV_CUDA_LIBRARY, FASTCONV_CUDA_KEY, m) {
  m.impl("conv2d_input_grad", TORCH_BOX(&conv2d_input_grad_cuda));
  m.impl("conv2d_input_grad_raw", TORCH_BOX(&conv2d_input_grad_cuda));
  m.impl("conv2d_weight_grad", TORCH_BOX(&conv2d_weight_grad_cuda));
  m.impl("conv2d_weight_grad_raw", TORCH_BOX(&conv2d_weight_grad_cuda));
  m.impl("conv2d_bias_grad", TORCH_BOX(&conv2d_bias_grad_cuda));
  m.impl("conv2d_bias_grad_raw", TORCH_BOX(&conv2d_bias_grad_cuda));
  m.impl("activation_bias_grad", TORCH_BOX(&activation_bias_grad_cuda));
  m.impl("activation_bias_grad_raw", TORCH_BOX(&activation_bias_grad_cuda));
  m.impl("conv2d_weight_bias_grad", TORCH_BOX(&conv2d_weight_bias_grad_cuda));
  m.impl("conv2d_weight_bias_grad_raw", TORCH_BOX(&conv2d_weight_bias_grad_cuda));
}

}  // namespace fastconv::cuda
