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

// NOTE drivers need not tell clocks: 0 where this one does not.
double told(cudaDeviceAttr name, int device) {
  int value = 0;
  if (cudaDeviceGetAttribute(&value, name, device) == cudaSuccess) return value;
  cudaGetLastError();  // or the next launch would report it
  return 0;
}

// Clock and bandwidth of the memory, which moves data twice a cycle (H100: 2.619 GHz x 5120 bits,
// 3.35 TB/s). Where the driver does not tell, what A100, H100 and, with bandwidth that grows with
// the multiprocessors, GeForce cards have by their datasheets.
void add_rates(Device& d, int device) {
  d.clock = float(1e3 * told(cudaDevAttrClockRate, device));
  d.bandwidth = float(2e3 * told(cudaDevAttrMemoryClockRate, device) *
                      told(cudaDevAttrGlobalMemoryBusWidth, device) / 8);
  if (d.clock <= 0) d.clock = d.arch == 80 ? 1.41e9f : d.arch == 90 ? 1.83e9f : 2e9f;
  if (d.bandwidth <= 0) d.bandwidth = d.sms * (d.arch == 80 ? 19e9f : d.arch >= 90 ? 25e9f : 9e9f);
}

Device facts_of(int device) {
  static std::mutex lock;
  static std::vector<Device> known;
  const std::lock_guard<std::mutex> guard(lock);
  if (known.size() <= size_t(device)) known.resize(device + 1);
  Device& d = known[device];
  if (d.arch == 0) {
    d = {10 * attribute(cudaDevAttrComputeCapabilityMajor, device) +
             attribute(cudaDevAttrComputeCapabilityMinor, device),
         attribute(cudaDevAttrMultiProcessorCount, device),
         attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, device),
         attribute(cudaDevAttrL2CacheSize, device),
         0,
         0};
    add_rates(d, device);
  }
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
