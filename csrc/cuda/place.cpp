#include "place.h"

#include <cuda_runtime_api.h>

#include <mutex>
#include <vector>

#include "../error.h"
#include "stream.h"

namespace fastconv::cuda {
namespace {

void must(cudaError_t error, const char* call) {
  check(error == cudaSuccess, "fastconv: ", call, ": ", cudaGetErrorString(error));
}

int attribute(cudaDeviceAttr name, int device) {
  int value = 0;
  must(cudaDeviceGetAttribute(&value, name, device), "cudaDeviceGetAttribute");
  return value;
}

Device facts_of(int device) {
  static std::mutex lock;
  static std::vector<Device> known;
  const std::lock_guard<std::mutex> guard(lock);
  if (known.size() <= size_t(device)) known.resize(device + 1);
  Device& d = known[device];
  if (d.arch == 0)
    d = {10 * attribute(cudaDevAttrComputeCapabilityMajor, device) +
             attribute(cudaDevAttrComputeCapabilityMinor, device),
         attribute(cudaDevAttrMultiProcessorCount, device),
         attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, device)};
  return d;
}

}  // namespace

OnDevice::OnDevice(int index) {
  place_.stream = current_stream(index);
  must(cudaGetDevice(&before_), "cudaGetDevice");
  place_.gpu = facts_of(index);
  check(place_.gpu.arch >= 80, "fastconv: the CUDA kernels need compute capability 8.0, device ",
        index, " has ", place_.gpu.arch / 10, ".", place_.gpu.arch % 10,
        "; the Triton backend may run there");
  changed_ = before_ != index;
  if (changed_) must(cudaSetDevice(index), "cudaSetDevice");
}

OnDevice::~OnDevice() {
  if (changed_) cudaSetDevice(before_);  // which would make a context where there is none
}

}  // namespace fastconv::cuda
