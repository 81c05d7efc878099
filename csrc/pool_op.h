// The pooling ops at the torch side, once for every backend: tensors to a PoolJob, checked.
//
// A backend is a type with `static void run(PoolKernel, const PoolJob&, const Tensor& operand)`.
#pragma once
#include <tuple>

#include "pool_problem.h"
#include "tensor.h"

namespace fastconv {

enum class PoolKernel { max, max_grad, max_gather, avg, avg_grad };

inline int32_t torch_dtype(IndexType type) {
  if (type == IndexType::window8) return aoti_torch_dtype_uint8();
  return type == IndexType::window32 ? aoti_torch_dtype_int32() : aoti_torch_dtype_int64();
}

inline IndexType index_type_of(const Tensor& index, const char* op) {
  int32_t code;
  aoti_torch_get_dtype(index.get(), &code);
  if (code == aoti_torch_dtype_uint8()) return IndexType::window8;
  if (code == aoti_torch_dtype_int32()) return IndexType::window32;
  check(code == aoti_torch_dtype_int64(), op,
        ": expected index to be uint8 or int32 (within the window) or int64 (within the plane)");
  return IndexType::flat64;
}

// Places within a window in a byte where they fit.
inline IndexType window_index(int64_t kernel_h, int64_t kernel_w) {
  const bool byte = kernel_h > 0 && kernel_w > 0 && kernel_h <= 256 / kernel_w;
  return byte ? IndexType::window8 : IndexType::window32;
}

template <class Backend>
struct PoolOps {
  static std::tuple<Tensor, Tensor> max_pool(const char* op, const Tensor& input,
                                             const PoolSettings& s, IndexType type) {
    const View x = view_of(input, op, "input");
    const PoolProblem p = make_pool_problem(op, x.size, s, dtype_of(input, op));
    const int64_t size[4] = {p.N, p.C, p.rows.out, p.cols.out};
    const Tensor output = empty4(input, size, channels_last(x), p.dtype);
    PoolJob job = {p, x, view_of(output, op, "output"), {}, type, true, false};
    Tensor index = output;
    if (type != IndexType::none) {
      index = empty4(input, size, channels_last(x), torch_dtype(type));
      job.index = view_of(index, op, "index");
    }
    Backend::run(PoolKernel::max, job, input);
    return {output, index};
  }

  // The problem of an op that reads indices, beside values.
  static PoolJob index_job(const char* op, const Tensor& index, const Tensor& values,
                           const char* name, const PoolProblem& p) {
    check_same_device(index, "index", values, name, op);
    PoolJob job = {p, {}, {}, view_of(index, op, "index"), index_type_of(index, op), true, true};
    const int64_t size[4] = {p.N, p.C, p.rows.out, p.cols.out};
    check_size(op, "index", job.index, size);
    return job;
  }

  static Tensor avg_grad(const char* op, const Tensor& grad, const View& dy, const PoolProblem& p) {
    const int64_t size[4] = {p.N, p.C, p.rows.in, p.cols.in};
    const Tensor output = empty4(grad, size, channels_last(dy), p.dtype);
    const PoolJob job = {p, view_of(output, op, "output"), dy, {}, IndexType::none, false, true};
    Backend::run(PoolKernel::avg_grad, job, grad);
    return output;
  }

  static Tensor avg(const char* op, const Tensor& input, const View& x, const PoolProblem& p) {
    const int64_t size[4] = {p.N, p.C, p.rows.out, p.cols.out};
    const Tensor output = empty4(input, size, channels_last(x), p.dtype);
    const PoolJob job = {p, x, view_of(output, op, "output"), {}, IndexType::none, false, false};
    Backend::run(PoolKernel::avg, job, input);
    return output;
  }

  static Tensor max_pool2d(const Tensor& input, int64_t kernel_h, int64_t kernel_w,
                           int64_t stride_h, int64_t stride_w, int64_t pad_h, int64_t pad_w,
                           int64_t dil_h, int64_t dil_w, int64_t ceil_mode) {
    const PoolSettings s = {kernel_h, kernel_w, stride_h, stride_w, pad_h,
                            pad_w,    dil_h,    dil_w,    ceil_mode};
    return std::get<0>(max_pool("max_pool2d", input, s, IndexType::none));
  }

  static std::tuple<Tensor, Tensor> max_pool2d_window(const Tensor& input, int64_t kernel_h,
                                                      int64_t kernel_w, int64_t stride_h,
                                                      int64_t stride_w, int64_t pad_h,
                                                      int64_t pad_w, int64_t dil_h, int64_t dil_w,
                                                      int64_t ceil_mode) {
    const PoolSettings s = {kernel_h, kernel_w, stride_h, stride_w, pad_h,
                            pad_w,    dil_h,    dil_w,    ceil_mode};
    return max_pool("max_pool2d", input, s, window_index(kernel_h, kernel_w));
  }

  static std::tuple<Tensor, Tensor> max_pool2d_with_indices(const Tensor& input, int64_t kernel_h,
                                                            int64_t kernel_w, int64_t stride_h,
                                                            int64_t stride_w, int64_t pad_h,
                                                            int64_t pad_w, int64_t dil_h,
                                                            int64_t dil_w, int64_t ceil_mode) {
    const PoolSettings s = {kernel_h, kernel_w, stride_h, stride_w, pad_h,
                            pad_w,    dil_h,    dil_w,    ceil_mode};
    return max_pool("max_pool2d", input, s, IndexType::flat64);
  }

  static Tensor max_pool2d_grad(const Tensor& grad, const Tensor& index, int64_t height,
                                int64_t width, int64_t kernel_h, int64_t kernel_w, int64_t stride_h,
                                int64_t stride_w, int64_t pad_h, int64_t pad_w, int64_t dil_h,
                                int64_t dil_w) {
    const char* op = "max_pool2d_grad";
    const View dy = view_of(grad, op, "grad");
    const PoolProblem p = make_pool_grad_problem(
        op, dy.size, height, width,
        {kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dil_h, dil_w, 0},
        dtype_of(grad, op));
    PoolJob job = index_job(op, index, grad, "grad", p);
    const int64_t size[4] = {p.N, p.C, height, width};
    // As the index, which has the input's memory format; dy from behind a flatten may not.
    const Tensor output = empty4(grad, size, channels_last(job.index), p.dtype);
    job.x = view_of(output, op, "output"), job.y = dy;
    Backend::run(PoolKernel::max_grad, job, grad);
    return output;
  }

  static Tensor max_pool2d_gather(const Tensor& input, const Tensor& index, int64_t height,
                                  int64_t width, int64_t kernel_h, int64_t kernel_w,
                                  int64_t stride_h, int64_t stride_w, int64_t pad_h, int64_t pad_w,
                                  int64_t dil_h, int64_t dil_w) {
    const char* op = "max_pool2d_gather";
    const View x = view_of(input, op, "input"), places = view_of(index, op, "index");
    const PoolProblem p = make_pool_grad_problem(
        op, places.size, height, width,
        {kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dil_h, dil_w, 0},
        dtype_of(input, op));
    const int64_t x_size[4] = {p.N, p.C, height, width};
    check_size(op, "input", x, x_size);
    PoolJob job = index_job(op, index, input, "input", p);
    const Tensor output = empty4(input, places.size, channels_last(x), p.dtype);
    job.x = x, job.y = view_of(output, op, "output");
    Backend::run(PoolKernel::max_gather, job, input);
    return output;
  }

  static Tensor avg_pool2d(const Tensor& input, int64_t kernel_h, int64_t kernel_w,
                           int64_t stride_h, int64_t stride_w, int64_t pad_h, int64_t pad_w,
                           int64_t ceil_mode, int64_t count_include_pad, int64_t divisor_override) {
    const char* op = "avg_pool2d";
    const View x = view_of(input, op, "input");
    PoolProblem p = make_pool_problem(
        op, x.size, {kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, 1, 1, ceil_mode},
        dtype_of(input, op));
    p.count_include_pad = count_include_pad, p.divisor = divisor_override;
    return avg(op, input, x, p);
  }

  static Tensor avg_pool2d_grad(const Tensor& grad, int64_t height, int64_t width, int64_t kernel_h,
                                int64_t kernel_w, int64_t stride_h, int64_t stride_w, int64_t pad_h,
                                int64_t pad_w, int64_t /*ceil_mode*/, int64_t count_include_pad,
                                int64_t divisor_override) {
    const char* op = "avg_pool2d_grad";
    const View dy = view_of(grad, op, "grad");
    PoolProblem p = make_pool_grad_problem(
        op, dy.size, height, width, {kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, 1, 1, 0},
        dtype_of(grad, op));
    p.count_include_pad = count_include_pad, p.divisor = divisor_override;
    return avg_grad(op, grad, dy, p);
  }

  static Tensor adaptive_avg_pool2d(const Tensor& input, int64_t out_h, int64_t out_w) {
    const char* op = "adaptive_avg_pool2d";
    const View x = view_of(input, op, "input");
    return avg(op, input, x, make_adaptive_problem(op, x.size, out_h, out_w, dtype_of(input, op)));
  }

  static Tensor adaptive_avg_pool2d_grad(const Tensor& grad, int64_t height, int64_t width) {
    const char* op = "adaptive_avg_pool2d_grad";
    const View dy = view_of(grad, op, "grad");
    const int64_t size[4] = {dy.size[0], dy.size[1], height, width};
    return avg_grad(op, grad, dy,
                    make_adaptive_problem(op, size, dy.size[2], dy.size[3], dtype_of(grad, op)));
  }

  template <class Library>
  static void register_on(Library& m) {
    m.impl("max_pool2d", TORCH_BOX(&PoolOps::max_pool2d));
    m.impl("max_pool2d_raw", TORCH_BOX(&PoolOps::max_pool2d));
    m.impl("max_pool2d_window", TORCH_BOX(&PoolOps::max_pool2d_window));
    m.impl("max_pool2d_window_raw", TORCH_BOX(&PoolOps::max_pool2d_window));
    m.impl("max_pool2d_with_indices", TORCH_BOX(&PoolOps::max_pool2d_with_indices));
    m.impl("max_pool2d_with_indices_raw", TORCH_BOX(&PoolOps::max_pool2d_with_indices));
    m.impl("max_pool2d_grad", TORCH_BOX(&PoolOps::max_pool2d_grad));
    m.impl("max_pool2d_grad_raw", TORCH_BOX(&PoolOps::max_pool2d_grad));
    m.impl("max_pool2d_gather", TORCH_BOX(&PoolOps::max_pool2d_gather));
    m.impl("max_pool2d_gather_raw", TORCH_BOX(&PoolOps::max_pool2d_gather));
    m.impl("avg_pool2d", TORCH_BOX(&PoolOps::avg_pool2d));
    m.impl("avg_pool2d_raw", TORCH_BOX(&PoolOps::avg_pool2d));
    m.impl("avg_pool2d_grad", TORCH_BOX(&PoolOps::avg_pool2d_grad));
    m.impl("avg_pool2d_grad_raw", TORCH_BOX(&PoolOps::avg_pool2d_grad));
    m.impl("adaptive_avg_pool2d", TORCH_BOX(&PoolOps::adaptive_avg_pool2d));
    m.impl("adaptive_avg_pool2d_raw", TORCH_BOX(&PoolOps::adaptive_avg_pool2d));
    m.impl("adaptive_avg_pool2d_grad", TORCH_BOX(&PoolOps::adaptive_avg_pool2d_grad));
    m.impl("adaptive_avg_pool2d_grad_raw", TORCH_BOX(&PoolOps::adaptive_avg_pool2d_grad));
  }
};

}  // namespace fastconv
