// All kernels of one ISA, as a table. An ISA file defines FASTCONV_NS, FASTCONV_BYTES and
// FASTCONV_ISA_NAME, includes this and nothing else.
#include "blocking.h"
#include "grouped_blocking.h"
#include "winograd.h"
#include "jobs.h"
#include "simd.h"
#include "half.h"
// in this order:
#include "epilogue.h"
#include "tile.inl"
#include "rows.inl"
#include "pack.inl"
#include "slab.inl"
#include "couples.inl"
#include "store.inl"
#include "conv_direct.inl"
#include "row_tile.inl"
#include "conv_rows.inl"
#include "conv_dots.inl"
#include "conv_axpy.inl"
#include "conv_few.inl"
#include "winograd_axis.inl"
#include "winograd_tile.inl"
#include "winograd_input.inl"
#include "conv_winograd.inl"
#include "bias_grad.inl"
#include "weight_grad.inl"
#include "weight_grad_1x1.inl"
#include "winograd_grad.inl"
#include "grouped_tile.inl"
#include "grouped.inl"
#include "grouped_grad.inl"
#include "depthwise.inl"
#include "depthwise_grad.inl"
#include "pool.inl"
#include "strips.inl"
#include "avg_pool.inl"
#include "max_places.inl"
#include "max_channels.inl"
#include "max_slide.inl"
#include "max_strips.inl"
#include "max_pool.inl"
#include "max_pool_grad.inl"
#include "add.inl"

namespace fastconv::FASTCONV_NS {

// Calls the instance of a kernel for the job's storage type.
#define FASTCONV_BY_DTYPE(dtype, call) \
  switch (dtype) {                     \
    case DType::f32: {                 \
      typedef float S;                 \
      return call;                     \
    }                                  \
    case DType::f64: {                 \
      typedef double S;                \
      return call;                     \
    }                                  \
    case DType::bf16: {                \
      typedef bf16 S;                  \
      return call;                     \
    }                                  \
    default: {                         \
      typedef f16 S;                   \
      return call;                     \
    }                                  \
  }

static int64_t packed_size(const TapConv& j, const Blocking& b) {
  if (b.along_rows) return b.packed ? row_packed_size(j) : 0;
  if (b.couples) return conv_packed_size<Couple>(j);
  FASTCONV_BY_DTYPE(j.dtype, conv_packed_size<Compute<S>>(j))
}
static void pack(const TapConv& j, const Blocking& b, void* to, int64_t begin, int64_t end) {
  if (b.along_rows) {
    FASTCONV_BY_DTYPE(j.dtype, row_pack<S>(j, to, begin, end))
  }
  if (b.couples) return conv_pack<bf16, Couple>(j, b, to, begin, end);
  FASTCONV_BY_DTYPE(j.dtype, conv_pack<S>(j, b, to, begin, end))
}
static int64_t scratch(const TapConv& j, const Blocking& b) {
  if (b.few && b.couples) return few_scratch<Couple>(j, b).total;
  if (b.few) {
    FASTCONV_BY_DTYPE(j.dtype, few_scratch<Compute<S>>(j, b).total)
  }
  if (b.along_rows) {
    FASTCONV_BY_DTYPE(j.dtype, row_scratch<Compute<S>>(j, b).total)
  }
  if (b.couples) return conv_scratch<Couple>(j, b).total;
  FASTCONV_BY_DTYPE(j.dtype, conv_scratch<Compute<S>>(j, b).total)
}
static void run(const TapConv& j, const Blocking& b, const void* packed, void* scratch,
                int64_t begin, int64_t end) {
  if (b.few && b.couples) return few_run<bf16, Couple, float>(j, b, scratch, begin, end);
  if (b.few) {
    FASTCONV_BY_DTYPE(j.dtype, few_run<S>(j, b, scratch, begin, end))
  }
  if (b.along_rows) {
    FASTCONV_BY_DTYPE(j.dtype, row_run<S>(j, b, packed, scratch, begin, end))
  }
  if (b.couples) return conv_run<bf16, Couple>(j, b, packed, scratch, begin, end);
  FASTCONV_BY_DTYPE(j.dtype, conv_run<S>(j, b, packed, scratch, begin, end))
}
// Winograd is for float arithmetic.
#define FASTCONV_BY_STORAGE(dtype, call) \
  switch (dtype) {                       \
    case DType::bf16: {                  \
      typedef bf16 S;                    \
      return call;                       \
    }                                    \
    case DType::f16: {                   \
      typedef f16 S;                     \
      return call;                       \
    }                                    \
    default: {                           \
      typedef float S;                   \
      return call;                       \
    }                                    \
  }

static int64_t wino_scratch(const TapConv& j, const WinogradBlocking& b) {
  return winograd_scratch(j, b).total;
}
static void wino_pack(const TapConv& j, const WinogradBlocking& b, float* u, void* scratch,
                      int64_t begin, int64_t end) {
  FASTCONV_BY_STORAGE(j.dtype, winograd_pack<S>(j, b, u, scratch, begin, end))
}
static void wino_inputs(const TapConv& j, const WinogradBlocking& b, float* v, void* scratch,
                        int64_t begin, int64_t end) {
  FASTCONV_BY_STORAGE(j.dtype, winograd_inputs<S>(j, b, v, scratch, begin, end))
}
static void wino_run(const TapConv& j, const WinogradBlocking& b, const float* u, const float* v,
                     void* scratch, int64_t begin, int64_t end) {
  FASTCONV_BY_STORAGE(j.dtype, winograd_run<S>(j, b, u, v, scratch, begin, end))
}
static int64_t winog_scratch(const WeightGrad& j, const WinogradBlocking& b) {
  return winograd_grad_scratch(j, b).total;
}
static void winog_inputs(const WeightGrad& j, const WinogradBlocking& b, int64_t segment, float* v,
                         float* a, void* scratch, int64_t begin, int64_t end) {
  FASTCONV_BY_STORAGE(j.dtype, winograd_grad_inputs<S>(j, b, segment, v, a, scratch, begin, end))
}
static void winog_run(const WeightGrad& j, const WinogradBlocking& b, int64_t segment,
                      const float* v, const float* a, float* z, void* scratch, int64_t begin,
                      int64_t end) {
  FASTCONV_BY_STORAGE(j.dtype, winograd_grad_run<S>(j, b, segment, v, a, z, scratch, begin, end))
}
static int64_t dw_scratch(const TapConv& j) { FASTCONV_BY_DTYPE(j.dtype, depthwise_scratch<S>(j)) }
static void dw_run(const TapConv& j, void* scratch, int64_t begin, int64_t end) {
  FASTCONV_BY_DTYPE(j.dtype, depthwise_run<S>(j, scratch, begin, end))
}
static int64_t gr_scratch(const GroupedJob& j, const GroupedBlocking& b) {
  FASTCONV_BY_DTYPE(j.whole.dtype, grouped_scratch<Compute<S>>(j, b).total)
}
static void gr_run(const GroupedJob& j, const GroupedBlocking& b, void* scratch, int64_t begin,
                   int64_t end) {
  FASTCONV_BY_DTYPE(j.whole.dtype, grouped_run<S>(j, b, scratch, begin, end))
}
static int64_t wg_scratch(const WeightGrad& j, const Blocking& b) {
  if (b.along_inputs) {
    FASTCONV_BY_DTYPE(j.dtype, weight_grad_1x1_scratch<S>(j, b).total)
  }
  FASTCONV_BY_DTYPE(j.dtype, weight_grad_scratch<Compute<S>>(j, b).total)
}
static void wg_run(const WeightGrad& j, const Blocking& b, void* scratch, int64_t begin,
                   int64_t end) {
  if (b.couples) return weight_grad_1x1_run<bf16, Couple>(j, b, scratch, begin, end);
  if (b.along_inputs) {
    FASTCONV_BY_DTYPE(j.dtype, weight_grad_1x1_run<S>(j, b, scratch, begin, end))
  }
  FASTCONV_BY_DTYPE(j.dtype, weight_grad_run<S>(j, b, scratch, begin, end))
}
static int64_t dwg_scratch(const WeightGrad& j) {
  FASTCONV_BY_DTYPE(j.dtype, depthwise_weight_grad_scratch<S>(j))
}
static void dwg_run(const WeightGrad& j, void* scratch, int64_t begin, int64_t end) {
  FASTCONV_BY_DTYPE(j.dtype, depthwise_weight_grad_run<S>(j, scratch, begin, end))
}
static int64_t grg_scratch(const WeightGrad& j, const GroupedBlocking& b) {
  FASTCONV_BY_DTYPE(j.dtype, grouped_grad_scratch<Compute<S>>(j, b).total)
}
static void grg_run(const WeightGrad& j, const GroupedBlocking& b, void* scratch, int64_t begin,
                    int64_t end) {
  FASTCONV_BY_DTYPE(j.dtype, grouped_grad_run<S>(j, b, scratch, begin, end))
}
static void bg_run(const View& dy, DType dtype, void* db, int64_t begin, int64_t end) {
  FASTCONV_BY_DTYPE(dtype, bias_grad_run<S>(dy, db, begin, end))
}
static void nr_run(DType dtype, const float* from, void* to, int64_t count) {
  FASTCONV_BY_STORAGE(dtype, narrow_row<S>((S*)to, from, count, 1))
}
static int64_t pl_scratch(const PoolJob& j) { FASTCONV_BY_DTYPE(j.p.dtype, pool_scratch<S>(j)) }
static void mp_run(const PoolJob& j, void* scratch, int64_t begin, int64_t end) {
  FASTCONV_BY_DTYPE(j.p.dtype, max_pool_run<S>(j, scratch, begin, end))
}
static void mpg_run(const PoolJob& j, void* scratch, int64_t begin, int64_t end) {
  FASTCONV_BY_DTYPE(j.p.dtype, max_pool_grad_run<S>(j, scratch, begin, end))
}
static void gather_run(const PoolJob& j, int64_t begin, int64_t end) {
  FASTCONV_BY_DTYPE(j.p.dtype, max_pool_gather_run<S>(j, begin, end))
}
static void ap_run(const PoolJob& j, void* scratch, int64_t begin, int64_t end) {
  FASTCONV_BY_DTYPE(j.p.dtype, avg_pool_run<S>(j, scratch, begin, end))
}
static void apg_run(const PoolJob& j, void* scratch, int64_t begin, int64_t end) {
  FASTCONV_BY_DTYPE(j.p.dtype, avg_pool_grad_run<S>(j, scratch, begin, end))
}
static void pr_run(const PairJob& j, int64_t begin, int64_t end) {
  FASTCONV_BY_DTYPE(j.dtype, pair_run<S>(j, begin, end))
}

}  // namespace fastconv::FASTCONV_NS

namespace fastconv {

extern const KernelTable FASTCONV_TABLE;
const KernelTable FASTCONV_TABLE = {
    FASTCONV_ISA_NAME,          FASTCONV_NS::kPanel<float>,  FASTCONV_NS::kPanel<double>,
    FASTCONV_NS::packed_size,   FASTCONV_NS::pack,           FASTCONV_NS::scratch,
    FASTCONV_NS::run,           FASTCONV_NS::wino_scratch,   FASTCONV_NS::wino_pack,
    FASTCONV_NS::wino_inputs,   FASTCONV_NS::wino_run,       FASTCONV_NS::winog_scratch,
    FASTCONV_NS::winog_inputs,  FASTCONV_NS::winog_run,      FASTCONV_NS::dw_scratch,
    FASTCONV_NS::dw_run,        FASTCONV_NS::gr_scratch,     FASTCONV_NS::gr_run,
    FASTCONV_NS::wg_scratch,    FASTCONV_NS::wg_run,         FASTCONV_NS::dwg_scratch,
    FASTCONV_NS::dwg_run,       FASTCONV_NS::grg_scratch,    FASTCONV_NS::grg_run,
    FASTCONV_NS::bg_run,        FASTCONV_NS::nr_run,         FASTCONV_NS::tiles_ran,
    FASTCONV_NS::row_tiles_ran, &FASTCONV_NS::dot_tiles_ran, &FASTCONV_NS::axpy_tiles_ran,
    FASTCONV_NS::grouped_ran,   FASTCONV_NS::kPairs,
    FASTCONV_NS::kPairs,  // couples: where vectors have 64 bytes
    FASTCONV_NS::fma_peak,      FASTCONV_NS::pl_scratch,     FASTCONV_NS::mp_run,
    FASTCONV_NS::mpg_run,       FASTCONV_NS::gather_run,     FASTCONV_NS::ap_run,
    FASTCONV_NS::apg_run,       FASTCONV_NS::pr_run,
};

}  // namespace fastconv
