// Torch side of the convolution on CUDA: tensors to the parameters of the chosen kernel.
#include "../conv_op.h"
#include "../plan.h"
#include "conv1x1.h"
#include "conv_depthwise.h"
#include "conv_direct.h"
#include "conv_implicit_gemm.h"
#include "conv_stem.h"
#include "known_tiles.h"
#include "pixels.h"

namespace fastconv::cuda {
namespace {

// The operands of a forward convolution; the residual and bias may be absent. The problem may have
// more channels than they, which are taken for zeros (filled() in conv_params.h).
struct Call {
  const ConvProblem& p;
  const Tensor &input, &weight;
  const OptionalTensor &bias, &residual;
  const Tensor& output;
  const Place& place;

  template <class... Parts>
  void must(const Status& status) const {
    check_launch(status, "conv2d of input ", shape(input.sizes().data(), 4), ", weight ",
                 shape(weight.sizes().data(), 4), ", stride (", p.stride_h, ", ", p.stride_w,
                 "), groups ", p.G);
  }
};

// The bias as one dense, aligned row of p.K; `keep` owns a copy that had to be made.
const void* dense_bias(const Call& c, OptionalTensor& keep) {
  if (!c.bias) return nullptr;
  const void* data = c.bias->const_data_ptr();
  const int64_t stride = c.bias->stride(0), K = c.bias->numel();
  const bool dense = stride == 1 || K == 1;
  if (dense && K == c.p.K && reinterpret_cast<uintptr_t>(data) % 16 == 0) return data;
  const View v = {const_cast<void*>(data), {1, K, 1, 1}, {1, stride, 1, 1}};
  const int64_t size[1] = {c.p.K}, one[1] = {1};
  keep = empty(*c.bias, 1, size, one, torch_dtype(c.p.dtype));
  if (K < c.p.K) torch::stable::zero_(*keep);
  const View to = {keep->mutable_data_ptr(), {1, K, 1, 1}, {1, 1, 1, 1}};
  copy_layout(v, to, c.p.dtype, c.place.stream);
  return to.data;
}

// The operands as rows of channels, weights K R S C; what had to be copied lives as long as this.
struct Rows {
  Pixels x, w;
  std::optional<Pixels> residual;
  OptionalTensor bias, result, partial;
  View y, wanted;
  ConvOperands at;

  Rows(const Call& c, bool aligned)
      : x(pixels(c, c.input, "input", {aligned, false, c.p.C})),
        w(pixels(c, c.weight, "weight", {aligned, true, c.p.C / c.p.G, c.p.K})) {
    if (c.residual) residual = pixels(c, *c.residual, "residual", {aligned, false, c.p.K});
    y = wanted = view_of(c.output, "conv2d", "output");
    int64_t y_pixel = pixel_stride(y);
    if (!y_pixel || y.size[1] != c.p.K) {
      const int64_t size[4] = {c.p.N, c.p.K, c.p.P, c.p.Q};
      result = empty4(c.output, size, true, c.p.dtype);
      y = view_of(*result, "conv2d", "output");
      y_pixel = c.p.K;
    }
    at = {x.view.data,
          w.view.data,
          dense_bias(c, bias),
          residual ? residual->view.data : nullptr,
          y.data,
          nullptr,
          x.pixel,
          y_pixel,
          residual ? residual->pixel : 0};
  }

  // To the output, where the kernel wrote elsewhere.
  void finish(const Call& c) const {
    if (result) copy_layout(first_of(y, wanted.size), wanted, c.p.dtype, c.place.stream);
  }

 private:
  static Pixels pixels(const Call& c, const Tensor& t, const char* name, RowsWanted wanted) {
    return as_pixels(t, view_of(t, "conv2d", name), c.p.dtype, wanted, c.place.stream);
  }
};

// On tensor cores.
void run_gemm(const Call& c, bool pointwise, Math math) {
  const ConvProblem& p = c.p;
  Rows rows(c, true);
  const TileChoice tile = known_tile(p, math, c.place.gpu);
  check(tile.tile >= 0, "conv2d: no tile of this GPU takes the problem");
  if (tile.splits > 1) {
    const int64_t size[1] = {tile.splits * p.N * p.P * p.Q * p.K}, dense[1] = {1};
    rows.partial = empty(c.input, 1, size, dense, aoti_torch_dtype_float32());
    rows.at.partial = static_cast<float*>(rows.partial->mutable_data_ptr());
  }
  const ConvParams params = make_conv_params(p, rows.at, tile.splits, tile.split_depth);
  c.must(pointwise ? launch_conv1x1(params, math, tile.tile, c.place.stream)
                   : launch_conv_implicit_gemm(params, math, tile.tile, c.place.stream));
  rows.finish(c);
}

void run_depthwise(const Call& c) {
  const Rows rows(c, c.p.C / c.p.G > 1);  // single channels are slower unaligned, but run
  const ConvParams params = make_conv_params(c.p, rows.at, 1, 0);
  c.must(launch_conv_depthwise(params, c.p.dtype, c.place.stream));
  rows.finish(c);
}

void run_stem(const Call& c, Math math) {
  const ConvProblem& p = c.p;
  const Rows rows(c, false);
  const StemShape shape = stem_shape(p.C, p.R, p.S, p.stride_h, p.stride_w, math);
  const ConvParams params = make_conv_params(p, rows.at, 1, 0);
  c.must(launch_conv_stem(params, math, stem_blocks(shape, c.place.gpu), c.place.stream));
  rows.finish(c);
}

void run_direct(const Call& c) {
  DirectParams d = {c.p,
                    view_of(c.input, "conv2d", "input"),
                    view_of(c.weight, "conv2d", "weight"),
                    {},
                    view_of(c.output, "conv2d", "output"),
                    nullptr,
                    0,
                    0};
  d.w_group = c.p.K / c.p.G * d.w.stride[0];
  if (c.residual) d.residual = view_of(*c.residual, "conv2d", "residual");
  if (c.bias) d.bias = c.bias->const_data_ptr(), d.bias_stride = c.bias->stride(0);
  c.must(launch_conv_direct(d, c.place.stream));
}

Tensor conv2d_cuda(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                   const OptionalTensor& residual, int64_t stride_h, int64_t stride_w,
                   int64_t pad_t, int64_t pad_l, int64_t pad_b, int64_t pad_r, int64_t dil_h,
                   int64_t dil_w, int64_t groups, int64_t activation, int64_t precision) {
  const ConvProblem p = conv2d_problem(
      conv2d_operands(input, weight, bias, residual),
      {stride_h, stride_w, pad_t, pad_l, pad_b, pad_r, dil_h, dil_w, groups, activation});
  const int64_t y_size[4] = {p.N, p.K, p.P, p.Q};
  const Tensor output =
      empty4(input, y_size, channels_last(view_of(input, "conv2d", "input")), p.dtype);
  if (p.N * p.K * p.P * p.Q == 0) return output;
  const OnDevice on(device_of(input));
  const Capabilities caps = {Backend::cuda, precision == static_cast<int64_t>(Precision::tf32)};
  const PlanRow& row = plan(p, caps, Direction::forward);
  mark_ran(row, Direction::forward);
  const Math math = math_of(p.dtype, caps.tf32);
  const ConvProblem q = is_implicit_gemm(row) ? filled(p, math) : p;
  const Call call = {q, input, weight, bias, residual, output, on.place()};
  switch (row.algorithm) {
    case Algorithm::conv1x1: run_gemm(call, true, math); break;
    case Algorithm::implicit_gemm: run_gemm(call, false, math); break;
    case Algorithm::stem: run_stem(call, math); break;
    case Algorithm::depthwise: run_depthwise(call); break;
    case Algorithm::direct: run_direct(call);
  }
  return output;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(FASTCONV_CUDA_LIBRARY, FASTCONV_CUDA_KEY, m) {
  m.impl("conv2d", TORCH_BOX(&conv2d_cuda));
  m.impl("conv2d_raw", TORCH_BOX(&conv2d_cuda));
}

}  // namespace fastconv::cuda
