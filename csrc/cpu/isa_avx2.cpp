#define FASTCONV_NS isa_avx2
#define FASTCONV_BYTES 32
#define FASTCONV_ISA_NAME "avx2"
#define FASTCONV_TABLE kernels_avx2
#include "isa.inl"
