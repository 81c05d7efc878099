// What the torch side of every CUDA op shares: where it is registered, errors of launches, layouts.
//
// The tests' emulator compiles these files too, for CPU tensors in a library of its own.
#pragma once
#include "../tensor.h"
#include "place.h"
#include "status.h"
#include "transpose.h"

#ifndef FASTCONV_CUDA_LIBRARY
#define FASTCONV_CUDA_LIBRARY fastconv
#define FASTCONV_CUDA_KEY CUDA
#endif

namespace fastconv::cuda {

inline int device_of(const Tensor& t) {
  int32_t index;
  aoti_torch_get_device_index(t.get(), &index);
  return index;
}

// `problem` says in words what was launched.
template <class... Parts>
void check_launch(const Status& status, const Parts&... problem) {
  check(!status.error, "fastconv: kernel ", status.kernel, " failed: ", status.error, ", for ",
        problem...);
}

inline int64_t element_bytes(DType d) { return d == DType::f64 ? 8 : d == DType::f32 ? 4 : 2; }

// Elements from one pixel to the next where a tensor is rows of channels (N H W C in that order
// without gaps between pixels' rows, 16-byte aligned throughout), else 0.
inline int64_t pixel_stride(const View& v, int64_t element) {
  int64_t pixel = v.size[1];  // of a single pixel
  for (int axis : {0, 2, 3})
    if (v.size[axis] > 1) pixel = v.stride[axis];
  const int64_t line = pixel * v.size[3], image = line * v.size[2];
  const bool rows = (v.size[1] == 1 || v.stride[1] == 1) && pixel >= v.size[1] &&
                    (v.size[3] == 1 || v.stride[3] == pixel) &&
                    (v.size[2] == 1 || v.stride[2] == line) &&
                    (v.size[0] == 1 || v.stride[0] == image);
  const bool aligned = pixel * element % 16 == 0 && reinterpret_cast<uintptr_t>(v.data) % 16 == 0;
  return rows && aligned ? pixel : 0;
}

// A tensor as rows of channels: itself where it is, else a copy; `gaps` between pixels may be
// forbidden. `keep` owns the copy.
struct Pixels {
  Tensor keep;
  View view;
  int64_t pixel;
};

inline Pixels as_pixels(const Tensor& t, const View& v, DType dtype, bool gaps, void* stream) {
  const int64_t pixel = pixel_stride(v, element_bytes(dtype));
  if (pixel && (gaps || pixel == v.size[1])) return {t, v, pixel};
  const Tensor copy = empty4(t, v.size, true, dtype);
  const View to = view_of(copy, "fastconv", "copy");
  check_launch(launch_transpose({v, to, dtype}, stream), "a tensor of size ", shape(v.size, 4));
  return {copy, to, v.size[1]};
}

}  // namespace fastconv::cuda
