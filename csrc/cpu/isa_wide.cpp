#define FASTCONV_NS isa_wide
#define FASTCONV_BYTES 64
#define FASTCONV_ISA_NAME "avx512-on-avx2"
#define FASTCONV_TABLE kernels_wide
#include "isa.inl"
