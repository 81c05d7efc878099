// Eager calls of conv2d: eager.h.
#include "cpu/conv_call.h"
#include "eager.h"

namespace fastconv::eager {
namespace {

// input, weight, bias, residual, of which the last two may be None.
bool plain_tensors(PyObject* const* tensors) {
  for (int i = 0; i < 4; ++i)
    if (!plain_tensor(tensors[i]) && (i < 2 || tensors[i] != Py_None)) return false;
  return true;
}

bool borrow_optional(PyObject* object, std::optional<Operand>& o) {
  if (object == Py_None) return true;
  return borrow(object, o.emplace());
}

// input, weight, bias, residual.
bool borrow_operands(PyObject* const* tensors, ConvOperands& o) {
  return borrow(tensors[0], o.input) && borrow(tensors[1], o.weight) &&
         borrow_optional(tensors[2], o.bias) && borrow_optional(tensors[3], o.residual) &&
         o.input.dims == 4;
}

// The call's output, computed; null where it could not be made.
PyObject* output_of(ConvCall&& call, PyObject* like) {
  const ConvProblem& p = call.problem;
  const int64_t size[4] = {p.N, p.K, p.P, p.Q};
  void* data;
  PyObject* output = empty(like, size, call.job.ys, false, data);
  if (!output) return nullptr;
  prepare_output(data, p.N * p.K * p.P * p.Q, torch_dtype(p.dtype));
  compute(2.0 * p.N * p.K * p.P * p.Q * p.R * p.S * p.C / p.G, [&] { run(call, data); });
  return output;
}

ConvSettings settings_of(const int64_t* n) {
  return {n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8], n[9]};
}

// conv2d(input, weight, bias, stride, padding, dilation, groups, residual, activation) of the
// public op: its output; where a gradient is asked for, the settings as the op takes them; or None.
PyObject* conv2d(PyObject*, PyObject* const* args, Py_ssize_t n) {
  return or_none([&]() -> PyObject* {
    if (n != 9) return nullptr;
    PyObject* const tensors[] = {args[0], args[1], args[2], args[7]};
    if (!quiet() || !plain_tensors(tensors)) return nullptr;
    ConvOperands o = {};
    int64_t s[11] = {};  // stride, padding (t, l, b, r), dilation, groups, activation, precision
    const bool taken = borrow_operands(tensors, o) && pair(args[3], s[0], s[1]) &&
                       pair(args[4], s[2], s[3]) && pair(args[5], s[6], s[7]) &&
                       integer(args[6], s[8]) && activation(args[8], s[9]);
    if (!taken) return nullptr;
    s[4] = s[2], s[5] = s[3];
    if (needs_grad(tensors, 4)) return tuple_of(s, 11);
    return output_of(conv2d_call(o, settings_of(s)), args[0]);
  });
}

// conv2d_raw(input, weight, bias, residual, settings), where `conv2d` has just looked and answered
// the settings: the op's output, or None.
PyObject* conv2d_raw(PyObject*, PyObject* const* args, Py_ssize_t n) {
  return or_none([&]() -> PyObject* {
    ConvOperands o = {};
    int64_t s[11];
    const bool taken = n == 5 && borrow_operands(args, o) && integers(args[4], s, 11);
    return taken ? output_of(conv2d_call(o, settings_of(s)), args[0]) : nullptr;
  });
}

// plain(input, weight, bias, residual): whether conv2d_packed may take them: plain CPU tensors,
// nothing watching, no gradient asked for.
PyObject* plain(PyObject*, PyObject* const* args, Py_ssize_t n) {
  const bool taken = n == 4 && quiet() && plain_tensors(args) && !needs_grad(args, 4);
  PyErr_Clear();
  return PyBool_FromLong(taken);
}

// conv2d_packed(input, weight, bias, residual, packed, height, width, activation) after `plain`.
PyObject* conv2d_packed(PyObject*, PyObject* const* args, Py_ssize_t n) {
  return or_none([&]() -> PyObject* {
    ConvOperands o = {};
    Operand packed;
    int64_t height, width, code;
    const bool taken = n == 8 && borrow_operands(args, o) && borrow(args[4], packed) &&
                       integer(args[5], height) && integer(args[6], width) &&
                       integer(args[7], code);
    return taken ? output_of(conv2d_packed_call(o, packed, height, width, code), args[0]) : nullptr;
  });
}

}  // namespace

PyMethodDef conv_calls[] = {
    {"eager_conv2d", (PyCFunction)(void*)conv2d, METH_FASTCALL, nullptr},
    {"eager_conv2d_raw", (PyCFunction)(void*)conv2d_raw, METH_FASTCALL, nullptr},
    {"eager_conv2d_packed", (PyCFunction)(void*)conv2d_packed, METH_FASTCALL, nullptr},
    {"eager_plain", (PyCFunction)(void*)plain, METH_FASTCALL, nullptr},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace fastconv::eager
