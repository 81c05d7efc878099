// Launcher of the change of layout between N C H W and N H W C, for callers that are not compiled
// by nvcc.
#pragma once
#include <stdint.h>

#include "status.h"

namespace fastconv::cuda {

// to[image][column][row] = from[image][row][column]; strides in elements, rows without gaps.
struct TransposeParams {
  const void* from;
  void* to;
  int64_t images, rows, columns;
  int64_t from_image, from_row, to_image, to_row;
  int32_t element_bytes;  // 2, 4 or 8
};

// Of dense tensors of N images of C channels and `pixels` pixels.
inline TransposeParams to_channels_last(const void* from, void* to, int64_t N, int64_t C,
                                        int64_t pixels, int32_t element_bytes) {
  return {from, to, N, C, pixels, C * pixels, pixels, C * pixels, C, element_bytes};
}
inline TransposeParams to_channels_first(const void* from, void* to, int64_t N, int64_t C,
                                         int64_t pixels, int32_t element_bytes) {
  return {from, to, N, pixels, C, C * pixels, C, C * pixels, pixels, element_bytes};
}

Status launch_transpose(const TransposeParams& params, Stream stream);

}  // namespace fastconv::cuda
