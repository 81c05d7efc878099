// The emulator's conversions of whole arrays, for tests/test_emulator.py.
#include "../../csrc/cuda/ptx.cuh"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace fastconv::cuda {

// out[i] of the conversions, and of all 65536 halves and bf16.
EXPORT void toy_conversions(const float* in, int64_t n, uint16_t* halves, uint16_t* bf16s,
                            uint32_t* tf32s) {
  for (int64_t i = 0; i < n; ++i) {
    halves[i] = ptx::from_float<half>(in[i]).bits;
    bf16s[i] = ptx::from_float<bf16>(in[i]).bits;
    tf32s[i] = ptx::cvt_rna_tf32(in[i]);
  }
}
EXPORT void toy_widen(float* halves, float* bf16s) {
  for (int i = 0; i < 65536; ++i) {
    halves[i] = ptx::to_float(half{uint16_t(i)});
    bf16s[i] = ptx::to_float(bf16{uint16_t(i)});
  }
}

}  // namespace fastconv::cuda
