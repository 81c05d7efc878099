// How the grouped and depthwise kernels cut a problem, and which of them takes it; see blocking.h.
#pragma once
#include "blocking.h"

namespace fastconv {

// Depthwise and narrow groups, vectors along channels (grouped.inl). In place the weights of a
// task's channels stay in L1, else its transposed rows in L2.
constexpr int64_t kGroupedWeightBytes = 16 * 1024, kGroupedRowBytes = 256 * 1024;

struct GroupedBlocking {
  bool in_place;           // channel-last operands, of the arithmetic's type
  int64_t channels, rows;  // of a task
  int64_t parts, bands, tasks;
};

// `step`: rows of a task are a multiple of it.
static inline GroupedBlocking grouped_blocking(const TapConv& job, int64_t step, int64_t panel,
                                               int64_t element, int64_t threads) {
  GroupedBlocking b = {};
  const int64_t channels = job.G * job.K, taps = max64(job.rows.count * job.cols.count, 1);
  b.in_place = job.xs[1] == 1 && job.ys[1] == 1 && (!job.residual || job.rs[1] == 1) &&
               2 * channels >= panel && (job.dtype == DType::f32 || job.dtype == DType::f64);
  b.channels = panel, b.rows = step;
  if (b.in_place) {
    b.channels *= max64(kGroupedWeightBytes * step * step / (taps * job.C * panel * element), 1);
  } else {
    const int64_t row = (job.W * job.stride_h + job.Q) * panel * element;
    const int64_t blocks = ceil_div(channels, panel) * job.N, steps = ceil_div(job.P, step);
    const int64_t most = threads == 1 ? steps : max64(ceil_div(steps * blocks, 4 * threads), 1);
    b.rows *= even_share(steps, min64(max64(kGroupedRowBytes / (row * step), 1), most));
  }
  b.parts = ceil_div(channels, b.channels), b.bands = ceil_div(job.P, b.rows);
  b.tasks = b.parts * job.N * b.bands;
  return b;
}

static inline GroupedBlocking grouped_grad_blocking(const WeightGrad& job, int64_t panel,
                                                    int64_t element) {
  GroupedBlocking b = {};
  b.in_place =
      job.xs[1] == 1 && job.dys[1] == 1 && (job.dtype == DType::f32 || job.dtype == DType::f64);
  b.channels = panel;
  b.rows = even_share(
      job.P, max64(kGroupedRowBytes / ((job.W * job.stride_h + job.Q) * panel * element), 1));
  b.bands = ceil_div(job.P, b.rows);
  b.parts = b.tasks = ceil_div(job.G * job.K, panel);
  return b;
}

// Depthwise of several outputs per input, or of too few channels for a vector.
template <class Job>
static inline bool few_lanes(const Job& job, int64_t panel) {
  return job.C == 1 && (job.K > 1 || 4 * job.G < panel);
}

// Where planes are better: those, and depthwise of few taps on wide planes; and narrow groups there
// (conv_rows.inl). NCHW on Zen 4 with AVX-512, transposed -> by planes: depthwise 3x3 of 32
// channels @112 397 -> 335 us, of 144 @56 268 -> 294, 7x7 of 96 @56 369 -> 447; 3x3 of 32 groups of
// 4 @56 479 -> 405, of 8 @28 370 -> 385.
static inline bool depthwise_planes(const TapConv& job, int64_t panel) {
  const bool wide = job.ys[1] != 1 && job.stride_w == 1 && job.Q > 2 * panel;
  return few_lanes(job, panel) || (job.C == 1 && wide && job.rows.count * job.cols.count <= 9);
}
static inline bool grouped_rows(const TapConv& job, int64_t panel) {
  return job.C > 1 && job.ys[1] != 1 && job.stride_w == 1 && job.Q > panel;
}

}  // namespace fastconv
