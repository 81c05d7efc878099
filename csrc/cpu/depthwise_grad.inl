// Depthwise weight gradient, dw[k, r, s] = sum over n, p, q of dy[n, k, p, q] * x[n, g, p', q'], by
// planes (depthwise.inl): a row of taps at a time, in registers, vectors along the columns. Sums of
// an image are in T, images are added in double.
namespace fastconv::FASTCONV_NS {

template <class S>
inline int64_t depthwise_weight_grad_scratch(const WeightGrad& job) {
  typedef Compute<S> T;
  const int64_t taps = job.rows.count * job.cols.count;
  const int64_t plane =
      depthwise_plane_elements<S>(job.P, job.Q, job.stride_h, job.stride_w, job.rows, job.cols);
  return align64(plane * sizeof(T)) + align64((job.Q + kW<T>)*job.P * sizeof(T)) +
         align64(taps * kPanel<T> * sizeof(T)) + align64(taps * sizeof(double));
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
  for (int64_t k = begin; k < end; ++k) {
    zero(total, taps);
    for (int64_t n = 0; n < job.N; ++n) {
      zero(sums, taps * L);
      depthwise_grad_planes<S>(job, plane, dy, n, k, sums);
      for (int64_t t = 0; t < taps; ++t) total[t] += (double)sums[t * L];
    }
    for (int64_t t = 0; t < taps; ++t) ((S*)job.dw)[k * taps + t] = Narrow<S>::from((T)total[t]);
  }
}

}  // namespace fastconv::FASTCONV_NS
