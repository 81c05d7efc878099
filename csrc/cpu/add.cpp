// Residual add and the activation's gradient on the CPU.
#include "add.h"

namespace fastconv {

STABLE_TORCH_LIBRARY_IMPL(fastconv, CPU, m) { PairOps<CpuPairs>::register_on(m); }

}  // namespace fastconv
