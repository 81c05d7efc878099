// Chooses the instance of an arithmetic; each is compiled in a file of its own, in instances/.
#pragma once
#include "dialect.cuh"
#include "tiles.h"

namespace fastconv::cuda {

// Defined in gemm_launch.cuh.
template <Math kMath, bool kPointwise>
Status launch_gemm(const ConvParams& params, int tile, Stream stream);

template <bool kPointwise>
Status launch_math(const ConvParams& params, Math math, int tile, Stream stream) {
  switch (math) {
    case Math::f16: return launch_gemm<Math::f16, kPointwise>(params, tile, stream);
    case Math::bf16: return launch_gemm<Math::bf16, kPointwise>(params, tile, stream);
    case Math::tf32: return launch_gemm<Math::tf32, kPointwise>(params, tile, stream);
    default: return launch_gemm<Math::f32, kPointwise>(params, tile, stream);
  }
}

}  // namespace fastconv::cuda
