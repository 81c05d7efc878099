// Sums over pixels in parts: what a weight or bias gradient's kernel leaves, and the second pass
// that adds the parts in order. No CUDA header.
#pragma once
#include "conv_params.h"
#include "status.h"

namespace fastconv::cuda {

// An activation between a convolution and the dy given: what its gradient is taken at.
struct OutputMask {
  const void* y;  // the forward's output, rows of channels as dy; null where there is none
  int64_t pixel;
  Activation activation;
};

struct GradSums {
  const void* partial;  // [splits][K][R][S][C], float (float64: double)
  View dw;              // (K, C, R, S), C of a group, any strides
  int64_t splits;
  DType dtype;
  // Of 3xTF32: sums that are NaN are made again in float32, from the operands of conv_weight_grad.
  bool mend;
  ConvParams conv;
  OutputMask mask;
};

// How a sum over `pixels` is split, `step` pixels at a time: so many parts that `tiles` of them
// give four blocks to each of `sms` multiprocessors, none with fewer than 512 pixels. Counted, not
// measured.
struct PixelSplit {
  int64_t splits, pixels;  // of a part
};
inline PixelSplit split_pixels(int64_t pixels, int64_t tiles, int64_t sms, int64_t step) {
  const int64_t wanted = (4 * sms + tiles - 1) / tiles, most = pixels / 512;
  const int64_t splits = wanted < most ? wanted : most;
  if (splits <= 1) return {1, pixels < 1 ? 1 : pixels};
  const int64_t each = ((pixels + splits - 1) / splits + step - 1) / step * step;
  return {(pixels + each - 1) / each, each};
}

Status launch_add_parts(const GradSums& sums, Stream stream);

}  // namespace fastconv::cuda
