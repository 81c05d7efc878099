// What became of a launch; read by code with and without the CUDA toolkit.
#pragma once

namespace fastconv::cuda {

// error is null where it went well. Both strings outlive the call.
struct Status {
  const char* kernel;
  const char* error;
};

}  // namespace fastconv::cuda
