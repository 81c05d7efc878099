// torch's current stream of a device.
#pragma once

namespace fastconv::cuda {

// Throws where this torch was built without CUDA.
void* current_stream(int device);

}  // namespace fastconv::cuda
