#include "../conv_stem.cuh"

namespace fastconv::cuda {

Status launch_conv_stem(const ConvParams& params, Math math, int32_t most_blocks, Stream stream) {
  switch (math) {
    case Math::f16: return launch_stem<Math::f16>(params, most_blocks, stream);
    case Math::bf16: return launch_stem<Math::bf16>(params, most_blocks, stream);
    case Math::tf32: return launch_stem<Math::tf32>(params, most_blocks, stream);
    default: return launch_stem<Math::f32>(params, most_blocks, stream);
  }
}

}  // namespace fastconv::cuda
