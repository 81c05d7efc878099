// Eager calls of pooling and residual add: eager.h. The arguments are those of the public ops.
#include "cpu/add.h"
#include "cpu/pool.h"
#include "eager.h"

namespace fastconv::eager {
namespace {

// The output, computed, or (output, index) where there is one; null where they could not be made.
PyObject* output_of(PoolJob job, PyObject* like) {
  const PoolProblem& p = job.p;
  const int64_t size[4] = {p.N, p.C, p.rows.out, p.cols.out};
  const int64_t count = size[0] * size[1] * size[2] * size[3];
  for (int i = 0; i < 4; ++i) job.y.size[i] = size[i];
  dense_strides(size, channels_last(job.x), job.y.stride);
  PyObject* output = empty(like, size, job.y.stride, false, job.y.data);
  if (!output) return nullptr;
  prepare_output(job.y.data, count, torch_dtype(p.dtype));
  PyObject* index = nullptr;
  if (job.index_type != IndexType::none) {
    job.index = job.y;
    index = empty(like, size, job.y.stride, true, job.index.data);
    if (!index) return Py_DECREF(output), nullptr;
    prepare_output(job.index.data, count, aoti_torch_dtype_uint8());
  }
  const PoolKernel kernel = job.max ? PoolKernel::max : PoolKernel::avg;
  compute(flops(job), [&] { run(kernel, job); });
  if (!index) return output;
  PyObject* both = PyTuple_Pack(2, output, index);
  Py_DECREF(output);
  Py_DECREF(index);
  return both;
}

bool plain_input(PyObject* object, Operand& input) {
  return quiet() && plain_tensor(object) && borrow(object, input) && input.dims == 4;
}

// Kernel, stride and padding to s[0..6).
bool window(PyObject* const* args, int64_t* s) {
  if (!pair(args[0], s[0], s[1]) || !pair(args[2], s[4], s[5])) return false;
  if (args[1] != Py_None) return pair(args[1], s[2], s[3]);
  s[2] = s[0], s[3] = s[1];
  return true;
}

PoolJob max_job(const Operand& input, const int64_t* s, IndexType index) {
  const View x = view_of(input, "max_pool2d", "input");
  const PoolSettings settings = {s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], s[8]};
  const PoolProblem p = make_pool_problem("max_pool2d", x.size, settings, input.dtype);
  return {p, x, {}, {}, index, true, false};
}

// max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode): its output; where a
// gradient is asked for, the settings as the op takes them; or None.
PyObject* max_pool2d(PyObject*, PyObject* const* args, Py_ssize_t n) {
  return or_none([&]() -> PyObject* {
    Operand input;
    int64_t s[9];  // kernel, stride, padding, dilation, ceil_mode
    const bool taken = n == 6 && plain_input(args[0], input) && window(args + 1, s) &&
                       pair(args[4], s[6], s[7]) && boolean(args[5], s[8]);
    if (!taken) return nullptr;
    if (needs_grad(args, 1)) return tuple_of(s, 9);
    return output_of(max_job(input, s, IndexType::none), args[0]);
  });
}

// max_pool2d_window(input, settings), where `max_pool2d` has just answered the settings: output
// and index, or None.
PyObject* max_pool2d_window(PyObject*, PyObject* const* args, Py_ssize_t n) {
  return or_none([&]() -> PyObject* {
    Operand input;
    int64_t s[9];
    if (n != 2 || !borrow(args[0], input) || !integers(args[1], s, 9)) return nullptr;
    if (window_index(s[0], s[1]) != IndexType::window8) return nullptr;
    return output_of(max_job(input, s, IndexType::window8), args[0]);
  });
}

// avg_pool2d(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override).
PyObject* avg_pool2d(PyObject*, PyObject* const* args, Py_ssize_t n) {
  return or_none([&]() -> PyObject* {
    Operand input;
    int64_t s[6], ceil_mode, include_pad, divisor = 0;
    const bool taken = n == 7 && plain_input(args[0], input) && window(args + 1, s) &&
                       boolean(args[4], ceil_mode) && boolean(args[5], include_pad) &&
                       (args[6] == Py_None || (integer(args[6], divisor) && divisor)) &&
                       !needs_grad(args, 1);
    if (!taken) return nullptr;
    const View x = view_of(input, "avg_pool2d", "input");
    const PoolSettings settings = {s[0], s[1], s[2], s[3], s[4], s[5], 1, 1, ceil_mode};
    PoolProblem p = make_pool_problem("avg_pool2d", x.size, settings, input.dtype);
    p.count_include_pad = include_pad, p.divisor = divisor;
    return output_of({p, x, {}, {}, IndexType::none, false, false}, args[0]);
  });
}

// adaptive_avg_pool2d(input, output_size).
PyObject* adaptive_avg_pool2d(PyObject*, PyObject* const* args, Py_ssize_t n) {
  return or_none([&]() -> PyObject* {
    Operand input;
    int64_t h, w;
    const bool taken =
        n == 2 && plain_input(args[0], input) && pair(args[1], h, w) && !needs_grad(args, 1);
    if (!taken) return nullptr;
    const char* op = "adaptive_avg_pool2d";
    const View x = view_of(input, op, "input");
    const PoolProblem p = make_adaptive_problem(op, x.size, h, w, input.dtype);
    return output_of({p, x, {}, {}, IndexType::none, false, false}, args[0]);
  });
}

// residual_add(input, shortcut, activation).
PyObject* residual_add(PyObject*, PyObject* const* args, Py_ssize_t n) {
  return or_none([&]() -> PyObject* {
    Operand a, b;
    int64_t code;
    const bool taken = n == 3 && plain_input(args[0], a) && plain_tensor(args[1]) &&
                       borrow(args[1], b) && activation(args[2], code) && !needs_grad(args, 2);
    if (!taken) return nullptr;
    PairJob job = pair_job("residual_add", a, "input", b, "shortcut", code, false);
    PyObject* output = empty(args[0], job.out.size, job.out.stride, false, job.out.data);
    if (!output) return nullptr;
    prepare_output(job.out.data, job.total, torch_dtype(job.dtype));
    compute(flops(job), [&] { run(job); });
    return output;
  });
}

}  // namespace

PyMethodDef pool_calls[] = {
    {"eager_max_pool2d", (PyCFunction)(void*)max_pool2d, METH_FASTCALL, nullptr},
    {"eager_max_pool2d_window", (PyCFunction)(void*)max_pool2d_window, METH_FASTCALL, nullptr},
    {"eager_avg_pool2d", (PyCFunction)(void*)avg_pool2d, METH_FASTCALL, nullptr},
    {"eager_adaptive_avg_pool2d", (PyCFunction)(void*)adaptive_avg_pool2d, METH_FASTCALL, nullptr},
    {"eager_residual_add", (PyCFunction)(void*)residual_add, METH_FASTCALL, nullptr},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace fastconv::eager
