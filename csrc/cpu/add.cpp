// Torch side of the residual add and of the activation's gradient on the CPU.
#include "../tensor.h"
#include "cpu.h"

namespace fastconv {
namespace {

// `size` elements at these strides fill their memory without gaps or overlap.
bool dense(const View& v, bool channels_last) {
  int64_t wanted[4];
  dense_strides(v.size, channels_last, wanted);
  for (int i = 0; i < 4; ++i)
    if (v.size[i] > 1 && v.stride[i] != wanted[i]) return false;
  return true;
}

Tensor run(const char* op, const Tensor& a, const char* name_a, const Tensor& b, const char* name_b,
           int64_t activation, bool grad) {
  PairJob job = {};
  job.a = view_of(a, op, name_a), job.b = view_of(b, op, name_b);
  check_same(a, name_a, b, name_b, op);
  check(activation >= 0 && activation <= 2, op, ": activation code must be 0, 1 or 2, got ",
        activation);
  for (int i = 0; i < 4; ++i)
    check(job.a.size[i] == job.b.size[i], op, ": ", name_a, " of size ", shape(job.a.size, 4),
          " and ", name_b, " of size ", shape(job.b.size, 4), " must have the same size");
  job.dtype = dtype_of(a, op);
  job.activation = static_cast<Activation>(activation);
  job.grad = grad;
  const bool last = channels_last(grad ? job.b : job.a);
  const Tensor output = empty4(a, job.a.size, last, job.dtype);
  job.out = view_of(output, op, "output");
  job.dense = dense(job.a, last) && dense(job.b, last);
  const int64_t* size = job.a.size;
  job.total = size[0] * size[1] * size[2] * size[3];
  if (job.total == 0) return output;
  const bool channels = job.out.stride[1] == 1 && size[1] > 1;
  const int64_t tasks =
      job.dense ? (job.total + kPairBlock - 1) / kPairBlock : size[0] * size[channels ? 2 : 1];
  parallel_tasks(tasks, 16.0 * job.total,
                 [&](int64_t begin, int64_t end) { cpu_kernels().pair_run(job, begin, end); });
  return output;
}

}  // namespace

Tensor residual_add_cpu(const Tensor& input, const Tensor& shortcut, int64_t activation) {
  return run("residual_add", input, "input", shortcut, "shortcut", activation, false);
}

Tensor activation_grad_cpu(const Tensor& grad, const Tensor& output, int64_t activation) {
  return run("activation_grad", grad, "grad", output, "output", activation, true);
}

STABLE_TORCH_LIBRARY_IMPL(fastconv, CPU, m) {
  m.impl("residual_add", TORCH_BOX(&residual_add_cpu));
  m.impl("residual_add_raw", TORCH_BOX(&residual_add_cpu));
  m.impl("activation_grad", TORCH_BOX(&activation_grad_cpu));
  m.impl("activation_grad_raw", TORCH_BOX(&activation_grad_cpu));
}

}  // namespace fastconv
