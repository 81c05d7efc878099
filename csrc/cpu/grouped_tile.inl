// The register tile of depthwise and narrow groups: a vector of channels of up to eight
// neighbouring outputs, whose every pixel of x is read once for a row of taps.
namespace fastconv::FASTCONV_NS {

// A vector of channels of a row of outputs. Pixels of x are `col` apart and rows of taps `row`; x
// is where output 0 reads tap (0, 0), inside the input or not.
template <class T>
struct GroupedRow {
  const T* x;
  int64_t row, col;
  InsideTaps rows;
  const T* w;  // [tap][c][kPanel]
  T* y;        // of output 0; pixels are y_col apart
  int64_t y_col;
  const T* bias;      // of the vector; null: the sums are stored as they are
  const T* residual;  // may be null
  int64_t residual_col;
};

// Of each lane, the first of its group; `channels` is a power of two.
template <class T>
FASTCONV_INLINE IVec<T> group_lanes(int channels) {
  IVec<T> lane;
#pragma GCC unroll 16
  for (int l = 0; l < kW<T>; ++l) lane[l] = l;
  return lane & -channels;
}

// v[k] += x[k * kStride + j] * w[j] for kTaps neighbouring taps and one input channel of the
// groups; of the pixels of x those in [first, last) are inside. Each is read once.
template <int kPixels, int kTaps, int kStride, bool kGroups, class T>
FASTCONV_INLINE void add_taps(Vec<T> (&v)[kPixels], const T* x, int64_t step, int64_t first,
                              int64_t last, const T* w, int64_t w_step, IVec<T> spread) {
  Vec<T> tap[kTaps];
#pragma GCC unroll 8
  for (int j = 0; j < kTaps; ++j) tap[j] = load<T>(w + j * w_step);
#pragma GCC unroll 24
  for (int m = 0; m < (kPixels - 1) * kStride + kTaps; ++m, x += step) {
    if ((uint64_t)(m - first) >= (uint64_t)(last - first)) continue;
    Vec<T> value = load<T>(x);
    if constexpr (kGroups) value = __builtin_shuffle(value, spread);
#pragma GCC unroll 8
    for (int j = 0; j < kTaps; ++j)
      if (m >= j && (m - j) % kStride == 0 && (m - j) / kStride < kPixels)
        fma<T>(v[(m - j) / kStride], value, tap[j]);
  }
}

template <class T>
__attribute__((noinline)) static void sigmoid_all(Vec<T>* v, int n) {
  for (int i = 0; i < n; ++i) v[i] = activate<T>(v[i], Activation::sigmoid);
}

// Residual and activation of outputs [q, q + count): once for all, as the sums of few taps are no
// more work than a test for each.
template <int kPixels, class T>
FASTCONV_INLINE void grouped_epilogue(const TapConv& job, const GroupedRow<T>& r, int64_t q,
                                      int64_t count, Vec<T> (&v)[kPixels]) {
  const T* residual = r.residual + q * r.residual_col;
  if (r.residual)
#pragma GCC unroll 8
    for (int k = 0; k < kPixels; ++k, residual += r.residual_col) {
      if (k >= count) break;
      v[k] += load<T>(residual);
    }
  if (job.activation == Activation::relu)
#pragma GCC unroll 8
    for (int k = 0; k < kPixels; ++k) v[k] = activate<T>(v[k], Activation::relu);
  if (job.activation == Activation::sigmoid) {
    Vec<T> copy[kPixels];  // v itself stays in registers
#pragma GCC unroll 8
    for (int k = 0; k < kPixels; ++k) copy[k] = v[k];
    sigmoid_all<T>(copy, kPixels);
#pragma GCC unroll 8
    for (int k = 0; k < kPixels; ++k) v[k] = copy[k];
  }
}

// Outputs [q, q + count) of a row, count <= kPixels. kTaps: the taps of a row, where they are
// neighbours and the stride is kStride; else 1, and they are added one by one.
template <int kPixels, int kTaps, int kStride, bool kGroups, class T>
__attribute__((noinline)) static void grouped_pixels(const TapConv& job, const GroupedRow<T>& r,
                                                     int64_t q, int64_t count) {
  constexpr int L = kPanel<T>;
  const Vec<T> bias = r.bias ? load<T>(r.bias) : Vec<T>{};
  Vec<T> v[kPixels];
#pragma GCC unroll 8
  for (int k = 0; k < kPixels; ++k) v[k] = bias;
  const int64_t origin = q * job.stride_w + job.cols.offset, taps = job.cols.count;
  const int64_t channels = kGroups ? job.C : 1;
  const IVec<T> lane = kGroups ? group_lanes<T>((int)channels) : IVec<T>{};
  for (int64_t i = r.rows.first; i < r.rows.first + r.rows.count; ++i) {
    const T *row = r.x + q * job.stride_w * r.col + i * r.row, *w = r.w + i * taps * channels * L;
    IVec<T> spread = lane;
    if constexpr (kTaps > 1) {
      const int64_t first = max64(-origin, 0);
      const int64_t last = max64(min64(job.W - origin, (count - 1) * kStride + kTaps), first);
      for (int64_t c = 0; c < channels; ++c, spread += 1)
        add_taps<kPixels, kTaps, kStride, kGroups, T>(v, row, r.col, first, last, w + c * L,
                                                      channels * L, spread);
      continue;
    }
    for (int64_t j = 0; j < taps; ++j) {
      const int64_t at = origin + j * job.cols.offset_step;
      auto pixels = [&](int64_t columns) {  // without a division where there is no need of one
        return job.stride_w == 1 ? columns : ceil_div(columns, job.stride_w);
      };
      const int64_t first = at < 0 ? pixels(-at) : 0;
      const int64_t last = at < job.W ? min64(pixels(job.W - at), count) : first;
      spread = lane;
      for (int64_t c = 0; c < channels && first < last; ++c, spread += 1)
        add_taps<kPixels, 1, 1, kGroups, T>(v, row + j * job.cols.offset_step * r.col,
                                            job.stride_w * r.col, first, last,
                                            w + (j * channels + c) * L, 0, spread);
    }
  }
  if (r.bias && (r.residual || job.activation != Activation::none))
    grouped_epilogue<kPixels, T>(job, r, q, count, v);
  T* y = r.y + q * r.y_col;
#pragma GCC unroll 8
  for (int k = 0; k < kPixels; ++k, y += r.y_col) {
    if (k >= count) break;
    store<T>(y, v[k]);
  }
}

template <class T>
using GroupedKernel = void (*)(const TapConv&, const GroupedRow<T>&, int64_t, int64_t);

// Which tiles ran: [float, double, groups of float][forward, weight gradient].
static uint32_t grouped_ran[3][2];

template <class T>
inline void mark_grouped(bool groups, bool grad, int bit) {
  uint32_t* ran = &grouped_ran[groups ? 2 : sizeof(T) == 8][grad];
  __atomic_fetch_or(ran, 1u << bit, __ATOMIC_RELAXED);
}

// The index among kGroupedTaps of what a row's taps are added by.
inline int tap_kind(const TapConv& job) {
  constexpr int kCount = sizeof kGroupedTaps / sizeof kGroupedTaps[0];
  for (int i = 1; i < (job.C > 1 ? kGroupTaps : kCount); ++i)
    if (job.cols.offset_step == 1 && job.cols.count == kGroupedTaps[i].taps &&
        job.stride_w == kGroupedTaps[i].stride)
      return i;
  return 0;
}

template <int kPixels, bool kGroups, class T>
inline GroupedKernel<T> grouped_kernel(int kind) {
  constexpr const TapsOfStride* k = kGroupedTaps;
  if constexpr (!kGroups) {
    if (kind == 4) return grouped_pixels<kPixels, k[4].taps, k[4].stride, false, T>;
    if (kind == 5) return grouped_pixels<kPixels, k[5].taps, k[5].stride, false, T>;
    if (kind == 6) return grouped_pixels<kPixels, k[6].taps, k[6].stride, false, T>;
    if (kind == 7) return grouped_pixels<kPixels, k[7].taps, k[7].stride, false, T>;
  }
  if (kind == 1) return grouped_pixels<kPixels, k[1].taps, k[1].stride, kGroups, T>;
  if (kind == 2) return grouped_pixels<kPixels, k[2].taps, k[2].stride, kGroups, T>;
  if (kind == 3) return grouped_pixels<kPixels, k[3].taps, k[3].stride, kGroups, T>;
  return grouped_pixels<kPixels, 1, 1, kGroups, T>;
}

template <bool kGroups, class T>
inline GroupedKernel<T> grouped_kernel(int size, int kind) {
  if (size == 0) return grouped_kernel<kGroupedPixels[0], kGroups, T>(kind);
  if (size == 1) return grouped_kernel<kGroupedPixels[1], kGroups, T>(kind);
  return grouped_kernel<kGroupedPixels[2], kGroups, T>(kind);
}

// Of a row of outputs: the kernel and the pixels of one of its blocks.
template <class T>
struct GroupedPlan {
  int64_t pixels;
  GroupedKernel<T> kernel;

  static GroupedPlan make(const TapConv& job) {
    constexpr int kKinds = sizeof kGroupedTaps / sizeof kGroupedTaps[0];
    const int64_t pixels = even_share(job.Q, kGroupedPixels[2]);
    const int size = (pixels > kGroupedPixels[0]) + (pixels > kGroupedPixels[1]);
    const int kind = tap_kind(job);
    mark_grouped<T>(job.C > 1, false, size * kKinds + kind);
    if constexpr (sizeof(T) == 4)
      if (job.C > 1) return {pixels, grouped_kernel<true, T>(size, kind)};
    return {pixels, grouped_kernel<false, T>(size, kind)};
  }
};

}  // namespace fastconv::FASTCONV_NS
