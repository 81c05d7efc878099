// Weight gradient of depthwise and narrow groups, vectors along channels (see grouped.inl):
//
//   dw[k, c, r, s] = sum over n, p, q of dy[n, k, p, q] * x[n, g * C + c, p', q']
//
// A run of taps of a row in registers, over as many pixels as a partial sum may have; those are
// added to the sums of an image in T, images in double.
namespace fastconv::FASTCONV_NS {

constexpr int kTapRun = kGroupedRuns;  // taps of a row in registers; longer rows are cut

struct GroupedGradScratch {
  int64_t totals, inputs, grads, total;  // bytes before each but the first
};

template <class T>
inline GroupedGradScratch grouped_grad_scratch(const WeightGrad& job, const GroupedBlocking& b) {
  constexpr int L = kPanel<T>;
  const int64_t sums = job.rows.count * job.cols.count * job.C * L;
  GroupedGradScratch s = {};
  s.totals = align64(sums * sizeof(T));
  s.inputs = s.totals + align64(sums * sizeof(double));
  const int64_t rows = min64(job.H, max64(slab_rows(b.rows, job.stride_h, job.rows), 0));
  s.grads = s.inputs + align64(rows * job.W * L * sizeof(T));
  s.total = s.grads + align64(b.rows * job.Q * L * sizeof(T));
  return s;
}

// A panel of channels of an image: rows [top, ...) of x and [p0, p0 + rows) of dy.
template <class T>
struct GroupedPixels {
  const T *x, *dy;  // of x its row 0, column 0, which may not exist
  int64_t x_row, x_col, dy_row, dy_col;
  int64_t p0, rows, lanes;
};

// sums[j][c][kPanel] += dy[p, q] * x[p * x_row + q * x_col + j * tap] of rows x count pixels, V
// vectors of channels, kTaps taps and kC input channels of a group from c0 on.
template <int kTaps, int kC, int V, class T>
__attribute__((noinline)) static void add_grads(const T* dy, int64_t dy_row, int64_t dy_col,
                                                const T* x, int64_t x_row, int64_t x_col,
                                                int64_t tap, int64_t rows, int64_t count,
                                                int64_t channels, int64_t c0, T* sums) {
  constexpr int W = kW<T>, L = kPanel<T>;
  const IVec<T> first = kC > 1 ? group_lanes<T>((int)channels) + (int)c0 : IVec<T>{};
  Vec<T> v[kTaps][kC][V] = {};
  for (int64_t p = 0; p < rows; ++p, dy += dy_row, x += x_row) {
    const T *d = dy, *from = x;
    for (int64_t q = 0; q < count; ++q, d += dy_col, from += x_col)
#pragma GCC unroll 2
      for (int h = 0; h < V; ++h) {
        const Vec<T> grad = load<T>(d + h * W);
#pragma GCC unroll 4
        for (int j = 0; j < kTaps; ++j) {
          const Vec<T> value = load<T>(from + j * tap + h * W);
          IVec<T> spread = first;
#pragma GCC unroll 4
          for (int c = 0; c < kC; ++c, spread += 1)
            fma<T>(v[j][c][h], grad, kC > 1 ? __builtin_shuffle(value, spread) : value);
        }
      }
  }
#pragma GCC unroll 4
  for (int j = 0; j < kTaps; ++j)
#pragma GCC unroll 4
    for (int c = 0; c < kC; ++c)
      for (int h = 0; h < V; ++h) {
        T* to = sums + (j * channels + c0 + c) * L + h * W;
        store<T>(to, load<T>(to) + v[j][c][h]);
      }
}

// What add_grads is given.
template <class T>
struct GradRun {
  const T *dy, *x;
  int64_t dy_row, dy_col, x_row, x_col, tap, rows, count;
};

template <int kTaps, class T>
inline void add_grads(const GradRun<T>& r, int64_t channels, int64_t lanes, T* sums) {
  constexpr int W = kW<T>;
  auto add = [&](auto kC, auto kV, int64_t half, int64_t c) {
    add_grads<kTaps, decltype(kC)::value, decltype(kV)::value, T>(
        r.dy + half, r.dy_row, r.dy_col, r.x + half, r.x_row, r.x_col, r.tap, r.rows, r.count,
        channels, c, sums + half);
  };
  const int kind = channels > 2 ? 3 : channels == 2 ? 2 : lanes > W;
  mark_grouped<T>(channels > 1, true, kind * kGroupedRuns + kTaps - 1);
  if (channels == 1) {
    if (lanes > W) return add(Constant<1>{}, Constant<2>{}, 0, 0);
    return add(Constant<1>{}, Constant<1>{}, 0, 0);
  }
  if constexpr (sizeof(T) == 4) {
    for (int64_t half = 0; half < lanes; half += W)
      for (int64_t c = 0; c < channels; c += 4)
        if (channels == 2)
          add(Constant<2>{}, Constant<1>{}, half, c);
        else
          add(Constant<4>{}, Constant<1>{}, half, c);
  }
}

template <class T>
inline void add_grads(int64_t taps, const GradRun<T>& r, int64_t channels, int64_t lanes, T* sums) {
  switch (taps) {
    case 1: return add_grads<1, T>(r, channels, lanes, sums);
    case 2: return add_grads<2, T>(r, channels, lanes, sums);
    case 3: return add_grads<3, T>(r, channels, lanes, sums);
    default: return add_grads<4, T>(r, channels, lanes, sums);
  }
}

// Outputs [first, last) of an axis whose tap at `offset` lies inside [0, size).
inline void outputs_inside(int64_t outputs, int64_t stride, int64_t offset, int64_t size,
                           int64_t& first, int64_t& last) {
  first = offset < 0 ? ceil_div(-offset, stride) : 0;
  last = size - offset <= 0 ? 0 : min64(outputs, ceil_div(size - offset, stride));
}

// sums[tap][c][kPanel] += of rows [p, p_end) and row i of the taps.
template <class T>
inline void grouped_grad_row(const WeightGrad& job, const GroupedPixels<T>& in, int64_t i,
                             int64_t p, int64_t p_end, T* sums) {
  constexpr int L = kPanel<T>;
  const int64_t step = job.cols.offset_step, h0 = job.rows.offset + i * job.rows.offset_step;
  int64_t p_first, p_last;
  outputs_inside(p_end, job.stride_h, h0, job.H, p_first, p_last);
  p = max64(p, p_first);
  const int64_t rows = p_last - p;
  if (rows <= 0) return;
  auto add = [&](int64_t j, int64_t taps, int64_t first, int64_t last) {
    if (first >= last) return;
    const int64_t w = first * job.stride_w + job.cols.offset + j * step;
    const GradRun<T> r = {in.dy + (p - in.p0) * in.dy_row + first * in.dy_col,
                          in.x + (p * job.stride_h + h0) * in.x_row + w * in.x_col,
                          in.dy_row,
                          in.dy_col,
                          job.stride_h * in.x_row,
                          job.stride_w * in.x_col,
                          step * in.x_col,
                          rows,
                          last - first};
    add_grads<T>(taps, r, job.C, in.lanes, sums + (i * job.cols.count + j) * job.C * L);
  };
  const int64_t run = even_share(job.cols.count, kTapRun);
  for (int64_t j0 = 0; j0 < job.cols.count; j0 += run) {
    const int64_t count = min64(run, job.cols.count - j0);
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

// Rows [p0, p0 + rows) of dy of an image and what they read of x, `lanes` channels from k0 on:
// where they lie, or transposed into scratch.
template <class S>
inline GroupedPixels<Compute<S>> grouped_pixels_of(const WeightGrad& job, const GroupedBlocking& b,
                                                   int64_t n, int64_t k0, int64_t lanes, int64_t p0,
                                                   Compute<S>* inputs, Compute<S>* grads) {
  typedef Compute<S> T;
  constexpr int L = kPanel<T>;
  const S* x = (const S*)job.x + n * job.xs[0] + k0 * job.xs[1];
  const S* dy = (const S*)job.dy + n * job.dys[0] + k0 * job.dys[1] + p0 * job.dys[2];
  const int64_t rows = min64(b.rows, job.P - p0);
  if constexpr (sizeof(S) == sizeof(T))
    if (b.in_place && lanes == L)
      return {x, dy, job.xs[2], job.xs[3], job.dys[2], job.dys[3], p0, rows, lanes};
  const int64_t origin = p0 * job.stride_h + job.rows.offset;
  const int64_t top = min64(max64(origin, 0), job.H);
  const int64_t bottom = max64(min64(origin + slab_rows(rows, job.stride_h, job.rows), job.H), top);
  pack_pixels<S>(inputs, x + top * job.xs[2], job.xs, bottom - top, job.W, lanes,
                 input_end<S>(job));
  const int64_t dy_size[4] = {job.N, job.G * job.K, job.P, job.Q};
  pack_pixels<S>(grads, dy, job.dys, rows, job.Q, lanes, end_of<S>(job.dy, dy_size, job.dys, 4));
  return {inputs - top * job.W * L, grads, job.W * L, L, job.Q * L, L, p0, rows, lanes};
}

// Tasks: panels of channels.
template <class S>
inline void grouped_grad_run(const WeightGrad& job, const GroupedBlocking& b, void* scratch,
                             int64_t begin, int64_t end) {
  typedef Compute<S> T;
  constexpr int L = kPanel<T>;
  const GroupedGradScratch s = grouped_grad_scratch<T>(job, b);
  T* sums = (T*)scratch;
  double* totals = (double*)((char*)scratch + s.totals);
  const int64_t taps = job.rows.count * job.cols.count, size = taps * job.C * L;
  const int64_t rows = max64(kSumPixels / max64(job.Q, 1), 1);  // of a partial sum
  for (int64_t panel = begin; panel < end; ++panel) {
    const int64_t k0 = panel * L, lanes = min64(L, job.G * job.K - k0);
    zero(totals, size);
    for (int64_t n = 0; n < job.N; ++n) {
      zero(sums, size);
      for (int64_t p0 = 0; p0 < job.P; p0 += b.rows) {
        const auto in =
            grouped_pixels_of<S>(job, b, n, k0, lanes, p0, (T*)((char*)scratch + s.inputs),
                                 (T*)((char*)scratch + s.grads));
        for (int64_t p = p0; p < p0 + in.rows; p += rows)
          for (int64_t i = 0; i < job.rows.count; ++i)
            grouped_grad_row<T>(job, in, i, p, min64(p + rows, p0 + in.rows), sums);
      }
      for (int64_t e = 0; e < size; ++e) totals[e] += (double)sums[e];
    }
    for (int64_t l = 0; l < lanes; ++l)
      for (int64_t c = 0; c < job.C; ++c)
        for (int64_t t = 0; t < taps; ++t)
          ((S*)job.dw)[((k0 + l) * job.C + c) * taps + t] =
              Narrow<S>::from((T)totals[(t * job.C + c) * L + l]);
  }
}

}  // namespace fastconv::FASTCONV_NS
