// Strided convolutions of few channels as ones of stride 1 (space to depth), for Winograd.
//
// Pixels whose row and column agree mod the stride s are channels: X[(i, j, c), h, w] =
// x[c, s h + i - pad, s w + j - pad], and tap (r, u) is tap (r / s, u / s) of channel (r % s, u %
// s, c). 11x11/4 of 3 channels becomes 3x3 of 48, and 7x7/2 becomes 4x4 of 12; taps that the kernel
// does not have are zero. X includes the padding.
#pragma once
#include "blocking.h"

namespace fastconv {

constexpr int64_t kFoldedImages = 4 << 20;  // elements of X that are made at once, or one image

struct Fold {
  int64_t stride, taps;
  int64_t C, H, W;  // of X
  int64_t images;   // whose X exists at once
  int64_t pitch;    // elements of a pixel: whole vectors, of which the last channels are not there
  bool planar;      // x is: channels are ordered (i, c, j), else (i, j, c)

  int64_t image() const { return H * W * pitch; }
  int64_t channel(int64_t i, int64_t j, int64_t c, int64_t channels) const {
    return planar ? (i * channels + c) * stride + j : (i * stride + j) * channels + c;
  }
};

// Whether Winograd takes it folded. Its other strided form is of 3x3.
static inline bool folds(int64_t R, int64_t S, int64_t stride_h, int64_t stride_w) {
  const int64_t s = stride_h, taps = ceil_div(R, s);
  return s > 1 && s == stride_w && R > 3 && (taps == 3 || taps == 4) && ceil_div(S, s) == taps;
}

template <class Job>
static inline bool folds(const Job& job) {
  return folds(job.rows.count, job.cols.count, job.stride_h, job.stride_w);
}

template <class Job>
static inline Fold fold_of(const Job& job, int64_t lanes) {
  Fold f = {};
  f.stride = job.stride_h, f.taps = ceil_div(job.rows.count, f.stride);
  f.C = job.C * f.stride * f.stride;
  f.H = job.P + f.taps - 1, f.W = job.Q + f.taps - 1;
  f.pitch = ceil_div(f.C, lanes) * lanes;
  f.planar = job.xs[1] != 1;
  f.images = min64(job.N, max64(kFoldedImages / f.image(), 1));
  return f;
}

static inline void fold_kernel(TapConv& job, const Fold& f) {
  const int64_t taps = f.taps * f.taps;
  job.R = job.S = f.taps;
  const int64_t strides[5] = {0, f.C * taps, taps, f.taps, 1};
  for (int i = 0; i < 5; ++i) job.ws[i] = strides[i];
}
static inline void fold_kernel(WeightGrad&, const Fold&) {}

// The job of X and of folded weights, which are given later.
template <class Job>
static inline Job folded(Job job, const Fold& f) {
  job.C = f.C, job.H = f.H, job.W = f.W;
  job.stride_h = job.stride_w = 1;
  job.rows = job.cols = {f.taps, 0, 1, 0, 1};
  const int64_t strides[4] = {f.image(), 1, f.W * f.pitch, f.pitch};
  for (int i = 0; i < 4; ++i) job.xs[i] = strides[i];
  job.folded = true;
  fold_kernel(job, f);
  return job;
}

// Rows [begin, end) of X, of all images; x and xs are those of the job as it was.
struct Unfolded {
  const void* x;
  int64_t xs[4], C, H, W, pad_t, pad_l, element;
};
void fold_rows(const Unfolded& from, const Fold& f, void* to, int64_t begin, int64_t end);

// Weights [K, C, R, S] of any strides as [K, f.C, taps, taps], dense; and of a dense gradient of
// those that of the weights, or what it adds to one.
void fold_weights(const void* w, const int64_t ws[4], int64_t K, int64_t C, int64_t R, int64_t S,
                  const Fold& f, int64_t element, void* to);
void unfold_grad(const float* folded, int64_t K, int64_t C, int64_t R, int64_t S, const Fold& f,
                 bool add, float* dw);

}  // namespace fastconv
