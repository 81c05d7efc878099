// Where an op runs: a device's stream, and what the choice of tiles asks of the GPU.
#pragma once
#include "tiles.h"

namespace fastconv::cuda {

struct Place {
  void* stream;  // torch's current one of the device
  Device gpu;
};

// Makes a device current while it lives. NOTE the CUDA runtime is linked statically and does not
// follow torch's current device.
class OnDevice {
 public:
  explicit OnDevice(int index);
  ~OnDevice();
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;
  const Place& place() const { return place_; }

 private:
  Place place_;
  int before_;
  bool changed_;
};

}  // namespace fastconv::cuda
