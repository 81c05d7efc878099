// What the torch side of every CUDA op shares: where it is registered, errors of launches.
//
// The tests' emulator compiles these files too, for CPU tensors in a library of its own.
#pragma once
#include "../tensor.h"
#include "place.h"
#include "status.h"

#ifndef FASTCONV_CUDA_LIBRARY
#define FASTCONV_CUDA_LIBRARY fastconv
#define FASTCONV_CUDA_KEY CUDA
#endif

namespace fastconv::cuda {

inline int device_of(const Tensor& t) {
  int32_t index;
  aoti_torch_get_device_index(t.get(), &index);
  return index;
}

// False in the emulator, whose tensors are the CPU's, unless a test says otherwise.
inline bool taken_for_gpu = false;
inline bool is_on_gpu(const Tensor& t) {
  int32_t type;
  aoti_torch_get_device_type(t.get(), &type);
  return taken_for_gpu || type == aoti_torch_device_type_cuda();
}

// `problem` says in words what was launched.
template <class... Parts>
void check_launch(const Status& status, const Parts&... problem) {
  check(!status.error, "fastconv: kernel ", status.kernel, " failed: ", status.error, ", for ",
        problem...);
}

}  // namespace fastconv::cuda
