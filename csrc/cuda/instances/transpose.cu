#include "../transpose.cuh"

namespace fastconv::cuda {

Status launch_transpose(const TransposeParams& params, Stream stream) {
  switch (params.element_bytes) {
    case 2: return launch_transpose<uint16_t>(params, stream);
    case 4: return launch_transpose<uint32_t>(params, stream);
    case 8: return launch_transpose<uint64_t>(params, stream);
    default: return {"transpose", "elements must have 2, 4 or 8 bytes"};
  }
}

}  // namespace fastconv::cuda
