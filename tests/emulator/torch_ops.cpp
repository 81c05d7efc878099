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
