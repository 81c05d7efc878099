// What eager calls share: what torch is asked, tensors and arguments out of Python's objects.
#include "eager.h"

#include <string>

namespace fastconv {
namespace eager {
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
  PyObject *requires_grad, *empty, *name, *level, *is_neg, *dtype_name, *byte;
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
  t.dtype_name = Py_BuildValue("(s)", "dtype");
  t.byte = attribute("torch", "uint8");
  t.is_neg = attribute("torch", "Tensor.is_neg");
  t.forward_ad = attribute("torch.autograd", "forward_ad");
  t.choice = attribute("fastconv.backend", "_choice");
  const char* quiet[] = {"_len_torch_dispatch_stack",         "_len_torch_function_stack",
                         "_is_any_autocast_enabled",          "_get_tracing_state",
                         "_functorch.peek_interpreter_stack", "_autograd._profiler_enabled"};
  bool found = t.tensor && t.parameter && t.byte && t.is_neg && t.forward_ad && t.choice;
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

PyObject* prepare(PyObject*, PyObject*) {
  torch_names() = find_torch();
  return PyBool_FromLong(torch_names().usable);
}

PyMethodDef own_calls[] = {{"prepare_eager", prepare, METH_NOARGS, nullptr},
                           {nullptr, nullptr, 0, nullptr}};

}  // namespace

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

bool plain_tensor(PyObject* object) {
  if (!plain_type(object)) return false;
  PyObject* negative = PyObject_CallOneArg(torch_names().is_neg, object);
  Py_XDECREF(negative);
  return negative == Py_False;
}

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

bool boolean(PyObject* object, int64_t& value) {
  value = object == Py_True;
  return PyBool_Check(object);
}

bool integers(PyObject* tuple, int64_t* numbers, int n) {
  if (!PyTuple_CheckExact(tuple) || PyTuple_GET_SIZE(tuple) != n) return false;
  for (int i = 0; i < n; ++i)
    if (!integer(PyTuple_GET_ITEM(tuple, i), numbers[i])) return false;
  return true;
}

PyObject* tuple_of(const int64_t* numbers, int n) {
  PyObject* tuple = PyTuple_New(n);
  for (int i = 0; tuple && i < n; ++i) PyTuple_SET_ITEM(tuple, i, PyLong_FromLongLong(numbers[i]));
  return tuple;
}

PyObject* empty(PyObject* like, const int64_t size[4], const int64_t stride[4], bool bytes,
                void*& data) {
  const int64_t elements = size[0] * size[1] * size[2] * size[3];
  if (keeps_blocks() && elements * (bytes ? 1 : 4) >= (int64_t)kKeptResult) return nullptr;
  const Torch& t = torch_names();
  PyObject* args[] = {like, tuple_of(size, 4), tuple_of(stride, 4), t.byte};
  PyObject* made = args[1] && args[2]
                       ? PyObject_VectorcallMethod(t.empty, args, 3, bytes ? t.dtype_name : nullptr)
                       : nullptr;
  Py_XDECREF(args[1]);
  Py_XDECREF(args[2]);
  DlTensor borrowed;
  if (made && t.dlpack->borrow(made, &borrowed)) Py_CLEAR(made);
  if (made) data = (char*)borrowed.data + borrowed.offset;
  return made;
}

}  // namespace eager

int add_eager_calls(PyObject* module) {
  for (PyMethodDef* calls : {eager::own_calls, eager::conv_calls, eager::pool_calls})
    if (PyModule_AddFunctions(module, calls)) return -1;
  return 0;
}

}  // namespace fastconv
