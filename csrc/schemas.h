// Schemas. Each op is defined twice: the public one, whose gradient Python registers on the
// Autograd key, and a raw twin that falls through it (eager code and compiled graphs call the
// twin). Scalars only: lists cost 1 us each to convert, strings leak on some torch versions.
#pragma once
#include <string>

#include "tensor.h"

namespace fastconv {

#define CONV_WINDOW                                                                            \
  "SymInt stride_h, SymInt stride_w, SymInt pad_t, SymInt pad_l, SymInt pad_b, SymInt pad_r, " \
  "SymInt dil_h, SymInt dil_w, SymInt groups"

#define POOL_WINDOW \
  "SymInt kernel_h, SymInt kernel_w, SymInt stride_h, SymInt stride_w, SymInt pad_h, SymInt pad_w"
#define MAX_WINDOW POOL_WINDOW ", SymInt dil_h, SymInt dil_w"
#define AVG_RULE ", int ceil_mode, int count_include_pad, SymInt divisor_override"

struct Schema {
  const char *name, *signature;
};

inline const Schema kSchemas[] = {
    {"conv2d", "(Tensor input, Tensor weight, Tensor? bias, Tensor? residual, " CONV_WINDOW
               ", int activation, int precision) -> Tensor"},
    {"conv2d_input_grad", "(Tensor grad, Tensor weight, SymInt height, SymInt width, " CONV_WINDOW
                          ", int precision) -> Tensor"},
    {"conv2d_weight_grad",
     "(Tensor input, Tensor grad, SymInt kernel_h, SymInt kernel_w, " CONV_WINDOW
     ", int precision) -> Tensor"},
    {"conv2d_bias_grad", "(Tensor grad) -> Tensor"},
    // Both in as few passes over grad as a backend can; of the sum before an activation, whose
    // result `output` is.
    {"conv2d_weight_bias_grad",
     "(Tensor input, Tensor grad, SymInt kernel_h, SymInt kernel_w, " CONV_WINDOW
     ", int precision, Tensor? output, int activation) -> (Tensor, Tensor)"},
    {"max_pool2d", "(Tensor input, " MAX_WINDOW ", int ceil_mode) -> Tensor"},
    {"max_pool2d_window", "(Tensor input, " MAX_WINDOW ", int ceil_mode) -> (Tensor, Tensor)"},
    {"max_pool2d_with_indices",
     "(Tensor input, " MAX_WINDOW ", int ceil_mode) -> (Tensor, Tensor)"},
    {"max_pool2d_grad",
     "(Tensor grad, Tensor index, SymInt height, SymInt width, " MAX_WINDOW ") -> Tensor"},
    {"max_pool2d_gather",
     "(Tensor input, Tensor index, SymInt height, SymInt width, " MAX_WINDOW ") -> Tensor"},
    {"avg_pool2d", "(Tensor input, " POOL_WINDOW AVG_RULE ") -> Tensor"},
    {"avg_pool2d_grad",
     "(Tensor grad, SymInt height, SymInt width, " POOL_WINDOW AVG_RULE ") -> Tensor"},
    {"adaptive_avg_pool2d", "(Tensor input, SymInt out_h, SymInt out_w) -> Tensor"},
    {"adaptive_avg_pool2d_grad", "(Tensor grad, SymInt height, SymInt width) -> Tensor"},
    {"residual_add", "(Tensor input, Tensor shortcut, int activation) -> Tensor"},
    {"activation_grad", "(Tensor grad, Tensor output, int activation) -> Tensor"},
    // The same, and its sum over n, p and q.
    {"activation_bias_grad", "(Tensor grad, Tensor output, int activation) -> (Tensor, Tensor)"},
};

// Of the CPU, for layers whose weights do not change: packed by the one, used by the other. The
// window is in the packed tensor, as each number among the arguments costs 0.2 us; the output's
// size is for those who do not see its values.
inline const Schema kPackedSchemas[] = {
    {"conv2d_pack", "(Tensor input, Tensor weight, " CONV_WINDOW ") -> Tensor"},
    {"conv2d_packed",
     "(Tensor input, Tensor weight, Tensor packed, Tensor? bias, Tensor? residual, "
     "SymInt height, SymInt width, int activation) -> Tensor"},
};

template <class Library>
void define_ops(Library& m) {
  for (const Schema& s : kSchemas) {
    m.def((std::string(s.name) + s.signature).c_str());
    m.def((std::string(s.name) + "_raw" + s.signature).c_str());
  }
}

}  // namespace fastconv
