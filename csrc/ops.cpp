#include "schemas.h"

namespace fastconv {

STABLE_TORCH_LIBRARY(fastconv, m) { define_ops(m); }

}  // namespace fastconv
