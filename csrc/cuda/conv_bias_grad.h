// The bias gradient, alone or in the pass that makes an activation's gradient; for callers that are
// not compiled by nvcc.
#pragma once
#include "grad_sums.h"

namespace fastconv::cuda {

// db[k] = sum over n, p, q of dz[n, k, p, q], in parts [splits][K] for add_parts. dz is dy, or
// where y is given the activation's gradient, dy at the output y, which is written too.
struct BiasGradParams {
  View dy;
  View y, dz;  // of dy's size; both null, or neither
  Activation activation;
  void* partial;  // float (float64: double)
  PixelSplit split;
  DType dtype;
};

// A block's channels fill 128 bytes.
inline PixelSplit bias_split(const View& dy, int64_t bytes, int64_t sms) {
  const int64_t channels = 128 / bytes;
  return split_pixels(dy.size[0] * dy.size[2] * dy.size[3], (dy.size[1] + channels - 1) / channels,
                      sms, 256);
}

Status launch_conv_bias_grad(const BiasGradParams& params, Stream stream);

}  // namespace fastconv::cuda
