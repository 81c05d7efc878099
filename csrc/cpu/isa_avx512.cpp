#define FASTCONV_NS isa_avx512
#define FASTCONV_BYTES 64
#define FASTCONV_ISA_NAME "avx512"
#define FASTCONV_TABLE kernels_avx512
#include "isa.inl"
