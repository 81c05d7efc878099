// Entries of the module that take plain CPU tensors past torch's dispatcher: eager.cpp.
#pragma once
#include <Python.h>

namespace fastconv {

// 0, or -1 with a Python error set.
int add_eager_calls(PyObject* module);

}  // namespace fastconv
