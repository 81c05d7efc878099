#define FASTCONV_NS isa_baseline
#define FASTCONV_BYTES 16
#define FASTCONV_ISA_NAME "baseline"
#define FASTCONV_TABLE kernels_baseline
#include "isa.inl"
