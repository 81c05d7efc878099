// Depthwise weight gradient: dw[k, r, s] = sum over n, p, q of dy[n, k, p, q] * x[n, g, p', q'].
//
// A row of taps at a time, in registers: channel-last along two vectors of channels, else along the
// columns of a plane (PhasePlane). Sums of a row of outputs are added to those of its image in T,
// images in double.
namespace fastconv::FASTCONV_NS {

constexpr int kTapRun = 4;  // taps of a row in registers; longer rows are cut

template <class S>
inline int64_t depthwise_weight_grad_scratch(const WeightGrad& job) {
  typedef Compute<S> T;
  const int64_t taps = job.rows.count * job.cols.count;
  const int64_t plane =
      depthwise_plane_elements<S>(job.P, job.Q, job.stride_h, job.stride_w, job.rows, job.cols);
  return align64(plane * sizeof(T)) + align64((job.Q + kW<T>)*job.P * sizeof(T)) +
         align64(taps * kPanel<T> * sizeof(T)) + align64(taps * kPanel<T> * sizeof(double));
}

// sums[j][kPanel] += dy[q] * x[q * x_step + j * tap_step] over count pixels, two vectors of lanes.
template <int kTaps, bool kWhole, class S>
inline void add_tap_pixels(const S* dy, int64_t dy_step, const S* x, int64_t x_step,
                           int64_t tap_step, int64_t count, int64_t lanes, Compute<S>* sums) {
  typedef Compute<S> T;
  constexpr int W = kW<T>, V = 2;
  Vec<T> v[kTaps][V] = {};
  int64_t part[V];
  for (int h = 0; h < V; ++h) part[h] = max64(min64(lanes - h * W, W), 0);
  for (int64_t q = 0; q < count; ++q, dy += dy_step, x += x_step)
#pragma GCC unroll 2
    for (int h = 0; h < V; ++h) {
      const Vec<T> d = kWhole ? load_widened<S>(dy + h * W) : load_lanes<S>(dy + h * W, part[h]);
#pragma GCC unroll 4
      for (int j = 0; j < kTaps; ++j) {
        const S* from = x + j * tap_step + h * W;
        fma<T>(v[j][h], d, kWhole ? load_widened<S>(from) : load_lanes<S>(from, part[h]));
      }
    }
#pragma GCC unroll 4
  for (int j = 0; j < kTaps; ++j)
    for (int h = 0; h < V; ++h) {
      T* to = sums + (j * V + h) * W;
      store<T>(to, load<T>(to) + v[j][h]);
    }
}

template <class S>
inline void add_tap_pixels(int taps, const S* dy, int64_t dy_step, const S* x, int64_t x_step,
                           int64_t tap_step, int64_t count, int64_t lanes, Compute<S>* sums) {
  if (lanes < kPanel<Compute<S>>) {
    for (int j = 0; j < taps; ++j)
      add_tap_pixels<1, false, S>(dy, dy_step, x + j * tap_step, x_step, tap_step, count, lanes,
                                  sums + j * kPanel<Compute<S>>);
    return;
  }
  switch (taps) {
    case 1: return add_tap_pixels<1, true, S>(dy, dy_step, x, x_step, tap_step, count, lanes, sums);
    case 2: return add_tap_pixels<2, true, S>(dy, dy_step, x, x_step, tap_step, count, lanes, sums);
    case 3: return add_tap_pixels<3, true, S>(dy, dy_step, x, x_step, tap_step, count, lanes, sums);
    default:
      return add_tap_pixels<4, true, S>(dy, dy_step, x, x_step, tap_step, count, lanes, sums);
  }
}

// Outputs [first, last) of an axis whose tap at `offset` lies inside [0, size).
inline void outputs_inside(int64_t outputs, int64_t stride, int64_t offset, int64_t size,
                           int64_t& first, int64_t& last) {
  first = offset < 0 ? ceil_div(-offset, stride) : 0;
  last = size - offset <= 0 ? 0 : min64(outputs, ceil_div(size - offset, stride));
}

// One image, `lanes` channels from k on, channel-last: sums[tap][kPanel].
template <class S>
inline void depthwise_grad_channels(const WeightGrad& job, int64_t n, int64_t k, int64_t lanes,
                                    Compute<S>* sums) {
  constexpr int L = kPanel<Compute<S>>;
  const int64_t step = job.cols.offset_step;
  for (int64_t p = 0; p < job.P; ++p)
    for (int64_t i = 0; i < job.rows.count; ++i) {
      const int64_t h = p * job.stride_h + job.rows.offset + i * job.rows.offset_step;
      if (h < 0 || h >= job.H) continue;
      const S* x = (const S*)job.x + n * job.xs[0] + h * job.xs[2] + k;
      const S* dy = (const S*)job.dy + n * job.dys[0] + p * job.dys[2] + k;
      for (int64_t j0 = 0; j0 < job.cols.count; j0 += kTapRun) {
        const int64_t count = min64(kTapRun, job.cols.count - j0);
        auto add = [&](int64_t j, int64_t taps, int64_t first, int64_t last) {
          if (first >= last) return;
          const int64_t at = first * job.stride_w + job.cols.offset + j * step;
          add_tap_pixels<S>((int)taps, dy + first * job.dys[3], job.dys[3], x + at * job.xs[3],
                            job.stride_w * job.xs[3], step * job.xs[3], last - first, lanes,
                            sums + (i * job.cols.count + j) * L);
        };
        // Pixels that read every tap of the run, and tap by tap those that do not.
        int64_t first[kTapRun], last[kTapRun], from = 0, to = job.Q;
        for (int64_t j = 0; j < count; ++j) {
          outputs_inside(job.Q, job.stride_w, job.cols.offset + (j0 + j) * step, job.W, first[j],
                         last[j]);
          from = max64(from, first[j]), to = min64(to, last[j]);
        }
        if (from >= to) from = to = job.Q;  // no pixel reads them all
        add(j0, count, from, to);
        for (int64_t j = 0; j < count; ++j) {
          add(j0 + j, 1, first[j], min64(last[j], from));
          add(j0 + j, 1, max64(first[j], to), last[j]);
        }
      }
    }
}

// sums[tap][lane] += over a plane, of which dy is widened to rows of `pitch`.
template <int kTaps, class S>
inline void depthwise_grad_plane(const WeightGrad& job, const PhasePlane<S>& plane,
                                 const Compute<S>* dy, int64_t pitch, int64_t i, int64_t j0,
                                 Compute<S>* sums) {
  typedef Compute<S> T;
  constexpr int W = kW<T>;
  const int64_t tail = job.Q - (pitch - W);  // lanes of a row's last vector
  T ones[W];
  for (int l = 0; l < W; ++l) ones[l] = l < tail;
  const IVec<T> inside = load<T>(ones) != 0;
  Vec<T> v[kTaps] = {};
  for (int64_t p = 0; p < job.P; ++p) {
    const T* x[kTaps];
    for (int j = 0; j < kTaps; ++j)
      x[j] = plane.at(p * job.stride_h + i * job.rows.offset_step, (j0 + j) * job.cols.offset_step);
    int64_t q = 0;
    for (; q + W < pitch; q += W) {
      const Vec<T> d = load<T>(dy + p * pitch + q);
#pragma GCC unroll 4
      for (int j = 0; j < kTaps; ++j) fma<T>(v[j], d, load<T>(x[j] + q));
    }
    // Lanes past the row are other columns of x, which may be infinite where dy is zero.
    const Vec<T> d = load<T>(dy + p * pitch + q);
#pragma GCC unroll 4
    for (int j = 0; j < kTaps; ++j) fma<T>(v[j], d, select<T>(inside, load<T>(x[j] + q), Vec<T>{}));
  }
  for (int j = 0; j < kTaps; ++j) store<T>(sums + (i * job.cols.count + j0 + j) * kPanel<T>, v[j]);
}

// One image of output channel k, by planes: the sum of each tap in sums[tap][0].
template <class S>
inline void depthwise_grad_planes(const WeightGrad& job, const PhasePlane<S>& plane, Compute<S>* dy,
                                  int64_t n, int64_t k, Compute<S>* sums) {
  typedef Compute<S> T;
  const int64_t pitch = ceil_div(job.Q, kW<T>) * kW<T>;
  plane.fill((const S*)job.x + n * job.xs[0] + k / job.K * job.xs[1], job.xs[2], job.xs[3], job.H,
             job.W, job.rows.offset, slab_rows(job.P, job.stride_h, job.rows), job.cols.offset,
             slab_rows(job.Q, job.stride_w, job.cols));
  for (int64_t p = 0; p < job.P; ++p) {
    zero(dy + p * pitch, pitch);
    widen_row<S>(dy + p * pitch,
                 (const S*)job.dy + n * job.dys[0] + k * job.dys[1] + p * job.dys[2], job.Q,
                 job.dys[3]);
  }
  for (int64_t i = 0; i < job.rows.count; ++i)
    for (int64_t j = 0; j < job.cols.count; j += kTapRun)
      switch (min64(kTapRun, job.cols.count - j)) {
        case 1: depthwise_grad_plane<1, S>(job, plane, dy, pitch, i, j, sums); break;
        case 2: depthwise_grad_plane<2, S>(job, plane, dy, pitch, i, j, sums); break;
        case 3: depthwise_grad_plane<3, S>(job, plane, dy, pitch, i, j, sums); break;
        default: depthwise_grad_plane<4, S>(job, plane, dy, pitch, i, j, sums);
      }
  for (int64_t t = 0; t < job.rows.count * job.cols.count; ++t)
    sums[t * kPanel<T>] = sum<T>(load<T>(sums + t * kPanel<T>));
}

// dw of output channels [begin, end).
template <class S>
inline void depthwise_weight_grad_run(const WeightGrad& job, void* scratch, int64_t begin,
                                      int64_t end) {
  typedef Compute<S> T;
  constexpr int L = kPanel<T>;
  const int64_t taps = job.rows.count * job.cols.count;
  const int64_t columns = slab_rows(job.Q, job.stride_w, job.cols);
  const PhasePlane<S> plane = {(T*)scratch, PhasePlane<S>::split(columns, job.stride_w)};
  T* dy =
      (T*)((char*)scratch + align64(depthwise_plane_elements<S>(job.P, job.Q, job.stride_h,
                                                                job.stride_w, job.rows, job.cols) *
                                    sizeof(T)));
  T* sums = (T*)((char*)dy + align64((job.Q + kW<T>)*job.P * sizeof(T)));
  double* total = (double*)((char*)sums + align64(taps * L * sizeof(T)));
  const bool channels = job.K == 1 && job.xs[1] == 1 && job.dys[1] == 1;
  for (int64_t k = begin; k < end; k += channels ? L : 1) {
    const int64_t lanes = channels ? min64(L, end - k) : 1;
    zero(total, taps * L);
    for (int64_t n = 0; n < job.N; ++n) {
      zero(sums, taps * L);
      if (channels)
        depthwise_grad_channels<S>(job, n, k, lanes, sums);
      else
        depthwise_grad_planes<S>(job, plane, dy, n, k, sums);
      for (int64_t t = 0; t < taps; ++t)
        for (int64_t l = 0; l < lanes; ++l) total[t * L + l] += (double)sums[t * L + l];
    }
    for (int64_t l = 0; l < lanes; ++l)
      for (int64_t t = 0; t < taps; ++t)
        ((S*)job.dw)[(k + l) * taps + t] = Narrow<S>::from((T)total[t * L + l]);
  }
}

}  // namespace fastconv::FASTCONV_NS
