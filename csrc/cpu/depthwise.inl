// Depthwise convolution (one input channel per group): bound by memory, no register tile.
//
// Channel-last, one output per input channel: vectors along channels, taps clipped at the edges,
// nothing copied. Otherwise one plane at a time: a padded copy whose columns are split by phase
// (column mod stride), so that every tap of a row of outputs is one contiguous vector stream.
namespace fastconv::FASTCONV_NS {

struct Taps {
  int64_t first, last;  // the taps [first, last) that fall inside the input
};

// Taps of one axis inside [0, size) for the output whose tap 0 lies at `origin`.
inline Taps taps_inside(const TapAxis& axis, int64_t origin, int64_t size) {
  Taps t = {0, axis.count};
  while (t.first < axis.count && origin + t.first * axis.offset_step < 0) ++t.first;
  while (t.last > t.first && origin + (t.last - 1) * axis.offset_step >= size) --t.last;
  return t;
}

// y[k] for kPanel channels from c0 of one pixel; w is [tap][C].
template <class S>
inline void depthwise_pixel(const TapConv& job, const Compute<S>* w, int64_t n, int64_t p,
                            int64_t q, int64_t c0, int64_t lanes) {
  typedef Compute<S> T;
  constexpr int W = kW<T>;
  const int64_t channels = job.G, h0 = p * job.stride_h + job.rows.offset;
  const int64_t w0 = q * job.stride_w + job.cols.offset;
  const Taps rows = taps_inside(job.rows, h0, job.H), cols = taps_inside(job.cols, w0, job.W);
  T v[2 * W] = {};
  const S* x = (const S*)job.x + n * job.xs[0] + c0;
  for (int64_t i = rows.first; i < rows.last; ++i)
    for (int64_t j = cols.first; j < cols.last; ++j) {
      const S* from = x + (h0 + i * job.rows.offset_step) * job.xs[2] +
                      (w0 + j * job.cols.offset_step) * job.xs[3];
      const T* tap = w + (i * job.cols.count + j) * channels + c0;
      if (lanes == 2 * W) {
        for (int half = 0; half < 2 * W; half += W)
          store<T>(v + half,
                   load<T>(v + half) + load_widened<S>(from + half) * load<T>(tap + half));
      } else {
        for (int64_t c = 0; c < lanes; ++c) v[c] += widen(from[c]) * tap[c];
      }
    }
  const PanelStore<S> to = {
      job.bias ? (const S*)job.bias + c0 * job.bias_s : nullptr,
      job.residual ? (const S*)job.residual + n * job.rs[0] + c0 * job.rs[1] : nullptr,
      (S*)job.y + n * job.ys[0] + c0,
      job.bias_s,
      job.rs[1],
      job.rs[2],
      job.rs[3],
      job.ys[1],
      job.ys[2],
      job.ys[3],
      lanes,
      job.activation};
  store_panel<S>(to, v, p, q, 1, 1);
}

// A plane of the input, padded, columns split by phase: column j at (j % stride) * span + j /
// stride.
template <class S>
struct PhasePlane {
  Compute<S>* data;
  int64_t row, span;

  static int64_t elements(int64_t rows, int64_t cols, int64_t stride) {
    return rows * stride * (ceil_div(cols, stride) + kW<Compute<S>>)+kW<Compute<S>>;
  }

  void fill(const S* x, int64_t h_s, int64_t w_s, int64_t H, int64_t W, int64_t row0, int64_t rows,
            int64_t col0, int64_t cols, int64_t stride) {
    span = ceil_div(cols, stride) + kW<Compute<S>>;
    row = span * stride;
    zero(data, elements(rows, cols, stride));
    for (int64_t i = max64(-row0, 0); i < rows && row0 + i < H; ++i)
      for (int64_t phase = 0; phase < stride; ++phase) {
        int64_t j = phase;
        while (j < cols && col0 + j < 0) j += stride;
        Compute<S>* dst = data + i * row + phase * span + j / stride;
        const int64_t last = min64(cols, W - col0);
        if (j < last)
          widen_row<S>(dst, x + (row0 + i) * h_s + (col0 + j) * w_s, ceil_div(last - j, stride),
                       w_s * stride);
      }
  }

  // The value read by output 0 of row `i` through the tap at column offset `j`.
  Compute<S>* at(int64_t i, int64_t j, int64_t stride) const {
    return data + i * row + j % stride * span + j / stride;
  }
};

template <class S>
inline int64_t depthwise_plane_elements(int64_t P, int64_t Q, int64_t stride_h, int64_t stride_w,
                                        const TapAxis& rows, const TapAxis& cols) {
  return PhasePlane<S>::elements(max64(slab_rows(P, stride_h, rows), 1),
                                 max64(slab_rows(Q, stride_w, cols), 1), stride_w);
}

template <class S>
inline int64_t depthwise_scratch(const TapConv& job) {
  typedef Compute<S> T;
  const int64_t weights = align64(job.G * job.rows.count * job.cols.count * sizeof(T));
  const int64_t plane =
      depthwise_plane_elements<S>(job.P, job.Q, job.stride_h, job.stride_w, job.rows, job.cols);
  return max64(weights, align64(plane * sizeof(T)));
}

template <class S>
inline void depthwise_channel_rows(const TapConv& job, void* scratch, int64_t begin, int64_t end) {
  typedef Compute<S> T;
  T* w = (T*)scratch;
  for (int64_t i = 0; i < job.rows.count; ++i)
    for (int64_t j = 0; j < job.cols.count; ++j)
      widen_row<S>(w + (i * job.cols.count + j) * job.G,
                   (const S*)job.w + (job.rows.index + i * job.rows.index_step) * job.ws[3] +
                       (job.cols.index + j * job.cols.index_step) * job.ws[4],
                   job.G, job.ws[0]);
  for (int64_t task = begin; task < end; ++task)
    for (int64_t c0 = 0; c0 < job.G; c0 += kPanel<T>)
      for (int64_t q = 0; q < job.Q; ++q)
        depthwise_pixel<S>(job, w, task / job.P, task % job.P, q, c0, min64(kPanel<T>, job.G - c0));
}

template <class S>
inline void depthwise_plane(const TapConv& job, PhasePlane<S>& plane, int64_t n, int64_t k) {
  typedef Compute<S> T;
  constexpr int W = kW<T>;
  const int64_t g = k / job.K, taps = job.rows.count * job.cols.count;
  if (taps)
    plane.fill((const S*)job.x + n * job.xs[0] + g * job.xs[1], job.xs[2], job.xs[3], job.H, job.W,
               job.rows.offset, slab_rows(job.P, job.stride_h, job.rows), job.cols.offset,
               slab_rows(job.Q, job.stride_w, job.cols), job.stride_w);
  const S* w = (const S*)job.w + g * job.ws[0] + k % job.K * job.ws[1];
  const PanelStore<S> to = {
      job.bias ? (const S*)job.bias + k * job.bias_s : nullptr,
      job.residual ? (const S*)job.residual + n * job.rs[0] + k * job.rs[1] : nullptr,
      (S*)job.y + n * job.ys[0] + k * job.ys[1],
      job.bias_s,
      job.rs[1],
      job.rs[2],
      job.rs[3],
      job.ys[1],
      job.ys[2],
      job.ys[3],
      1,
      job.activation};
  const T bias = to.bias ? widen(*to.bias) : T(0);
  for (int64_t p = 0; p < job.P; ++p) {
    for (int64_t q = 0; q < job.Q; q += W) {
      Vec<T> v = {};
      for (int64_t i = 0; i < job.rows.count; ++i)
        for (int64_t j = 0; j < job.cols.count; ++j) {
          const T* x = plane.at(p * job.stride_h + i * job.rows.offset_step,
                                j * job.cols.offset_step, job.stride_w);
          const S tap = w[(job.rows.index + i * job.rows.index_step) * job.ws[3] +
                          (job.cols.index + j * job.cols.index_step) * job.ws[4]];
          fma<T>(v, load<T>(x + q), broadcast<T>(widen(tap)));
        }
      v += bias;
      S* y = to.y + p * to.y_p + q * to.y_q;
      const int64_t lanes = min64(W, job.Q - q);
      if (to.residual)
        for (int64_t l = 0; l < lanes; ++l)
          v[l] += widen(to.residual[p * to.r_p + (q + l) * to.r_q]);
      v = activate<T>(v, job.activation);
      if (lanes == W && to.y_q == 1)
        store_narrowed<S>(y, v);
      else
        for (int64_t l = 0; l < lanes; ++l) y[l * to.y_q] = Narrow<S>::from(v[l]);
    }
  }
}

// Tasks: (image, output row) channel-last, (image, output channel) otherwise.
template <class S>
inline void depthwise_run(const TapConv& job, void* scratch, int64_t begin, int64_t end) {
  if (depthwise_channels(job)) return depthwise_channel_rows<S>(job, scratch, begin, end);
  PhasePlane<S> plane = {(Compute<S>*)scratch, 0, 0};
  const int64_t channels = job.G * job.K;
  for (int64_t task = begin; task < end; ++task)
    depthwise_plane<S>(job, plane, task / channels, task % channels);
}

template <class S>
inline int64_t depthwise_weight_grad_scratch(const WeightGrad& job) {
  typedef Compute<S> T;
  return align64(depthwise_plane_elements<S>(job.P, job.Q, job.stride_h, job.stride_w, job.rows,
                                             job.cols) *
                 sizeof(T)) +
         align64((job.Q + kW<T>)*job.P * sizeof(T)) +
         align64(job.rows.count * job.cols.count * sizeof(double));
}

// dw of output channels [begin, end): per image, a vector dot product of dy and x per tap.
template <class S>
inline void depthwise_weight_grad_run(const WeightGrad& job, void* scratch, int64_t begin,
                                      int64_t end) {
  typedef Compute<S> T;
  constexpr int W = kW<T>;
  const int64_t taps = job.rows.count * job.cols.count, pitch = ceil_div(job.Q, W) * W;
  PhasePlane<S> plane = {(T*)scratch, 0, 0};
  T* dy = plane.data + align64(depthwise_plane_elements<S>(job.P, job.Q, job.stride_h, job.stride_w,
                                                           job.rows, job.cols) *
                               sizeof(T)) /
                           sizeof(T);
  double* sums = (double*)((char*)dy + align64((job.Q + W) * job.P * sizeof(T)));
  for (int64_t k = begin; k < end; ++k) {
    const int64_t g = k / job.K;
    zero(sums, taps);
    for (int64_t n = 0; n < job.N; ++n) {
      plane.fill((const S*)job.x + n * job.xs[0] + g * job.xs[1], job.xs[2], job.xs[3], job.H,
                 job.W, job.rows.offset, slab_rows(job.P, job.stride_h, job.rows), job.cols.offset,
                 slab_rows(job.Q, job.stride_w, job.cols), job.stride_w);
      for (int64_t p = 0; p < job.P; ++p) {
        zero(dy + p * pitch, pitch);
        widen_row<S>(dy + p * pitch,
                     (const S*)job.dy + n * job.dys[0] + k * job.dys[1] + p * job.dys[2], job.Q,
                     job.dys[3]);
      }
      for (int64_t t = 0; t < taps; ++t) {
        Vec<T> v = {};
        for (int64_t p = 0; p < job.P; ++p) {
          const T* x = plane.at(p * job.stride_h + t / job.cols.count * job.rows.offset_step,
                                t % job.cols.count * job.cols.offset_step, job.stride_w);
          for (int64_t q = 0; q < job.Q; q += W) {
            const Vec<T> d = load<T>(dy + p * pitch + q);
            // Lanes past the row are other columns of x: dy is zero there, x may be infinite.
            Vec<T> from = load<T>(x + q);
            for (int64_t l = job.Q - q; l < W; ++l) from[l] = 0;
            fma<T>(v, d, from);
          }
        }
        sums[t] += sum<T>(v);
      }
    }
    for (int64_t t = 0; t < taps; ++t) ((S*)job.dw)[k * taps + t] = Narrow<S>::from((T)sums[t]);
  }
}

}  // namespace fastconv::FASTCONV_NS
