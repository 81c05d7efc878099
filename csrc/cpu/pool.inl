// Max and average pooling: bound by memory.
//
// Channel-last: vectors along channels, windows clipped at the edges. Otherwise one plane at a
// time. Max: the rows a window needs live in a ring, padded with -inf and split by column phase
// (column mod stride), so that every tap of a row of outputs is one contiguous vector stream.
// Average: the window's rows are added into one row, then its columns from that row.
namespace fastconv::FASTCONV_NS {

template <class S>
FASTCONV_INLINE S* at(const View& v, int64_t n, int64_t c, int64_t h, int64_t w) {
  return (S*)v.data + n * v.stride[0] + c * v.stride[1] + h * v.stride[2] + w * v.stride[3];
}

struct Range {
  int64_t first, last;  // [first, last)
};

// Taps of the window that starts at `origin` which fall inside [0, in).
inline Range taps_inside(const PoolAxis& a, int64_t origin) {
  Range t;
  t.first = origin < 0 ? ceil_div(-origin, a.dil) : 0;
  t.last = origin < a.in ? min64(a.k, ceil_div(a.in - origin, a.dil)) : 0;
  if (t.last < t.first) t.last = t.first;
  return t;
}

// Places of an average's window inside [0, in).
inline Range window_of(const PoolAxis& a, int64_t p) {
  if (a.adaptive) return {p * a.in / a.out, ceil_div((p + 1) * a.in, a.out)};
  const int64_t origin = p * a.stride - a.pad;
  const int64_t first = min64(max64(origin, 0), a.in);
  return {first, max64(min64(origin + a.k, a.in), first)};
}

// An axis' factor of the divisor.
inline int64_t count_of(const PoolProblem& p, const PoolAxis& a, int64_t i) {
  const Range w = window_of(a, i);
  if (a.adaptive || !p.count_include_pad) return w.last - w.first;
  const int64_t origin = i * a.stride - a.pad;
  return min64(origin + a.k, a.in + a.pad) - origin;
}

inline double divisor_of(const PoolProblem& p, int64_t rows, int64_t cols) {
  return p.divisor ? p.divisor : max64(rows * cols, 1);  // an empty window's sum is 0
}

template <class T>
struct TapInt {
  typedef int32_t type;
};
template <>
struct TapInt<double> {
  typedef int64_t type;
};

// Tap numbers r * S + s of `lanes` outputs, as the caller wants them: output i is `step` elements
// and `dq` columns after the one before.
template <class I>
inline void store_taps(const PoolJob& j, int64_t to, int64_t step, const I* taps, int64_t lanes,
                       int64_t p, int64_t q, int64_t dq) {
  const PoolAxis &rows = j.p.rows, &cols = j.p.cols;
  if (j.index_type == IndexType::window8) {
    uint8_t* out = (uint8_t*)j.index.data + to;
    for (int64_t i = 0; i < lanes; ++i) out[i * step] = (uint8_t)taps[i];
  } else if (j.index_type == IndexType::window32) {
    int32_t* out = (int32_t*)j.index.data + to;
    for (int64_t i = 0; i < lanes; ++i) out[i * step] = (int32_t)taps[i];
  } else {
    int64_t* out = (int64_t*)j.index.data + to;
    const int64_t h0 = p * rows.stride - rows.pad, w0 = q * cols.stride - cols.pad;
    for (int64_t i = 0; i < lanes; ++i)
      out[i * step] = (h0 + taps[i] / cols.k * rows.dil) * cols.in + w0 + i * dq * cols.stride +
                      taps[i] % cols.k * cols.dil;
  }
}

// The running maximum: the first of equals wins, and any NaN.
template <class T, bool kIndex>
FASTCONV_INLINE void maximum(Vec<T>& best, IVec<T>& place, Vec<T> v, int64_t tap) {
  const IVec<T> wins = (v > best) | (v != v);
  best = select<T>(wins, v, best);
  if constexpr (kIndex) place = wins ? IVec<T>{} + (typename TapInt<T>::type)tap : place;
}

template <class S>
FASTCONV_INLINE Vec<Compute<S>> load_lanes(const S* p, int64_t lanes) {
  typedef Compute<S> T;
  if (lanes == kW<T>) return load_widened<S>(p);
  T buffer[kW<T>] = {};
  widen_row<S>(buffer, p, lanes, 1);
  return load<T>(buffer);
}

template <class S, bool kIndex>
inline void max_channels(const PoolJob& j, int64_t n, int64_t p) {
  typedef Compute<S> T;
  constexpr int W = kW<T>;
  const PoolAxis &rows = j.p.rows, &cols = j.p.cols;
  const int64_t h0 = p * rows.stride - rows.pad;
  const Range r = taps_inside(rows, h0);
  for (int64_t q = 0; q < cols.out; ++q) {
    const int64_t w0 = q * cols.stride - cols.pad;
    const Range s = taps_inside(cols, w0);
    S* y = at<S>(j.y, n, 0, p, q);
    for (int64_t c = 0; c < j.p.C; c += W) {
      if (c + W > j.p.C && j.p.C > W) c = j.p.C - W;  // the last vector overlaps the one before
      const int64_t lanes = min64(W, j.p.C - c);
      Vec<T> best = broadcast<T>(-__builtin_inff());
      IVec<T> place = IVec<T>{} + (typename TapInt<T>::type)(r.first * cols.k + s.first);
      for (int64_t i = r.first; i < r.last; ++i)
        for (int64_t k = s.first; k < s.last; ++k)
          maximum<T, kIndex>(
              best, place,
              load_lanes<S>(at<S>(j.x, n, c, h0 + i * rows.dil, w0 + k * cols.dil), lanes),
              i * cols.k + k);
      store_lanes<S>(y + c, best, lanes, 1);
      if constexpr (kIndex) {
        typename TapInt<T>::type taps[W];
        __builtin_memcpy(taps, &place, sizeof place);
        store_taps(j, at<char>(j.index, n, c, p, q) - (char*)j.index.data, 1, taps, lanes, p, q, 0);
      }
    }
  }
}

// Scratch of a plane's max pooling: the ring of rows, and what depends on a column only.
template <class T>
struct MaxRing {
  typedef typename TapInt<T>::type Int;
  int64_t slots, span, row;  // rows held; elements of a phase and of a row
  T* data;
  int64_t* offset;  // [S] where tap s of output 0 lies in a row
  Int* first;       // [Q + W] the first tap inside the input

  static MaxRing make(const PoolProblem& p, void* scratch, int64_t& bytes) {
    MaxRing m;
    constexpr int W = kW<T>;
    const int64_t columns = (p.cols.out - 1) * p.cols.stride + (p.cols.k - 1) * p.cols.dil + 1;
    m.slots = (p.rows.k - 1) * p.rows.dil + 1;
    m.span = ceil_div(columns, p.cols.stride) + W;
    m.row = m.span * p.cols.stride;
    m.data = (T*)scratch;
    m.offset = (int64_t*)((char*)scratch + align64((m.slots * m.row + W) * sizeof(T)));
    m.first = (Int*)((char*)m.offset + align64(p.cols.k * sizeof(int64_t)));
    bytes = (char*)(m.first + p.cols.out + W) - (char*)scratch;
    return m;
  }

  void prepare(const PoolAxis& cols) {
    for (int64_t i = 0; i < slots * row; ++i) data[i] = -__builtin_inff();
    for (int64_t s = 0; s < cols.k; ++s)
      offset[s] = s * cols.dil % cols.stride * span + s * cols.dil / cols.stride;
    for (int64_t q = 0; q < cols.out; ++q)
      first[q] = (Int)taps_inside(cols, q * cols.stride - cols.pad).first;
  }

  // Row h of a plane into its slot. The padding around it is written once, by prepare.
  template <class S>
  void fill(const S* x, int64_t step, int64_t h, const PoolAxis& cols) {
    T* to = data + h % slots * row;
    const int64_t stride = cols.stride, used = min64(cols.pad + cols.in, span * stride);
    if (stride == 2 && step == 1) {
      const int64_t pairs = (used - cols.pad) / 2;
      T* __restrict even = to + cols.pad % 2 * span + cols.pad / 2;
      T* __restrict odd = to + (cols.pad + 1) % 2 * span + (cols.pad + 1) / 2;
      for (int64_t i = 0; i < pairs; ++i) even[i] = widen(x[2 * i]), odd[i] = widen(x[2 * i + 1]);
      if ((used - cols.pad) % 2) even[pairs] = widen(x[2 * pairs]);
      return;
    }
    for (int64_t w = cols.pad; w < min64(cols.pad + stride, used); ++w)
      widen_row<S>(to + w % stride * span + w / stride, x + (w - cols.pad) * step,
                   ceil_div(used - w, stride), step * stride);
  }
};

template <class S, bool kIndex>
inline void max_plane(const PoolJob& j, MaxRing<Compute<S>>& ring, int64_t n, int64_t c) {
  typedef Compute<S> T;
  constexpr int W = kW<T>;
  const PoolAxis &rows = j.p.rows, &cols = j.p.cols;
  int64_t next = 0;  // the first row not in the ring yet
  for (int64_t p = 0; p < rows.out; ++p) {
    const int64_t h0 = p * rows.stride - rows.pad;
    const Range r = taps_inside(rows, h0);
    for (next = max64(next, h0); r.first < r.last && next <= h0 + (r.last - 1) * rows.dil; ++next)
      ring.fill(at<S>(j.x, n, c, next, 0), j.x.stride[3], next, cols);
    for (int64_t q = 0; q < cols.out; q += W) {
      Vec<T> best = broadcast<T>(-__builtin_inff());
      IVec<T> place = {};
      if constexpr (kIndex) {
        __builtin_memcpy(&place, ring.first + q, sizeof place);
        place += (typename TapInt<T>::type)(r.first * cols.k);
      }
      int64_t slot = (h0 + r.first * rows.dil) % ring.slots;
      for (int64_t i = r.first; i < r.last; ++i) {
        const T* row = ring.data + slot * ring.row + q;
        for (int64_t s = 0; s < cols.k; ++s)
          maximum<T, kIndex>(best, place, load<T>(row + ring.offset[s]), i * cols.k + s);
        slot += rows.dil;
        if (slot >= ring.slots) slot -= ring.slots;
      }
      const int64_t lanes = min64(W, cols.out - q);
      store_lanes<S>(at<S>(j.y, n, c, p, q), best, lanes, j.y.stride[3]);
      if constexpr (kIndex) {
        typename TapInt<T>::type taps[W];
        __builtin_memcpy(taps, &place, sizeof place);
        store_taps(j, at<char>(j.index, n, c, p, q) - (char*)j.index.data, j.index.stride[3], taps,
                   lanes, p, q, 1);
      }
    }
  }
}

template <class S, bool kIndex>
inline void max_pool(const PoolJob& j, void* scratch, int64_t begin, int64_t end) {
  if (pool_channels(j)) {
    for (int64_t t = begin; t < end; ++t)
      max_channels<S, kIndex>(j, t / j.p.rows.out, t % j.p.rows.out);
    return;
  }
  int64_t bytes;
  MaxRing<Compute<S>> ring = MaxRing<Compute<S>>::make(j.p, scratch, bytes);
  ring.prepare(j.p.cols);
  for (int64_t t = begin; t < end; ++t) max_plane<S, kIndex>(j, ring, t / j.p.C, t % j.p.C);
}

template <class S>
inline void max_pool_run(const PoolJob& j, void* scratch, int64_t begin, int64_t end) {
  if (j.index_type == IndexType::none) return max_pool<S, false>(j, scratch, begin, end);
  max_pool<S, true>(j, scratch, begin, end);
}

// sum of n consecutive elements in four vectors of partial sums
template <class S>
inline Compute<S> sum_dense(const S* x, int64_t n) {
  typedef Compute<S> T;
  constexpr int W = kW<T>;
  Vec<T> v[4] = {};
  int64_t i = 0;
  for (; i + 4 * W <= n; i += 4 * W)
    for (int k = 0; k < 4; ++k) v[k] += load_widened<S>(x + i + k * W);
  T total = sum<T>((v[0] + v[1]) + (v[2] + v[3]));
  for (; i < n; ++i) total += widen(x[i]);
  return total;
}

// to[i] += x[i * step]
template <class S>
FASTCONV_INLINE void add_row(Compute<S>* __restrict to, const S* __restrict x, int64_t n,
                             int64_t step) {
  if (step == 1)
    for (int64_t i = 0; i < n; ++i) to[i] += widen(x[i]);
  else
    for (int64_t i = 0; i < n; ++i) to[i] += widen(x[i * step]);
}

// Sums of a window row by row, so that no partial sum takes more than a row of terms.
template <class S>
inline void avg_channels(const PoolJob& j, void* scratch, int64_t n, int64_t p) {
  typedef Compute<S> T;
  const int64_t C = j.p.C;
  T *total = (T*)scratch, *part = total + C;
  const Range h = window_of(j.p.rows, p);
  const int64_t counted = count_of(j.p, j.p.rows, p);
  for (int64_t q = 0; q < j.p.cols.out; ++q) {
    const Range w = window_of(j.p.cols, q);
    const bool by_rows = w.last - w.first > 8;
    T* to = by_rows ? part : total;
    zero(total, C);
    for (int64_t r = h.first; r < h.last; ++r) {
      if (by_rows) zero(part, C);
      for (int64_t s = w.first; s < w.last; ++s) add_row<S>(to, at<S>(j.x, n, 0, r, s), C, 1);
      if (by_rows) add_row<T>(total, part, C, 1);
    }
    const T divisor = (T)divisor_of(j.p, counted, count_of(j.p, j.p.cols, q));
    S* y = at<S>(j.y, n, 0, p, q);
    for (int64_t c = 0; c < C; ++c) y[c] = Narrow<S>::from(total[c] / divisor);
  }
}

// Scratch of a plane's average: a row of the input, and what depends on a column only.
template <class T>
struct AvgColumns {
  T* row;          // [W]
  T* counted;      // [Q] the column's factor of the divisor
  Range* windows;  // [Q]

  static AvgColumns make(const PoolProblem& p, void* scratch) {
    AvgColumns a;
    a.windows = (Range*)scratch;
    a.row = (T*)(a.windows + p.cols.out);
    a.counted = a.row + p.cols.in;
    return a;
  }
  static int64_t bytes(const PoolProblem& p) {
    return p.cols.out * (sizeof(Range) + sizeof(T)) + p.cols.in * sizeof(T);
  }

  void prepare(const PoolProblem& p) {
    for (int64_t q = 0; q < p.cols.out; ++q) {
      windows[q] = window_of(p.cols, q);
      counted[q] = (T)count_of(p, p.cols, q);
    }
  }

  // The divisor of column q in a row of windows that counts `rows`.
  T divisor(const PoolProblem& p, T rows, int64_t q) const {
    if (p.divisor) return (T)p.divisor;
    const T places = rows * counted[q];
    return places > 0 ? places : T(1);
  }
};

template <class S>
inline void avg_plane(const PoolJob& j, AvgColumns<Compute<S>>& a, int64_t n, int64_t c) {
  typedef Compute<S> T;
  const PoolAxis &rows = j.p.rows, &cols = j.p.cols;
  const bool dense = j.x.stride[3] == 1 && j.x.stride[2] == cols.in;
  if (rows.adaptive && rows.out == 1 && cols.out == 1 && dense) {
    const int64_t places = rows.in * cols.in;
    const T mean = sum_dense<S>(at<S>(j.x, n, c, 0, 0), places) / (T)places;
    *at<S>(j.y, n, c, 0, 0) = Narrow<S>::from(mean);
    return;
  }
  for (int64_t p = 0; p < rows.out; ++p) {
    const Range h = window_of(rows, p);
    const T counted = (T)count_of(j.p, rows, p);
    zero(a.row, cols.in);
    for (int64_t r = h.first; r < h.last; ++r)
      add_row<S>(a.row, at<S>(j.x, n, c, r, 0), cols.in, j.x.stride[3]);
    for (int64_t q = 0; q < cols.out; ++q) {
      const Range w = a.windows[q];
      T total = 0;
      for (int64_t s = w.first; s < w.last; ++s) total += a.row[s];
      *at<S>(j.y, n, c, p, q) = Narrow<S>::from(total / a.divisor(j.p, counted, q));
    }
  }
}

template <class S>
inline void avg_pool_run(const PoolJob& j, void* scratch, int64_t begin, int64_t end) {
  if (pool_channels(j)) {
    for (int64_t t = begin; t < end; ++t)
      avg_channels<S>(j, scratch, t / j.p.rows.out, t % j.p.rows.out);
    return;
  }
  AvgColumns<Compute<S>> columns = AvgColumns<Compute<S>>::make(j.p, scratch);
  columns.prepare(j.p);
  for (int64_t t = begin; t < end; ++t) avg_plane<S>(j, columns, t / j.p.C, t % j.p.C);
}

}  // namespace fastconv::FASTCONV_NS
