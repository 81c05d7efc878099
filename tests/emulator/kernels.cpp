// The product's launchers and tile table, for ctypes (kernels.py).
#include "../../csrc/cuda/conv1x1.h"
#include "../../csrc/cuda/conv_input_grad.h"
#include "../../csrc/cuda/conv_weight_grad.h"
#include "../../csrc/cuda/grad_sums.h"
#include "../../csrc/cuda/known_tiles.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace fastconv::cuda {

EXPORT const char* conv_implicit_gemm(const ConvProblem* problem, const ConvOperands* at,
                                      int32_t math, int32_t tile, int32_t splits,
                                      int32_t split_depth) {
  return launch_conv_implicit_gemm(make_conv_params(*problem, *at, splits, split_depth), Math(math),
                                   tile, nullptr)
      .error;
}
EXPORT const char* conv1x1(const ConvProblem* problem, const ConvOperands* at, int32_t math,
                           int32_t tile, int32_t splits, int32_t split_depth) {
  return launch_conv1x1(make_conv_params(*problem, *at, splits, split_depth), Math(math), tile,
                        nullptr)
      .error;
}
EXPORT const char* conv_implicit_gemm_refusal(const ConvProblem* problem, int32_t math) {
  return implicit_gemm_refusal(*problem, Math(math));
}
EXPORT const char* conv1x1_refusal(const ConvProblem* problem, int32_t math) {
  return cuda::conv1x1_refusal(*problem, Math(math));
}

// x is dy and y is dx.
EXPORT const char* conv_input_grad(const ConvProblem* problem, const ConvOperands* at, int32_t math,
                                   int32_t tile, int32_t splits, int32_t split_depth,
                                   int32_t pointwise) {
  PhaseParams all;
  const int phases = make_phase_params(*problem, *at, splits, split_depth, &all);
  return launch_conv_input_grad(all, phases, pointwise, Math(math), tile, nullptr).error;
}
// y is dy and w is dw, K R S C; bias takes the sums of dy, [splits][K], where it is given.
EXPORT const char* conv_weight_grad(const ConvProblem* problem, const ConvOperands* at,
                                    int32_t math, int32_t tile, int32_t splits, int32_t split_depth,
                                    int32_t pointwise) {
  const ConvParams params = make_conv_params(*problem, *at, splits, split_depth);
  float* bias = static_cast<float*>(const_cast<void*>(at->bias));
  const Status status = launch_conv_weight_grad(params, bias, pointwise, Math(math), tile, nullptr);
  if (status.error) return status.error;
  const int64_t K = problem->K, C = problem->C / problem->G, R = problem->R, S = problem->S;
  const View dw = {const_cast<void*>(at->w), {K, C, R, S}, {R * S * C, 1, S * C, C}};
  GradSums sums = {at->partial, dw, splits, problem->dtype};
  sums.mend = Math(math) == Math::f32, sums.conv = params;
  return launch_add_parts(sums, nullptr).error;
}

EXPORT const char* add_parts(const void* partial, const View* dw, int64_t splits, int32_t dtype) {
  return launch_add_parts({partial, *dw, splits, DType(dtype)}, nullptr).error;
}

// Of the input gradient: the depth of each stride phase in the order of the grid, and its pixels.
EXPORT int32_t phases(const ConvProblem* problem, int32_t* depths, int32_t* pixels) {
  PhaseParams all;
  const int count = make_phase_params(*problem, {}, 1, 0, &all);
  for (int i = 0; i < count; ++i) depths[i] = all.phase[i].depth, pixels[i] = all.phase[i].M;
  return count;
}

EXPORT int32_t tiles(int32_t math, int32_t d) { return tile_count(Math(math), Direction(d)); }
EXPORT void tile(int32_t math, int32_t index, int32_t d, Tile* out) {
  *out = tile_of(Math(math), index, Direction(d));
}
// By the model of tile_choice.h.
EXPORT float cycles(const ConvProblem* problem, int32_t math, const Device* gpu, int32_t d,
                    int32_t tile, int32_t splits) {
  const Product p = product_of(*problem, Math(math), Direction(d));
  const Tile t = tile_of(p.math, tile, p.direction);
  const int64_t steps = (p.depth + t.bk - 1) / t.bk;
  float waves = 0;
  return tile_cycles(t, p, *gpu, placing_of(p, t, *gpu), splits, int((steps + splits - 1) / splits),
                     &waves);
}
EXPORT void choose(const ConvProblem* problem, int32_t math, const Device* gpu, int32_t d,
                   TileChoice* out) {
  *out = choose_tile(*problem, Math(math), *gpu, Direction(d));
}
EXPORT void known(const ConvProblem* problem, int32_t math, const Device* gpu, int32_t d,
                  TileChoice* out) {
  *out = known_tile(*problem, Math(math), *gpu, Direction(d));
}

}  // namespace fastconv::cuda
