// conv2d of plain CPU tensors called from Python, past torch's dispatcher: a call of one pixel
// costs 3 us instead of 10. Tensors are read through DLPack's C functions (dmlc/dlpack, version 1),
// which torch keeps in `Tensor.__dlpack_c_exchange_api__`.
//
// A call answers None wherever anything but that is asked for: a subclass, a mode, a transform, a
// device, arguments that do not fit. The caller then takes the op, which does or refuses it.
#include "eager.h"

#include "cpu/conv_call.h"

namespace fastconv {
namespace {

struct DlTensor {
  void* data;
  int32_t device_type, device_index, dims;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t *size, *stride;
  uint64_t offset;
};

struct DlFunctions {
  uint32_t major, minor;
  void* previous;
  void *allocate, *owning, *to_python;
  int (*borrow)(void* object, DlTensor* tensor);  // sizes and strides are the object's own
  void* stream;
};

// What is looked up in Python, once.
struct Torch {
  PyTypeObject *tensor, *parameter;
  const DlFunctions* dlpack;
  PyObject *requires_grad, *empty, *name, *level, *is_neg;
  PyObject* quiet[6];  // functions that answer something false where nothing special is going on
  PyObject *forward_ad, *choice;
  bool usable;  // false until prepared, and where this torch lacks something
};

PyObject* attribute(const char* module, const char* path) {
  PyObject* at = PyImport_ImportModule(module);
  std::string rest(path);
  while (at && !rest.empty()) {
    const size_t dot = rest.find('.');
    PyObject* next = PyObject_GetAttrString(at, rest.substr(0, dot).c_str());
    Py_DECREF(at);
    at = next;
    rest = dot == std::string::npos ? "" : rest.substr(dot + 1);
  }
  return at;
}

Torch find_torch() {
  Torch t = {};
  t.tensor = (PyTypeObject*)attribute("torch", "Tensor");
  t.parameter = (PyTypeObject*)attribute("torch.nn", "Parameter");
  t.requires_grad = PyUnicode_InternFromString("requires_grad");
  t.empty = PyUnicode_InternFromString("new_empty_strided");
  t.name = PyUnicode_InternFromString("name");
  t.level = PyUnicode_InternFromString("_current_level");
  t.is_neg = attribute("torch", "Tensor.is_neg");
  t.forward_ad = attribute("torch.autograd", "forward_ad");
  t.choice = attribute("fastconv.backend", "_choice");
  const char* quiet[] = {"_len_torch_dispatch_stack",         "_len_torch_function_stack",
                         "_is_any_autocast_enabled",          "_get_tracing_state",
                         "_functorch.peek_interpreter_stack", "_autograd._profiler_enabled"};
  bool found = t.tensor && t.parameter && t.is_neg && t.forward_ad && t.choice;
  for (int i = 0; i < 6; ++i) found = (t.quiet[i] = attribute("torch._C", quiet[i])) && found;
  PyObject* capsule = attribute("torch", "Tensor.__dlpack_c_exchange_api__");
  if (capsule) t.dlpack = (DlFunctions*)PyCapsule_GetPointer(capsule, "dlpack_exchange_api");
  t.usable = found && t.dlpack && t.dlpack->major == 1 && t.dlpack->borrow;
  PyErr_Clear();
  return t;
}

Torch& torch_names() {
  static Torch names = {};
  return names;
}

bool plain_type(PyObject* o) {
  return Py_TYPE(o) == torch_names().tensor || Py_TYPE(o) == torch_names().parameter;
}

// Nothing watches or changes what torch's ops do: no mode, transform, trace, profiler, autocast,
// forward-mode level, nor a backend chosen by `fastconv.backend`.
bool quiet() {
  const Torch& t = torch_names();
  if (!t.usable) return false;
  for (PyObject* function : t.quiet) {
    PyObject* answer = PyObject_CallNoArgs(function);
    const int loud = answer ? PyObject_IsTrue(answer) : -1;
    Py_XDECREF(answer);
    if (loud) return false;
  }
  PyObject* level = PyObject_GetAttr(t.forward_ad, t.level);
  const long depth = level ? PyLong_AsLong(level) : 0;
  Py_XDECREF(level);
  PyObject* backend = depth < 0 ? PyObject_GetAttr(t.choice, t.name) : nullptr;
  Py_XDECREF(backend);
  return backend == Py_None;
}

bool needs_grad(PyObject* const* tensors, int n) {
  if (!aoti_torch_grad_mode_is_enabled()) return false;
  for (int i = 0; i < n; ++i) {
    if (tensors[i] == Py_None) continue;
    PyObject* needs = PyObject_GetAttr(tensors[i], torch_names().requires_grad);
    Py_XDECREF(needs);
    if (needs == Py_True) return true;
  }
  return false;
}

// Of an exact type, and not a view that is to be read negated, which DLPack does not tell.
bool plain_tensor(PyObject* object) {
  if (!plain_type(object)) return false;
  PyObject* negative = PyObject_CallOneArg(torch_names().is_neg, object);
  Py_XDECREF(negative);
  return negative == Py_False;
}

// input, weight, bias, residual, of which the last two may be None.
bool plain_tensors(PyObject* const* tensors) {
  for (int i = 0; i < 4; ++i)
    if (!plain_tensor(tensors[i]) && (i < 2 || tensors[i] != Py_None)) return false;
  return true;
}

// A plain tensor of the CPU with memory of its own.
bool borrow(PyObject* object, Operand& o) {
  DlTensor t;
  if (!torch_names().usable || !plain_type(object) || torch_names().dlpack->borrow(object, &t))
    return false;
  constexpr int kCpu = 1, kFloat = 2, kBfloat = 4;
  if (t.device_type != kCpu || t.lanes != 1 || (t.code != kFloat && t.code != kBfloat))
    return false;
  if (t.code == kBfloat)
    o.dtype = DType::bf16;
  else if (t.bits == 16 || t.bits == 32 || t.bits == 64)
    o.dtype = t.bits == 16 ? DType::f16 : t.bits == 32 ? DType::f32 : DType::f64;
  else
    return false;
  o.data = (char*)t.data + t.offset;
  o.dims = t.dims, o.size = t.size, o.stride = t.stride;
  o.device_type = aoti_torch_device_type_cpu(), o.device_index = 0;
  return t.data != nullptr;
}

bool borrow(PyObject* object, std::optional<Operand>& o) {
  if (object == Py_None) return true;
  return borrow(object, o.emplace());
}

// input, weight, bias, residual.
bool borrow_operands(PyObject* const* tensors, ConvOperands& o) {
  return borrow(tensors[0], o.input) && borrow(tensors[1], o.weight) &&
         borrow(tensors[2], o.bias) && borrow(tensors[3], o.residual) && o.input.dims == 4;
}

bool integer(PyObject* object, int64_t& value) {
  if (!PyLong_CheckExact(object)) return false;
  int overflow;
  value = PyLong_AsLongLongAndOverflow(object, &overflow);
  return !overflow;
}

bool pair(PyObject* object, int64_t& h, int64_t& w) {
  if (integer(object, h)) return w = h, true;
  return PyTuple_CheckExact(object) && PyTuple_GET_SIZE(object) == 2 &&
         integer(PyTuple_GET_ITEM(object, 0), h) && integer(PyTuple_GET_ITEM(object, 1), w);
}

bool activation(PyObject* object, int64_t& code) {
  code = object == Py_None ? 0 : 1;
  if (!code) return true;
  if (!PyUnicode_CheckExact(object)) return false;
  if (!PyUnicode_CompareWithASCIIString(object, "relu")) return true;
  code = 2;
  return !PyUnicode_CompareWithASCIIString(object, "sigmoid");
}

PyObject* tuple_of(const int64_t* numbers, int n) {
  PyObject* tuple = PyTuple_New(n);
  for (int i = 0; tuple && i < n; ++i) PyTuple_SET_ITEM(tuple, i, PyLong_FromLongLong(numbers[i]));
  return tuple;
}

// An uninitialised tensor of the dtype of `like`, as torch makes it: resizable, of inference mode
// where that is on.
PyObject* empty(PyObject* like, const int64_t size[4], const int64_t stride[4], Operand& o) {
  PyObject* args[] = {like, tuple_of(size, 4), tuple_of(stride, 4)};
  PyObject* made = args[1] && args[2]
                       ? PyObject_VectorcallMethod(torch_names().empty, args, 3, nullptr)
                       : nullptr;
  Py_XDECREF(args[1]);
  Py_XDECREF(args[2]);
  if (made && !borrow(made, o)) Py_CLEAR(made);
  return made;
}

// The call's output, computed; null where it could not be made.
PyObject* output_of(ConvCall&& call, PyObject* like) {
  const ConvProblem& p = call.problem;
  const int64_t size[4] = {p.N, p.K, p.P, p.Q};
  Operand o;
  PyObject* output = empty(like, size, call.job.ys, o);
  if (!output) return nullptr;
  poison(o.data, p.N * p.K * p.P * p.Q, torch_dtype(p.dtype));
  if (2.0 * size[0] * size[1] * size[2] * size[3] * p.R * p.S * p.C / p.G < kSerialFlops) {
    run(call, o.data);
  } else {
    Py_BEGIN_ALLOW_THREADS;
    run(call, o.data);
    Py_END_ALLOW_THREADS;
  }
  return output;
}

// What `make` answers, or None where it answers null or throws.
template <class F>
PyObject* or_none(const F& make) {
  PyObject* made = nullptr;
  try {
    made = make();
  } catch (const std::exception&) {
  }
  if (made) return made;
  PyErr_Clear();
  Py_RETURN_NONE;
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
    bool taken = n == 5 && borrow_operands(args, o) && PyTuple_CheckExact(args[4]) &&
                 PyTuple_GET_SIZE(args[4]) == 11;
    for (int i = 0; taken && i < 11; ++i) taken = integer(PyTuple_GET_ITEM(args[4], i), s[i]);
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

PyObject* prepare(PyObject*, PyObject*) {
  torch_names() = find_torch();
  return PyBool_FromLong(torch_names().usable);
}

PyMethodDef methods[] = {
    {"prepare_eager", prepare, METH_NOARGS, nullptr},
    {"eager_conv2d", (PyCFunction)(void*)conv2d, METH_FASTCALL, nullptr},
    {"eager_conv2d_raw", (PyCFunction)(void*)conv2d_raw, METH_FASTCALL, nullptr},
    {"eager_conv2d_packed", (PyCFunction)(void*)conv2d_packed, METH_FASTCALL, nullptr},
    {"eager_plain", (PyCFunction)(void*)plain, METH_FASTCALL, nullptr},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

int add_eager_calls(PyObject* module) { return PyModule_AddFunctions(module, methods); }

}  // namespace fastconv
