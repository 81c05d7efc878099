// Tensors as the kernels want them, rows of channels: themselves where they are, else copies.
#pragma once
#include "op.h"

namespace fastconv::cuda {

// Elements from one pixel to the next where a tensor is rows of channels (N H W C in that order
// without gaps between pixels' rows), else 0.
int64_t pixel_stride(const View& v);

// Copies into a tensor of another layout, one of the two being rows of channels without gaps.
void copy_layout(const View& from, const View& to, DType dtype, Stream stream);

// The first images and channels of a tensor, so many as `size` says.
View first_of(View v, const int64_t size[4]);

// What a kernel asks of an operand's rows besides their order.
struct RowsWanted {
  bool aligned;                      // to 16 bytes throughout
  bool dense;                        // no gaps between pixels
  int64_t channels = 0, images = 0;  // so many, those past the tensor's of zeros; 0: as it has
};

// A tensor as rows of channels: itself where it is, else a copy, which `keep` owns.
struct Pixels {
  Tensor keep;
  View view;
  int64_t pixel;
};

Pixels as_pixels(const Tensor& t, const View& v, DType dtype, RowsWanted wanted, Stream stream);

}  // namespace fastconv::cuda
