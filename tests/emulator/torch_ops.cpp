// The torch side of the CUDA ops for CPU tensors, over the emulator: torch.ops.fastconv_emulated.
#include "../../csrc/plan.h"
#include "../../csrc/schemas.h"
#include "../../csrc/cuda/conv_params.h"
#include "../../csrc/cuda/op.h"
#include "../../csrc/cuda/place.h"
#include "memory.h"

namespace fastconv {

STABLE_TORCH_LIBRARY(fastconv_emulated, m) { define_ops(m); }

namespace cuda {

// Multiprocessors of an H100, each with its share of the bandwidth.
static Device device_of(int arch, int sms, int shared_per_sm) {
  return {arch, sms, shared_per_sm, 50 << 20, 1.83e9f, 25e9f * sms};
}
static Device emulated = device_of(90, 4, 227 << 10);

OnDevice::OnDevice(int) : place_{nullptr, emulated}, before_(0), changed_(false) {}
OnDevice::~OnDevice() {}

}  // namespace cuda
}  // namespace fastconv

#define EXPORT extern "C" __attribute__((visibility("default")))

// The ops ask this for their outputs and scratch (TORCH_FLAGS): torch's memory, or, guarded, memory
// that ends or begins at a page that cannot be accessed, until emulated_release().
#undef aoti_torch_empty_strided
extern "C" AOTITorchError aoti_torch_empty_strided(int64_t, const int64_t*, const int64_t*, int32_t,
                                                   int32_t, int32_t, AtenTensorHandle*);
namespace {
enum Guard { kNone, kRight, kLeft } guard;
std::vector<void*> guarded;
}  // namespace
EXPORT AOTITorchError emulated_empty_strided(int64_t dims, const int64_t* size,
                                             const int64_t* stride, int32_t dtype, int32_t type,
                                             int32_t index, AtenTensorHandle* made) {
  if (guard == kNone) return aoti_torch_empty_strided(dims, size, stride, dtype, type, index, made);
  int64_t last = 0;  // the outputs and scratch are dense
  bool any = true;
  for (int64_t i = 0; i < dims; ++i) last += (size[i] - 1) * stride[i], any = any && size[i] > 0;
  const int64_t bytes = any ? (last + 1) * int64_t(aoti_torch_dtype_element_size(dtype)) : 0;
  void* data = emulator::allocate(bytes, guard == kRight, "output or scratch");
  if (!data) return AOTI_TORCH_FAILURE;
  guarded.push_back(data);
  return aoti_torch_create_tensor_from_blob(data, dims, size, stride, 0, dtype, type, index, made);
}
// 0: none, 1: behind the memory, 2: before it.
EXPORT void emulated_guard(int where) { guard = Guard(where); }
EXPORT void emulated_release() {
  for (void* data : guarded) emulator::release(data);
  guarded.clear();
}

// Outputs of the emulated ops are filled with NaN first, or not.
EXPORT void emulated_poison(int on) { fastconv::poisoned = on; }

// The GPU that the choice of tiles believes in.
EXPORT void emulated_gpu(int arch, int sms, int shared_per_sm) {
  fastconv::cuda::emulated = fastconv::cuda::device_of(arch, sms, shared_per_sm);
}

// From how many products on channels are filled up to whole chunks; 0: as on a GPU.
EXPORT void emulated_filling(double least) {
  static const double own = fastconv::cuda::least_filled_products;
  fastconv::cuda::least_filled_products = least > 0 ? least : own;
}

// Whether operands pass for a GPU's, where outputs depend on that.
EXPORT void emulated_taken_for_gpu(int on) { fastconv::cuda::taken_for_gpu = on; }

// Bit 0, 1, 2 of a planner row: it ran forward, as input gradient, as weight gradient.
EXPORT int emulated_row(int index, const char** name) {
  using namespace fastconv;
  if (size_t(index) >= plan_table().size()) return -1;
  const PlanRow& row = plan_table()[index];
  *name = row.backend == Backend::cuda ? row.name : nullptr;
  int ran = 0;
  for (int d = 0; d < 3; ++d) ran |= has_run(row, static_cast<Direction>(d)) << d;
  return ran;
}
