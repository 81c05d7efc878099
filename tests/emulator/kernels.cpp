// The product's launchers and tile table, for ctypes (kernels.py).
#include "../../csrc/cuda/conv1x1.h"

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

EXPORT int32_t tiles(int32_t math) { return tile_count(Math(math)); }
EXPORT void tile(int32_t math, int32_t index, Tile* out) { *out = tile_of(Math(math), index); }
EXPORT void choose(const ConvProblem* problem, int32_t math, const Device* gpu, TileChoice* out) {
  *out = choose_tile(*problem, Math(math), *gpu);
}

}  // namespace fastconv::cuda
