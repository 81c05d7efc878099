#include "stream.h"

#include <dlfcn.h>
#include <stdint.h>

#include "../error.h"

namespace fastconv::cuda {

void* current_stream(int device) {
  // A function of torch's stable ABI that only libtorch_cuda defines. NOTE torch loads that library
  // with names no other library sees, so a weak symbol would stay null; the module must load where
  // torch has no CUDA, so it cannot be linked with it either.
  static const auto torchs = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    void* found = library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr;
    return reinterpret_cast<int32_t (*)(int32_t, void**)>(found);
  }();
  check(torchs, "fastconv: this torch was built without CUDA");
  void* stream = nullptr;
  check(torchs(device, &stream) == 0, "fastconv: no current stream of device ", device);
  return stream;
}

}  // namespace fastconv::cuda
