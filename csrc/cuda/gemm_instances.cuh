// Chooses the instance of an arithmetic; each is compiled in a file of its own, in instances/.
#pragma once
#include <type_traits>

#include "conv_grad_params.h"
#include "dialect.cuh"
#include "tiles.h"

namespace fastconv::cuda {

// Defined in gemm_launch.cuh.
template <Math kMath, bool kPointwise>
Status launch_gemm(const ConvParams& params, int tile, Stream stream);

template <Math kMath, bool kPointwise>
Status launch_input_grad(const PhaseParams& all, int phases, int tile, Stream stream);

template <Math kMath, bool kPointwise>
Status launch_weight_grad(const ConvParams& params, float* bias, int tile, Stream stream);

// f with the arithmetic as a constant.
template <class F>
Status with_math(Math math, const F& f) {
  switch (math) {
    case Math::f16: return f(std::integral_constant<Math, Math::f16>{});
    case Math::bf16: return f(std::integral_constant<Math, Math::bf16>{});
    case Math::tf32: return f(std::integral_constant<Math, Math::tf32>{});
    default: return f(std::integral_constant<Math, Math::f32>{});
  }
}

}  // namespace fastconv::cuda
