// The product's launchers of the kernels outside the tensor-core mainloop, for ctypes (simt.py).
#include "../../csrc/cuda/conv_direct.h"
#include "../../csrc/cuda/dialect.cuh"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace fastconv::cuda {

EXPORT const char* conv_direct(const DirectParams* params) {
  return launch_conv_direct(*params, nullptr).error;
}

}  // namespace fastconv::cuda
