// Residual add and the activation's gradient at the torch side, once for every backend: tensors to
// a PairJob, checked. A backend is a type with `static void run(const PairJob&, const Tensor&
// operand)`.
#pragma once
#include "pair_job.h"
#include "tensor.h"

namespace fastconv {

// `size` elements at these strides fill their memory without gaps or overlap.
inline bool dense(const View& v, bool channels_last) {
  int64_t wanted[4];
  dense_strides(v.size, channels_last, wanted);
  for (int i = 0; i < 4; ++i)
    if (v.size[i] > 1 && v.stride[i] != wanted[i]) return false;
  return true;
}

// The operands checked; the output of the memory format of a (of b in a gradient), without memory.
inline PairJob pair_job(const char* op, const Operand& a, const char* name_a, const Operand& b,
                        const char* name_b, int64_t activation, bool grad) {
  PairJob job = {};
  job.a = view_of(a, op, name_a), job.b = view_of(b, op, name_b);
  check_same(a, name_a, b, name_b, op);
  job.activation = activation_of(activation, op);
  for (int i = 0; i < 4; ++i)
    check(job.a.size[i] == job.b.size[i], op, ": ", name_a, " of size ", shape(job.a.size, 4),
          " and ", name_b, " of size ", shape(job.b.size, 4), " must have the same size");
  job.dtype = a.dtype;
  job.grad = grad;
  const bool last = channels_last(grad ? job.b : job.a);
  job.out = job.a;
  job.out.data = nullptr;
  dense_strides(job.a.size, last, job.out.stride);
  job.dense = dense(job.a, last) && dense(job.b, last);
  const int64_t* size = job.a.size;
  job.total = size[0] * size[1] * size[2] * size[3];
  return job;
}

// The same of tensors, with the output.
struct PairCall {
  PairJob job;
  Tensor output;

  PairCall(const char* op, const Tensor& a, const char* name_a, const Tensor& b, const char* name_b,
           int64_t activation, bool grad)
      : job(pair_job(op, operand_of(a, op), name_a, operand_of(b, op), name_b, activation, grad)),
        output(empty(a, 4, job.out.size, job.out.stride, torch_dtype(job.dtype))) {
    job.out.data = output.mutable_data_ptr();
  }
};

template <class Backend>
struct PairOps {
  static Tensor run(const PairCall& call, const Tensor& operand) {
    if (call.job.total > 0) Backend::run(call.job, operand);
    return call.output;
  }

  static Tensor residual_add(const Tensor& input, const Tensor& shortcut, int64_t activation) {
    return run({"residual_add", input, "input", shortcut, "shortcut", activation, false}, input);
  }

  static Tensor activation_grad(const Tensor& grad, const Tensor& output, int64_t activation) {
    return run({"activation_grad", grad, "grad", output, "output", activation, true}, grad);
  }

  template <class Library>
  static void register_on(Library& m) {
    m.impl("residual_add", TORCH_BOX(&PairOps::residual_add));
    m.impl("residual_add_raw", TORCH_BOX(&PairOps::residual_add));
    m.impl("activation_grad", TORCH_BOX(&PairOps::activation_grad));
    m.impl("activation_grad_raw", TORCH_BOX(&PairOps::activation_grad));
  }
};

}  // namespace fastconv
