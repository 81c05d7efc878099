#include "pixels.h"

#include "add.h"
#include "transpose.h"

namespace fastconv::cuda {

int64_t pixel_stride(const View& v) {
  int64_t pixel = v.size[1];  // of a single pixel
  for (int axis : {0, 2, 3})
    if (v.size[axis] > 1) pixel = v.stride[axis];
  const int64_t line = pixel * v.size[3], image = line * v.size[2];
  const bool rows = (v.size[1] == 1 || v.stride[1] == 1) && pixel >= v.size[1] &&
                    (v.size[3] == 1 || v.stride[3] == pixel) &&
                    (v.size[2] == 1 || v.stride[2] == line) &&
                    (v.size[0] == 1 || v.stride[0] == image);
  return rows ? pixel : 0;
}

namespace {

// Elements from one channel's plane to the next where pixels are dense within it, else 0. The
// stride of an axis of size 1 says nothing.
int64_t plane_stride(const View& v) {
  const bool dense =
      (v.size[3] == 1 || v.stride[3] == 1) && (v.size[2] == 1 || v.stride[2] == v.size[3]);
  return dense ? (v.size[1] == 1 ? v.size[2] * v.size[3] : v.stride[1]) : 0;
}

}  // namespace

View first_of(View v, const int64_t size[4]) {
  for (int axis : {0, 1}) v.size[axis] = size[axis];
  return v;
}

void copy_layout(const View& from, const View& to, DType dtype, Stream stream) {
  const int32_t element = int32_t(element_bytes(dtype));
  const int64_t N = from.size[0], C = from.size[1], pixels = from.size[2] * from.size[3];
  TransposeParams t = {from.data, to.data, N, 0, 0, from.stride[0], 0, to.stride[0], 0, element};
  Status status;
  if (plane_stride(from) && pixel_stride(to)) {
    t.rows = C, t.columns = pixels;
    t.from_row = plane_stride(from), t.to_row = pixel_stride(to);
    status = launch_transpose(t, stream);
  } else if (pixel_stride(from) && plane_stride(to)) {
    t.rows = pixels, t.columns = C;
    t.from_row = pixel_stride(from), t.to_row = plane_stride(to);
    status = launch_transpose(t, stream);
  } else {  // any strides: the gradient of no activation is a copy
    status =
        launch_add({from, from, to, dtype, Activation::none, true, false, N * C * pixels}, stream);
  }
  check_launch(status, "a copy of a tensor of size ", shape(from.size, 4));
}

Pixels as_pixels(const Tensor& t, const View& v, DType dtype, RowsWanted wanted, Stream stream) {
  const int64_t pixel = pixel_stride(v);
  const int64_t C = wanted.channels ? wanted.channels : v.size[1];
  const int64_t images = wanted.images ? wanted.images : v.size[0];
  const bool filled = C != v.size[1] || images != v.size[0];
  const bool aligned =
      pixel * element_bytes(dtype) % 16 == 0 && reinterpret_cast<uintptr_t>(v.data) % 16 == 0;
  if (!filled && pixel && (aligned || !wanted.aligned) && (pixel == C || !wanted.dense))
    return {t, v, pixel};
  const int64_t size[4] = {images, C, v.size[2], v.size[3]};
  Tensor copy = empty4(t, size, true, dtype);
  if (filled) torch::stable::zero_(copy);
  const View whole = view_of(copy, "fastconv", "copy");
  copy_layout(v, first_of(whole, v.size), dtype, stream);
  return {copy, whole, C};
}

}  // namespace fastconv::cuda
