// The product's launchers of the kernels outside the tensor-core mainloop, for ctypes (simt.py).
#include "../../csrc/cuda/add.h"
#include "../../csrc/cuda/conv_depthwise.h"
#include "../../csrc/cuda/conv_direct.h"
#include "../../csrc/cuda/conv_stem.h"
#include "../../csrc/cuda/dialect.cuh"
#include "../../csrc/cuda/pool.h"
#include "../../csrc/cuda/transpose.h"
#include "../../csrc/pool_problem.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace fastconv::cuda {

EXPORT const char* conv_direct(const DirectParams* params) {
  return launch_conv_direct(*params, nullptr).error;
}
EXPORT const char* conv_depthwise(const ConvProblem* problem, const ConvOperands* at) {
  if (const char* refusal = depthwise_refusal(*problem)) return refusal;
  return launch_conv_depthwise(make_conv_params(*problem, *at, 1, 0), problem->dtype, nullptr)
      .error;
}
EXPORT const char* conv_stem(const ConvProblem* problem, const ConvOperands* at, int32_t math,
                             int32_t most_blocks) {
  if (const char* refusal = stem_refusal(*problem, Math(math))) return refusal;
  return launch_conv_stem(make_conv_params(*problem, *at, 1, 0), Math(math), most_blocks, nullptr)
      .error;
}

EXPORT void pool_problem(const int64_t size[4], const PoolSettings* settings, int32_t dtype,
                         PoolProblem* out) {
  *out = make_pool_problem("pool", size, *settings, DType(dtype));
}
EXPORT void adaptive_problem(const int64_t size[4], int64_t out_h, int64_t out_w, int32_t dtype,
                             PoolProblem* out) {
  *out = make_adaptive_problem("pool", size, out_h, out_w, DType(dtype));
}
EXPORT const char* max_pool(const PoolJob* params) {
  return launch_max_pool(*params, nullptr).error;
}
EXPORT const char* avg_pool(const PoolJob* params) {
  return launch_avg_pool(*params, nullptr).error;
}
EXPORT const char* max_pool_grad(const PoolJob* params) {
  return launch_max_pool_grad(*params, nullptr).error;
}
EXPORT const char* max_pool_gather(const PoolJob* params) {
  return launch_max_pool_gather(*params, nullptr).error;
}
EXPORT const char* avg_pool_grad(const PoolJob* params) {
  return launch_avg_pool_grad(*params, nullptr).error;
}
EXPORT const char* add(const PairJob* job) { return launch_add(*job, nullptr).error; }
EXPORT const char* transpose(const void* from, void* to, int64_t N, int64_t C, int64_t pixels,
                             int32_t element_bytes, int32_t last) {
  const auto make = last ? to_channels_last : to_channels_first;
  return launch_transpose(make(from, to, N, C, pixels, element_bytes), nullptr).error;
}

}  // namespace fastconv::cuda
