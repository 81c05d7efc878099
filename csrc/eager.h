// Entries of the module that take plain CPU tensors past torch's dispatcher: a call of one pixel
// costs 3 us instead of 10. Tensors are read through DLPack's C functions (dmlc/dlpack, version 1),
// which torch keeps in `Tensor.__dlpack_c_exchange_api__`.
//
// A call answers None wherever anything but that is asked for: a subclass, a mode, a transform, a
// device, arguments that do not fit. The caller then takes the op, which does or refuses it.
#pragma once
#include <Python.h>

#include "tensor.h"

namespace fastconv {

// 0, or -1 with a Python error set.
int add_eager_calls(PyObject* module);

namespace eager {

extern PyMethodDef conv_calls[], pool_calls[];

// Nothing watches or changes what torch's ops do: no mode, transform, trace, profiler, autocast,
// forward-mode level, nor a backend chosen by `fastconv.backend`.
bool quiet();
bool needs_grad(PyObject* const* tensors, int n);
// Of an exact type, and not a view that is to be read negated, which DLPack does not tell.
bool plain_tensor(PyObject* object);
// A plain tensor of the CPU with memory of its own.
bool borrow(PyObject* object, Operand& o);

// Arguments: whether they are of the kind, and which.
bool integer(PyObject* object, int64_t& value);
bool pair(PyObject* object, int64_t& h, int64_t& w);
bool boolean(PyObject* object, int64_t& value);
bool activation(PyObject* object, int64_t& code);
bool integers(PyObject* tuple, int64_t* numbers, int n);
PyObject* tuple_of(const int64_t* numbers, int n);

// An uninitialised tensor of the dtype of `like` or of bytes, as torch makes it: resizable, of
// inference mode where that is on. `data`: its memory. Null of a large one, which may be in a block
// of memory (blocks.h) that the op has.
PyObject* empty(PyObject* like, const int64_t size[4], const int64_t stride[4], bool bytes,
                void*& data);

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

// Leaves the interpreter to others while it lives, whatever is thrown.
struct WithoutInterpreter {
  PyThreadState* state = PyEval_SaveThread();
  ~WithoutInterpreter() { PyEval_RestoreThread(state); }
};

// Work of so many FLOPs, without the interpreter where it is long.
template <class F>
void compute(double flops, const F& work) {
  if (flops < kSerialFlops) return work();
  const WithoutInterpreter released;
  work();
}

}  // namespace eager
}  // namespace fastconv
