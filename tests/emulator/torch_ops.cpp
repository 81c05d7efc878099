// The torch side of the CUDA ops for CPU tensors, over the emulator: torch.ops.fastconv_emulated.
#include "../../csrc/plan.h"
#include "../../csrc/schemas.h"
#include "../../csrc/cuda/place.h"

namespace fastconv {

STABLE_TORCH_LIBRARY(fastconv_emulated, m) { define_ops(m); }

namespace cuda {

static Device emulated = {90, 4, 227 << 10};

OnDevice::OnDevice(int) : place_{nullptr, emulated}, before_(0) {}
OnDevice::~OnDevice() {}

}  // namespace cuda
}  // namespace fastconv

#define EXPORT extern "C" __attribute__((visibility("default")))

// Outputs of the emulated ops are filled with NaN first, or not.
EXPORT void emulated_poison(int on) { fastconv::poisoned = on; }

// The GPU that the choice of tiles believes in.
EXPORT void emulated_gpu(int arch, int sms, int shared_per_sm) {
  fastconv::cuda::emulated = {arch, sms, shared_per_sm};
}

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
