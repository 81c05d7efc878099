#include "schemas.h"

namespace fastconv {

STABLE_TORCH_LIBRARY(fastconv, m) {
  define_ops(m);
  for (const Schema& s : kPackedSchemas) m.def((std::string(s.name) + s.signature).c_str());
}

}  // namespace fastconv
