// Average pooling and its gradient: bound by memory.
//
// Channel-last: vectors along channels. Otherwise one plane at a time: the rows of a window are
// added into one row, whose columns are split by phase and added in turn; the gradient goes the
// other way.
namespace fastconv::FASTCONV_NS {

// A window's divisor. NOTE a vector's division takes as long as ten additions; the reciprocal of a
// power of two is exact, so there is one.
template <class T>
struct Divisor {
  T value, inverse;  // 0: none that is exact

  static Divisor make(double d) {
    const int64_t whole = (int64_t)d;
    return {(T)d, whole > 0 && (whole & (whole - 1)) == 0 ? T(1) / (T)d : T(0)};
  }
  FASTCONV_INLINE Vec<T> divide(Vec<T> total) const {
    return inverse != 0 ? total * inverse : total / value;
  }
};

// The means of U vectors of channels over rows x cols pixels; a partial sum is a row of a window.
template <class S, int U>
FASTCONV_INLINE void avg_window(const S* x, int64_t rows, int64_t row, int64_t cols, int64_t col,
                                Divisor<Compute<S>> divisor, int64_t lanes, S* y) {
  typedef Compute<S> T;
  constexpr int W = kW<T>;
  Vec<T> total[U] = {};
  for (int64_t r = 0; r < rows; ++r) {
    const S* from = x + r * row;
    Vec<T> part[U] = {};
    for (int64_t s = 0; s < cols; ++s, from += col)
      for (int u = 0; u < U; ++u) part[u] += load_lanes<S>(from + u * W, lanes);
    for (int u = 0; u < U; ++u) total[u] += part[u];
  }
  for (int u = 0; u < U; ++u) store_lanes<S>(y + u * W, divisor.divide(total[u]), lanes, 1);
}

template <class S>
inline void avg_channels(const PoolJob& j, int64_t n, int64_t p) {
  typedef Compute<S> T;
  constexpr int W = kW<T>, U = W < 8 ? 8 : 64 / W;  // 64 channels: pieces of whole lines, and few
  const Range h = window_of(j.p.rows, p);
  const int64_t counted = count_of(j.p, j.p.rows, p), C = j.p.C;
  for (int64_t q = 0; q < j.p.cols.out; ++q) {
    const Range w = window_of(j.p.cols, q);
    const auto divisor = Divisor<T>::make(divisor_of(j.p, counted, count_of(j.p, j.p.cols, q)));
    const S* x = at<S>(j.x, n, 0, h.first, w.first);
    S* y = at<S>(j.y, n, 0, p, q);
    const int64_t rows = h.last - h.first, cols = w.last - w.first;
    int64_t c = 0;
    for (; c + U * W <= C; c += U * W)
      avg_window<S, U>(x + c, rows, j.x.stride[2], cols, j.x.stride[3], divisor, W, y + c);
    by_vectors<W>(c, C, [&](int64_t at, int64_t lanes) {
      avg_window<S, 1>(x + at, rows, j.x.stride[2], cols, j.x.stride[3], divisor, lanes, y + at);
    });
  }
}

// A row of sums: of `count` rows of n elements, those `row` apart and these `step` apart.
template <class S>
FASTCONV_INLINE void sum_rows(Compute<S>* to, const S* x, int64_t count, int64_t row, int64_t n,
                              int64_t step) {
  typedef Compute<S> T;
  constexpr int W = kW<T>;
  int64_t i = 0;
  for (; step == 1 && i < n; i += W) {
    const int64_t lanes = min64(W, n - i);
    Vec<T> total = {};
    for (int64_t r = 0; r < count; ++r) total += load_lanes<S>(x + r * row + i, lanes);
    store_lanes<T>(to + i, total, lanes, 1);
  }
  for (; i < n; ++i) {
    T total = 0;
    for (int64_t r = 0; r < count; ++r) total += widen(x[r * row + i * step]);
    to[i] = total;
  }
}

// Scratch of a plane: rows of the input's side and of the output's, and what depends on a column
// only. Columns count from the padding on.
template <class T>
struct AvgPlane {
  Phases phases;
  int64_t left;    // zeros before a row of the output's side
  T* row;          // [columns + W] zero in the padding
  T* split;        // [phases.size() + W] row split by phase
  T* outer;        // [left + span + W] of the output's side, zeros around
  T* counted;      // [Q + W] the column's factor of the divisor
  double even;     // where it is the same for all columns; else 0
  Range* windows;  // [Q]
  int64_t total;   // bytes

  static AvgPlane make(const PoolProblem& p, void* scratch) {
    constexpr int W = kW<T>;
    const PoolAxis& a = p.cols;
    const int64_t stride = a.adaptive ? 1 : a.stride;
    const int64_t columns = a.adaptive ? a.in : max64((a.out - 1) * stride + a.k, a.pad + a.in);
    AvgPlane s;
    s.phases = {stride, ceil_div(columns, stride) + W};
    s.left = a.adaptive ? 0 : (a.k - 1) / stride;
    s.row = (T*)scratch;
    s.split = s.row + columns + W;
    s.outer = s.split + s.phases.size() + W;
    s.counted = s.outer + s.left + max64(s.phases.span, a.out) + W;
    s.windows = (Range*)((char*)scratch + align64((char*)(s.counted + a.out + W) - (char*)scratch));
    s.total = (char*)(s.windows + a.out) - (char*)scratch;
    return s;
  }

  void prepare(const PoolProblem& p) {
    zero(row, counted - row);
    for (int64_t q = 0; q < p.cols.out + kW<T>; ++q)
      counted[q] = q < p.cols.out ? (T)count_of(p, p.cols, q) : T(1);
    even = p.cols.out > 0 ? (double)counted[0] : 0;
    for (int64_t q = 0; q < p.cols.out; ++q) {
      windows[q] = window_of(p.cols, q);
      if (counted[q] != counted[0]) even = 0;
    }
  }

  // The divisors of columns q.. in a row of windows that counts `rows`.
  Vec<T> divisor(const PoolProblem& p, T rows, int64_t q) const {
    if (p.divisor) return broadcast<T>((T)p.divisor);
    const Vec<T> places = rows * load<T>(counted + q);
    return select<T>(places > 0, places, broadcast<T>(T(1)));
  }
};

// The mean of all of a dense plane.
inline bool whole_plane(const PoolJob& j) {
  return j.p.rows.adaptive && j.p.rows.out == 1 && j.p.cols.out == 1 && j.x.stride[3] == 1 &&
         j.x.stride[2] == j.p.cols.in;
}

template <class S>
inline void avg_plane(const PoolJob& j, const AvgPlane<Compute<S>>& a, int64_t n, int64_t c) {
  typedef Compute<S> T;
  constexpr int W = kW<T>;
  const PoolAxis &rows = j.p.rows, &cols = j.p.cols;
  if (whole_plane(j)) {
    const int64_t places = rows.in * cols.in;
    const T mean = (T)(sum_run<S>(at<S>(j.x, n, c, 0, 0), places) / (double)places);
    *at<S>(j.y, n, c, 0, 0) = Narrow<S>::from(mean);
    return;
  }
  T* row = a.row + (cols.adaptive ? 0 : cols.pad);
  T* split = a.phases.stride == 1 ? a.row : a.split;
  for (int64_t p = 0; p < rows.out; ++p) {
    const Range h = window_of(rows, p);
    const T counted = (T)count_of(j.p, rows, p);
    const auto even = Divisor<T>::make(j.p.divisor ? j.p.divisor : a.even * (double)counted);
    sum_rows<S>(row, at<S>(j.x, n, c, h.first, 0), h.last - h.first, j.x.stride[2], cols.in,
                j.x.stride[3]);
    if (cols.adaptive) {
      T* sums = a.outer;
      for (int64_t q = 0; q < cols.out; ++q) {
        T total = 0;
        for (int64_t s = a.windows[q].first; s < a.windows[q].last; ++s) total += row[s];
        sums[q] = total;
      }
    } else if (a.phases.stride > 1) {
      split_row<T>(a.phases, split, 0, a.row, cols.pad + cols.in, 1);
    }
    by_vectors<W>(0, cols.out, [&](int64_t q, int64_t lanes) {
      Vec<T> total = cols.adaptive ? load<T>(a.outer + q) : Vec<T>{};
      for (int64_t phase = 0; !cols.adaptive && phase < min64(cols.stride, cols.k); ++phase)
        for (int64_t s = phase, shift = 0; s < cols.k; s += cols.stride, ++shift)
          total += load<T>(split + phase * a.phases.span + shift + q);
      total = even.inverse != 0 ? total * even.inverse : total / a.divisor(j.p, counted, q);
      store_lanes<S>(at<S>(j.y, n, c, p, q), total, lanes, j.y.stride[3]);
    });
  }
}

// A row of a plane's windows, of which so many rows are inside: they are added first.
template <class S, int K, class Row>
FASTCONV_INLINE void avg_strips_row(const PoolJob& j, const AvgPlane<Compute<S>>& a,
                                    const Row& strips, const S* x, int64_t rows, S* y,
                                    Divisor<Compute<S>> even, int64_t counted) {
  typedef Compute<S> T;
  const int64_t x_row = j.x.stride[2];
  strips.each([&](const Strip<S>& strip, auto whole) __attribute__((always_inline)) {
    constexpr bool kWhole = decltype(whole)::value;
    const S* from = x + strip.column;
    StripRow<T> sum = strip.template read<K, kWhole>(from);
    for (int64_t r = 1; r < rows; ++r) {
      const StripRow<T> row = strip.template read<K, kWhole>(from + r * x_row);
      sum.low += row.low, sum.high += row.high;
      if (K == 3) sum.next += row.next;
    }
    Vec<T> tap[K];
    sum.taps(tap);
    Vec<T> total = tap[0] + tap[1];
    if constexpr (K == 3) total += tap[2];
    if (even.inverse != 0)
      total *= even.inverse;
    else
      total /= a.divisor(j.p, (T)counted, strip.q);
    store_lanes<S>(y + strip.q, total, kWhole ? kW<T> : strip.windows, 1);
  });
}

// `strips` by value: one strip lies in registers.
template <class S, int K, class Row>
inline void avg_strips_planes(const PoolJob& j, const AvgPlane<Compute<S>>& a, const Row strips,
                              int64_t begin, int64_t end) {
  const PoolAxis rows = j.p.rows;
  auto even = [&](int64_t counted) {
    return Divisor<Compute<S>>::make(j.p.divisor ? (double)j.p.divisor : a.even * counted);
  };
  const auto inside = even(K);
  const int64_t x_row = j.x.stride[2];
  for (int64_t t = begin; t < end; ++t) {
    const S* x = at<S>(j.x, t / j.p.C, t % j.p.C, 0, 0);
    S* y = at<S>(j.y, t / j.p.C, t % j.p.C, 0, 0);
    for (int64_t p = 0; p < rows.out; ++p, y += j.y.stride[2]) {
      const int64_t top = p * 2 - rows.pad;
      if (top >= 0 && top + K <= rows.in) {
        avg_strips_row<S, K>(j, a, strips, x + top * x_row, K, y, inside, K);
        continue;
      }
      const Range h = window_of(rows, p);
      const int64_t counted = count_of(j.p, rows, p);
      avg_strips_row<S, K>(j, a, strips, x + h.first * x_row, h.last - h.first, y, even(counted),
                           counted);
    }
  }
}

template <class S, int K>
inline void avg_strips(const PoolJob& j, void* scratch, int64_t begin, int64_t end) {
  AvgPlane<Compute<S>> plane = AvgPlane<Compute<S>>::make(j.p, scratch);
  plane.prepare(j.p);
  const Strips<S> strips(j.p.cols, 0, (char*)scratch + align64(plane.total));
  strips.use([&](const auto& row) { avg_strips_planes<S, K>(j, plane, row, begin, end); });
}

template <class S>
inline void avg_pool_run(const PoolJob& j, void* scratch, int64_t begin, int64_t end) {
  if (pool_channels(j)) {
    for (int64_t t = begin; t < end; ++t) avg_channels<S>(j, t / j.p.rows.out, t % j.p.rows.out);
    return;
  }
  if (in_strips(j)) {
    if (j.p.cols.k == 2) return avg_strips<S, 2>(j, scratch, begin, end);
    return avg_strips<S, 3>(j, scratch, begin, end);
  }
  AvgPlane<Compute<S>> plane = AvgPlane<Compute<S>>::make(j.p, scratch);
  plane.prepare(j.p);
  for (int64_t t = begin; t < end; ++t) avg_plane<S>(j, plane, t / j.p.C, t % j.p.C);
}

// A row of dx, split by phase, from the windows' rows that hold it.
template <class S>
inline void avg_grad_row(const PoolJob& j, const AvgPlane<Compute<S>>& a, const Reader* first,
                         const Reader* last, int64_t n, int64_t c) {
  typedef Compute<S> T;
  constexpr int W = kW<T>;
  const PoolAxis& cols = j.p.cols;
  T* spread = a.outer + a.left;
  by_vectors<W>(0, cols.out, [&](int64_t q, int64_t lanes) {
    Vec<T> sum = {};
    for (const Reader* r = first; r < last; ++r) {
      const S* dy = at<S>(j.y, n, c, r->out, q);
      T buffer[W] = {};
      if (j.y.stride[3] != 1) widen_row<S>(buffer, dy, lanes, j.y.stride[3]);
      const Vec<T> v = j.y.stride[3] == 1 ? load_lanes<S>(dy, lanes) : load<T>(buffer);
      sum += v / a.divisor(j.p, (T)count_of(j.p, j.p.rows, r->out), q);
    }
    store_lanes<T>(spread + q, sum, lanes, 1);
  });
  if (cols.adaptive) {
    zero(a.split, cols.in);
    for (int64_t q = 0; q < cols.out; ++q)
      for (int64_t s = a.windows[q].first; s < a.windows[q].last; ++s) a.split[s] += spread[q];
    return;
  }
  for (int64_t phase = 0; phase < a.phases.stride; ++phase)
    for (int64_t m = 0; m < a.phases.span; m += W) {
      Vec<T> sum = {};
      for (int64_t s = phase, shift = 0; s < cols.k; s += a.phases.stride, ++shift)
        sum += load<T>(spread + m - shift);
      store_lanes<T>(a.split + phase * a.phases.span + m, sum, min64(W, a.phases.span - m), 1);
    }
}

template <class S>
inline void avg_grad_plane(const PoolJob& j, const AvgPlane<Compute<S>>& a, const Readers& rows,
                           int64_t n, int64_t c) {
  typedef Compute<S> T;
  const PoolAxis& cols = j.p.cols;
  if (whole_plane(j)) {
    const int64_t places = j.p.rows.in * cols.in;
    S value[kW<T>], *dx = at<S>(j.x, n, c, 0, 0);
    store_narrowed<S>(value, broadcast<T>(widen(*at<S>(j.y, n, c, 0, 0)) / (T)places));
    by_vectors<kW<T>>(0, places, [&](int64_t i, int64_t lanes) {
      __builtin_memcpy(dx + i, value, lanes * sizeof(S));
    });
    return;
  }
  const int64_t pad = cols.adaptive ? 0 : cols.pad;
  for (int64_t h = 0; h < j.p.rows.in; ++h) {
    if (h == 0 || !rows.same(h)) avg_grad_row<S>(j, a, rows.begin(h), rows.end(h), n, c);
    join_row<S>(a.phases, a.split, pad, at<S>(j.x, n, c, h, 0), cols.in, j.x.stride[3]);
  }
}

template <class S>
inline void avg_pool_grad_run(const PoolJob& j, void* scratch, int64_t begin, int64_t end) {
  if (pool_channels(j)) return grad_channels<S, uint8_t, false>(j, scratch, begin, end);
  const Readers rows = Readers::make(j.p, j.p.rows, scratch);
  AvgPlane<Compute<S>> plane =
      AvgPlane<Compute<S>>::make(j.p, (char*)scratch + align64(Readers::bytes(j.p.rows)));
  plane.prepare(j.p);
  for (int64_t t = begin; t < end; ++t) avg_grad_plane<S>(j, plane, rows, t / j.p.C, t % j.p.C);
}

}  // namespace fastconv::FASTCONV_NS
