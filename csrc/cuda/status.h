// What a launcher takes and returns, for callers that are not compiled by nvcc.
#pragma once

namespace fastconv::cuda {

using Stream = void*;  // cudaStream_t

// What became of a launch: error is null where it went well. Both strings outlive the call.
struct Status {
  const char* kernel;
  const char* error;
};

}  // namespace fastconv::cuda
