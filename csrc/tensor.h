// Tensors at the torch side of an op: views, outputs and threads over torch's stable ABI.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <string.h>

#include <optional>

#include "error.h"
#include "blocks.h"
#include "pages.h"
#include "problem.h"

namespace fastconv {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline DType dtype_of(const Tensor& t, const char* op) {
  int32_t code;
  aoti_torch_get_dtype(t.get(), &code);
  if (code == aoti_torch_dtype_float32()) return DType::f32;
  if (code == aoti_torch_dtype_float64()) return DType::f64;
  if (code == aoti_torch_dtype_bfloat16()) return DType::bf16;
  if (code == aoti_torch_dtype_float16()) return DType::f16;
  fail(op,
       ": expected a float32, float64, bfloat16 or float16 tensor; other dtypes are not supported");
}

inline const char* name_of(DType d) {
  const char* names[] = {"float32", "float64", "bfloat16", "float16"};
  return names[static_cast<int>(d)];
}

inline int32_t torch_dtype(DType d) {
  switch (d) {
    case DType::f32: return aoti_torch_dtype_float32();
    case DType::f64: return aoti_torch_dtype_float64();
    case DType::bf16: return aoti_torch_dtype_bfloat16();
    default: return aoti_torch_dtype_float16();
  }
}

// What an op reads of a tensor, whoever lends it: torch's stable ABI, or Python (eager.cpp). Sizes
// and strides are the tensor's own.
struct Operand {
  void* data;
  int64_t dims;
  const int64_t *size, *stride;
  DType dtype;
  int32_t device_type, device_index;
};

inline Operand operand_of(const Tensor& t, const char* op) {
  Operand o = {const_cast<void*>(t.const_data_ptr()),
               t.dim(),
               t.sizes().data(),
               t.strides().data(),
               dtype_of(t, op),
               0,
               0};
  aoti_torch_get_device_type(t.get(), &o.device_type);
  aoti_torch_get_device_index(t.get(), &o.device_index);
  return o;
}

inline View view_of(const Operand& o, const char* op, const char* argument) {
  check(o.dims == 4, op, ": expected ", argument, " to have 4 dimensions, got ", o.dims);
  View v;
  v.data = o.data;
  for (int i = 0; i < 4; ++i) v.size[i] = o.size[i], v.stride[i] = o.stride[i];
  return v;
}

inline View view_of(const Tensor& t, const char* op, const char* argument) {
  check(t.dim() == 4, op, ": expected ", argument, " to have 4 dimensions, got ", t.dim());
  View v;
  v.data = const_cast<void*>(t.const_data_ptr());
  const auto sizes = t.sizes(), strides = t.strides();
  for (int i = 0; i < 4; ++i) v.size[i] = sizes[i], v.stride[i] = strides[i];
  return v;
}

// torch's rule for "this tensor is channels_last": strides in the order C, W, H, N. An ambiguous
// one (a single channel, say) counts as contiguous where its batch stride equals its channel's.
inline bool channels_last(const View& v) {
  if (v.stride[1] == 0) return false;
  int64_t least = 0;
  for (int d : {1, 3, 2, 0}) {
    if (v.size[d] == 0 || v.stride[d] < least) return false;
    if (d == 0 && least == v.stride[1]) return false;
    least = v.stride[d] * (v.size[d] > 1 ? v.size[d] : 1);
  }
  return true;
}

inline void dense_strides(const int64_t size[4], bool channels_last, int64_t stride[4]) {
  const int nchw[] = {3, 2, 1, 0}, nhwc[] = {1, 3, 2, 0};
  int64_t next = 1;
  for (int d : {0, 1, 2, 3}) {
    const int axis = (channels_last ? nhwc : nchw)[d];
    stride[axis] = next;
    next *= size[axis] > 1 ? size[axis] : 1;
  }
}

inline void check_size(const char* op, const char* name, const View& v, const int64_t size[4]) {
  for (int i = 0; i < 4; ++i)
    check(v.size[i] == size[i], op, ": ", name, " of size ", shape(v.size, 4), " must have size ",
          shape(size, 4));
}

inline Activation activation_of(int64_t code, const char* op) {
  check(code >= 0 && code <= 2, op, ": activation code must be 0, 1 or 2, got ", code);
  return static_cast<Activation>(code);
}

// Tests fill every output and scratch buffer with NaN (bytes of ones) before a kernel runs.
inline bool poisoned = false;

inline size_t result_bytes(int64_t elements, int32_t dtype) {
  const bool byte = dtype == aoti_torch_dtype_uint8();
  const bool half = dtype == aoti_torch_dtype_bfloat16() || dtype == aoti_torch_dtype_float16();
  const bool word = dtype == aoti_torch_dtype_float32() || dtype == aoti_torch_dtype_int32();
  return elements * (byte ? 1 : half ? 2 : word ? 4 : 8);
}

// Memory of an output on the CPU, not yet written.
inline void prepare_output(void* data, int64_t elements, int32_t dtype) {
  if (!poisoned && elements < kLargeResult / 8) return;
  const size_t bytes = result_bytes(elements, dtype);
  want_huge_pages_of_result(data, bytes);
  if (poisoned && elements) memset(data, 0xff, bytes);
}

// An uninitialised tensor, dense; 0.3 us, where stable::new_empty takes 1.2.
inline Tensor empty(const Tensor& like, int64_t dims, const int64_t* size, const int64_t* stride,
                    int32_t dtype) {
  int32_t device_type, device_index;
  aoti_torch_get_device_type(like.get(), &device_type);
  aoti_torch_get_device_index(like.get(), &device_index);
  const bool cpu = device_type == aoti_torch_device_type_cpu();
  int64_t elements = 1;
  for (int64_t i = 0; i < dims; ++i) elements *= size[i];
  const size_t bytes = result_bytes(elements, dtype);
  AtenTensorHandle handle;
  if (!(cpu && bytes > kKeptResult && tensor_in_block(dims, size, stride, dtype, bytes, &handle)) &&
      aoti_torch_empty_strided(dims, size, stride, dtype, device_type, device_index, &handle))
    fail("fastconv: torch could not make a tensor of size ", shape(size, static_cast<int>(dims)));
  const Tensor output(handle);
  if (cpu) prepare_output(output.mutable_data_ptr(), elements, dtype);
  return output;
}

// A dense one of 4 dimensions.
inline Tensor empty4(const Tensor& like, const int64_t size[4], bool channels_last, int32_t dtype) {
  int64_t stride[4];
  dense_strides(size, channels_last, stride);
  return empty(like, 4, size, stride, dtype);
}

inline Tensor empty4(const Tensor& like, const int64_t size[4], bool channels_last, DType dtype) {
  return empty4(like, size, channels_last, torch_dtype(dtype));
}

inline void check_same(const Operand& a, const char* name_a, const Operand& b, const char* name_b,
                       const char* op) {
  check(a.dtype == b.dtype, op, ": ", name_a, " is ", name_of(a.dtype), " but ", name_b, " is ",
        name_of(b.dtype), "; they must have the same dtype");
  check(a.device_type == b.device_type && a.device_index == b.device_index, op, ": ", name_a,
        " and ", name_b, " are on different devices");
}

// Of tensors of any dtypes.
inline void check_same_device(const Tensor& a, const char* name_a, const Tensor& b,
                              const char* name_b, const char* op) {
  int32_t type_a, type_b, index_a, index_b;
  aoti_torch_get_device_type(a.get(), &type_a), aoti_torch_get_device_index(a.get(), &index_a);
  aoti_torch_get_device_type(b.get(), &type_b), aoti_torch_get_device_index(b.get(), &index_b);
  check(type_a == type_b && index_a == index_b, op, ": ", name_a, " and ", name_b,
        " are on different devices");
}

inline void check_same(const Tensor& a, const char* name_a, const Tensor& b, const char* name_b,
                       const char* op) {
  check_same(operand_of(a, op), name_a, operand_of(b, op), name_b, op);
}

#ifdef __SANITIZE_THREAD__
// ThreadSanitizer does not see where OpenMP's threads begin and end a region: told here, it reports
// tasks that race with each other, and not a region with the next.
extern "C" void __tsan_acquire(void*), __tsan_release(void*);
template <class F>
struct Region {
  const F& f;
  char &forked, &joined;
  __attribute__((no_sanitize_thread)) void operator()(int64_t begin, int64_t end) const {
    __tsan_acquire(&forked);
    f(begin, end);
    __tsan_release(&joined);
  }
};
template <class F>
void parallel_region(int64_t n, const F& f) {
  char forked, joined;
  __tsan_release(&forked);
  torch::stable::parallel_for(0, n, 1, Region<F>{f, forked, joined});
  __tsan_acquire(&joined);
}
#else
template <class F>
void parallel_region(int64_t n, const F& f) {
  torch::stable::parallel_for(0, n, 1, f);
}
#endif

// Work that one thread does as fast as several: about 50 us.
constexpr double kSerialFlops = 2e6;

// Tasks [0, n) in one parallel region.
template <class F>
void parallel_tasks(int64_t n, double flops, const F& f) {
  if (n <= 0) return;
  if (n == 1 || flops < kSerialFlops)
    f(int64_t{0}, n);
  else
    parallel_region(n, f);
}

}  // namespace fastconv
