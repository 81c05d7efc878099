// Eager calls of conv2d: eager.h.
#include <memory>

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

struct Drop {
  void operator()(PyObject* object) const { Py_DECREF(object); }
};
typedef std::unique_ptr<PyObject, Drop> Owned;

Owned entry(PyObject* dict, PyObject* name) {
  PyObject* found = PyDict_GetItemWithError(dict, name);
  Py_XINCREF(found);
  return Owned(found);
}

// What a call by kept weights looks up in its layer, see fastconv/packing.py.
struct LayerNames {
  PyObject *cache, *parameters, *weight, *bias, *activation, *head, *problems, *version;
  PyObject* settings[5];
};

const LayerNames& layer_names() {
  auto name = [](const char* s) { return PyUnicode_InternFromString(s); };
  static const LayerNames names = {
      name("_weight_cache"),
      name("_parameters"),
      name("weight"),
      name("bias"),
      name("activation"),
      name("head"),
      name("problems"),
      name("_version"),
      {name("stride"), name("padding"), name("dilation"), name("groups"), name("padding_mode")}};
  return names;
}

// Whether a cache is of the weight as it is, and of the layer's settings.
bool is_of(PyObject* head, PyObject* attributes, PyObject* weight, const void* data) {
  const LayerNames& names = layer_names();
  const Owned version(PyObject_GetAttr(weight, names.version));  // null in inference mode
  int64_t numbers[2], now;
  if (!version || !integer(version.get(), now) || PyTuple_GET_SIZE(head) != 7) return false;
  for (int i = 0; i < 2; ++i)
    if (!integer(PyTuple_GET_ITEM(head, i), numbers[i])) return false;
  bool same = numbers[0] == (int64_t)(intptr_t)data && numbers[1] == now;
  for (int i = 0; i < 5; ++i)
    same = same &&
           PyDict_GetItemWithError(attributes, names.settings[i]) == PyTuple_GET_ITEM(head, 2 + i);
  return same;
}

PyObject* problem_of(const Operand& input) {
  int64_t numbers[9] = {static_cast<int64_t>(input.dtype)};
  for (int i = 0; i < 4; ++i) numbers[1 + i] = input.size[i], numbers[5 + i] = input.stride[i];
  return PyBytes_FromStringAndSize((const char*)numbers, sizeof numbers);
}

// kept_conv2d(attributes of a layer, input, residual): its output by the packed weights that it
// keeps; bytes that name the problem, where it keeps none of it; or None.
PyObject* kept_conv2d(PyObject*, PyObject* const* args, Py_ssize_t n) {
  return or_none([&]() -> PyObject* {
    const LayerNames& names = layer_names();
    if (n != 3 || !PyDict_CheckExact(args[0]) || !quiet()) return nullptr;
    PyObject* const layer = args[0];
    // A parametrization, pruning or weight norm take a parameter's name out, or set an attribute.
    const Owned parameters = entry(layer, names.parameters);
    if (!parameters || entry(layer, names.weight) || entry(layer, names.bias)) return nullptr;
    const Owned weight = entry(parameters.get(), names.weight);
    const Owned bias = entry(parameters.get(), names.bias);
    const Owned activated = entry(layer, names.activation);
    int64_t code;
    if (!weight || !bias || !activated || !activation(activated.get(), code)) return nullptr;
    PyObject* const tensors[] = {args[1], weight.get(), bias.get(), args[2]};
    ConvOperands o = {};
    if (!plain_tensors(tensors) || needs_grad(tensors, 4) || !borrow_operands(tensors, o))
      return nullptr;
    const Owned problem(problem_of(o.input)), cache = entry(layer, names.cache);
    const Owned head(cache ? PyObject_GetAttr(cache.get(), names.head) : nullptr);
    if (!head || !is_of(head.get(), layer, weight.get(), o.weight.data))
      return PyErr_Clear(), Py_NewRef(problem.get());
    const Owned problems(PyObject_GetAttr(cache.get(), names.problems));
    const Owned found = entry(problems.get(), problem.get());
    if (!found) return Py_NewRef(problem.get());
    Operand packed;
    int64_t height, width;
    const bool taken = PyTuple_CheckExact(found.get()) &&
                       borrow(PyTuple_GET_ITEM(found.get(), 0), packed) &&
                       integer(PyTuple_GET_ITEM(found.get(), 1), height) &&
                       integer(PyTuple_GET_ITEM(found.get(), 2), width);
    return taken ? output_of(conv2d_packed_call(o, packed, height, width, code), args[1]) : nullptr;
  });
}

}  // namespace

PyMethodDef conv_calls[] = {
    {"eager_conv2d", (PyCFunction)(void*)conv2d, METH_FASTCALL, nullptr},
    {"eager_conv2d_raw", (PyCFunction)(void*)conv2d_raw, METH_FASTCALL, nullptr},
    {"eager_kept_conv2d", (PyCFunction)(void*)kept_conv2d, METH_FASTCALL, nullptr},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace fastconv::eager
