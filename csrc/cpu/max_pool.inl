// Max pooling: bound by memory. Its gradient: max_pool_grad.inl.
//
// Channel-last: vectors along channels, windows clipped at the edges; max_slide.inl has the usual
// windows. Otherwise one plane at a
// time: the rows of a band of outputs are copied, padded with -inf and split by column phase
// (column mod stride), so that every tap of a row of outputs is one contiguous vector stream.
namespace fastconv::FASTCONV_NS {

template <class T>
struct TapInt {
  typedef int32_t type;
};
template <>
struct TapInt<double> {
  typedef int64_t type;
};

// How a row of outputs reads and what it writes. Tap (r, s) of output element i is
// x[i + r * row + col[s]]; its place is r * down + s * right, counted from its window's first tap.
template <class S, class E>
struct MaxRow {
  const E* x;
  int64_t row;
  int64_t* col;         // [S]
  Range rows;           // those inside
  int64_t down, right;  // in the window or, where the index counts in the plane, there
  S* y;
  char* index;
  int64_t origin, step;  // of window 0 in the plane, and of the windows after it

  static MaxRow make(const PoolJob& j, void* scratch) {
    const bool plane = j.index_type == IndexType::flat64;
    MaxRow m = {};
    m.col = (int64_t*)scratch;
    m.down = plane ? j.p.rows.dil * j.p.cols.in : j.p.cols.k;
    m.right = plane ? j.p.cols.dil : 1;
    m.step = j.p.cols.stride;
    return m;
  }

  // Row p of an image's or a plane's outputs.
  FASTCONV_INLINE void start(const PoolJob& j, int64_t n, int64_t c, int64_t p) {
    const int64_t h0 = p * j.p.rows.stride - j.p.rows.pad;
    rows = taps_inside(j.p.rows, h0);
    y = at<S>(j.y, n, c, p, 0);
    index = at<char>(j.index, n, c, p, 0);  // in elements
    origin = h0 * j.p.cols.in - j.p.cols.pad;
  }
};

// U vectors of maxima from element `at` on over the columns `s` of the windows; kS: their number
// where it is known. `place` comes as the first column's. What was read is added to `seen`, which
// shows a NaN that way.
template <class S, class E, bool kIndex, bool kExact, int U, int kS, class P>
FASTCONV_INLINE void max_vectors(const MaxRow<S, E>& m, Range s, int64_t at, int64_t lanes,
                                 Vec<Compute<E>> (&best)[U], P (&place)[U], Vec<Compute<E>>& seen) {
  typedef Compute<E> T;
  constexpr int W = kW<T>;
  Vec<T> read[U] = {};
  const E* from = m.x + at + m.rows.first * m.row;
  int64_t down = m.rows.first * m.down;
  for (int u = 0; u < U; ++u) {
    best[u] = broadcast<T>(-__builtin_inff());
    place[u] += all_places<P>(down);
  }
  auto tap = [&](int64_t k) {
    for (int u = 0; u < U; ++u) {
      Vec<T> v = load_lanes<E>(from + m.col[k] + u * W, lanes);
      opaque<T>(v);  // GCC would load it twice
      if constexpr (!kExact) read[u] += v;
      maximum<kIndex, kExact>(best[u], place[u], v, all_places<P>(down + k * m.right));
    }
  };
  for (int64_t r = m.rows.first; r < m.rows.last; ++r, from += m.row, down += m.down) {
    if constexpr (kS) {
#pragma GCC unroll 8
      for (int k = 0; k < kS; ++k) tap(k);
    } else {
      for (int64_t k = s.first; k < s.last; ++k) tap(k);
    }
  }
  for (int u = 0; u < U; ++u) seen += read[u];
}

template <class S, bool kIndex, bool kExact, int U, class P>
FASTCONV_INLINE void max_pixel(const PoolJob& j, const MaxRow<S, S>& m, Range s, int64_t q,
                               int64_t c, int64_t lanes, Vec<Compute<S>>& seen) {
  typedef Compute<S> T;
  constexpr int W = kW<T>;
  Vec<T> best[U];
  P place[U];
  for (int u = 0; u < U; ++u) place[u] = all_places<P>(s.first * m.right);
  const int64_t w0 = q * j.p.cols.stride - j.p.cols.pad;
  max_vectors<S, S, kIndex, kExact, U, 0>(m, s, w0 * j.x.stride[3] + c, lanes, best, place, seen);
  S* y = m.y + q * j.y.stride[3] + c;
  const int64_t to = m.index - (char*)j.index.data + q * j.index.stride[3] + c;
  for (int u = 0; u < U; ++u) {
    store_lanes<S>(y + u * W, best[u], lanes, 1);
    if constexpr (kIndex)
      store_places<T>(j, to + u * W, 1, place[u], lanes, m.origin + q * m.step, 0);
  }
}

// A row of an image's outputs, channel-last; false where a NaN was read (or infinities of both
// signs) and the maxima are the numbers' only.
template <class S, bool kIndex, class P, bool kExact>
inline bool max_channels(const PoolJob& j, const MaxRow<S, S>& m) {
  typedef Compute<S> T;
  constexpr int W = kW<T>, U = 4;
  const PoolAxis& cols = j.p.cols;
  Vec<T> seen = {};
  for (int64_t q = 0; q < cols.out; ++q) {
    const Range s = taps_inside(cols, q * cols.stride - cols.pad);
    int64_t c = 0;
    for (; c + U * W <= j.p.C; c += U * W)
      max_pixel<S, kIndex, kExact, U, P>(j, m, s, q, c, W, seen);
    by_vectors<W>(c, j.p.C, [&](int64_t from, int64_t lanes) {
      max_pixel<S, kIndex, kExact, 1, P>(j, m, s, q, from, lanes, seen);
    });
  }
  return !has_nan<T>(seen);
}

// Scratch of a plane's max pooling: the rows of a band of outputs, split, and what depends on a
// column only. Columns count from the padding on.
template <class T>
struct MaxBand {
  typedef typename TapInt<T>::type Int;
  Phases phases;
  int64_t rows;        // of outputs
  int64_t held, size;  // rows of inputs; elements of one
  T* data;
  Int* first;  // [Q + W] the first tap inside the input

  static MaxBand make(const PoolProblem& p, void* scratch, int64_t& bytes) {
    MaxBand m;
    constexpr int W = kW<T>;
    const int64_t columns = max64(
        (p.cols.out - 1) * p.cols.stride + (p.cols.k - 1) * p.cols.dil + 1, p.cols.pad + p.cols.in);
    m.phases = {p.cols.stride, ceil_div(ceil_div(columns, p.cols.stride) + W, W) * W};
    m.size = m.phases.size();
    const int64_t extent = (p.rows.k - 1) * p.rows.dil + 1;
    m.rows = kBandBytes / (m.size * sizeof(T) * p.rows.stride);
    m.rows = max64(m.rows, ceil_div(extent, p.rows.stride));  // what two bands share is split twice
    m.rows = min64(m.rows, p.rows.out);
    m.held = (m.rows - 1) * p.rows.stride + extent;
    m.data = (T*)scratch;
    m.first = (Int*)((char*)scratch + align64((m.held * m.size + W) * sizeof(T)));
    bytes = (char*)(m.first + p.cols.out + W) - (char*)scratch;
    return m;
  }

  void prepare(const PoolAxis& cols, int64_t* col, int64_t right) {
    for (int64_t i = 0; i < held * size + kW<T>; ++i) data[i] = -__builtin_inff();
    for (int64_t s = 0; s < cols.k; ++s) col[s] = phases.at(s * cols.dil);
    for (int64_t q = 0; q < cols.out + kW<T>; ++q)
      first[q] =
          q < cols.out ? (Int)(taps_inside(cols, q * cols.stride - cols.pad).first * right) : 0;
  }
};

template <class S, bool kIndex, bool kExact, int U, int kS>
FASTCONV_INLINE void max_columns(const PoolJob& j, const MaxRow<S, Compute<S>>& m,
                                 const typename TapInt<Compute<S>>::type* first, int64_t q,
                                 int64_t lanes, Vec<Compute<S>>& seen) {
  typedef Compute<S> T;
  constexpr int W = kW<T>;
  Vec<T> best[U];
  IVec<T> place[U] = {};
  for (int u = 0; u < U; ++u)
    if constexpr (kIndex) __builtin_memcpy(&place[u], first + q + u * W, sizeof place[u]);
  max_vectors<S, T, kIndex, kExact, U, kS>(m, {0, j.p.cols.k}, q, W, best, place, seen);
  for (int u = 0; u < U; ++u) {
    const int64_t i = q + u * W;
    store_lanes<S>(m.y + i * j.y.stride[3], best[u], lanes, j.y.stride[3]);
    if constexpr (kIndex)
      store_places<T>(j, m.index - (char*)j.index.data + i * j.index.stride[3], j.index.stride[3],
                      place[u], lanes, m.origin + i * m.step, m.step);
  }
}

// A plane's outputs; what it returns is max_channels'.
template <class S, bool kIndex, bool kExact, int kS>
inline bool max_plane(const PoolJob& j, const MaxBand<Compute<S>>& band, MaxRow<S, Compute<S>>& m,
                      int64_t n, int64_t c) {
  typedef Compute<S> T;
  constexpr int W = kW<T>, U = 2;
  const PoolAxis &rows = j.p.rows, &cols = j.p.cols;
  const int64_t Q = cols.out;
  Vec<T> seen = {};
  for (int64_t p = 0; p < rows.out; p += band.rows) {
    const int64_t top = p * rows.stride - rows.pad;
    // The padding around a row is written once, by prepare.
    for (int64_t h = max64(top, 0); h < min64(top + band.held, rows.in); ++h)
      split_row<S>(band.phases, band.data + (h - top) * band.size, cols.pad, at<S>(j.x, n, c, h, 0),
                   cols.in, j.x.stride[3]);
    m.x = band.data;
    for (int64_t i = p; i < min64(p + band.rows, rows.out); ++i) {
      m.start(j, n, c, i);
      prefetch_row(at<S>(j.x, n, c, top + band.held + (i - p) * rows.stride, 0),
                   rows.stride * j.x.stride[2]);
      int64_t q = 0;
      for (; q + U * W <= Q; q += U * W)
        max_columns<S, kIndex, kExact, U, kS>(j, m, band.first, q, W, seen);
      const int64_t last = kMasks ? Q : max64(Q - W, 0);  // without masks the last one overlaps
      for (; q < Q; q += W) {
        const int64_t from = min64(q, last);
        max_columns<S, kIndex, kExact, 1, kS>(j, m, band.first, from, min64(W, Q - from), seen);
      }
      m.x += rows.stride * band.size;
    }
  }
  return !has_nan<T>(seen);
}

template <class S, bool kIndex, int kS>
inline void max_planes(const PoolJob& j, void* scratch, int64_t begin, int64_t end) {
  typedef Compute<S> T;
  MaxRow<S, T> m = MaxRow<S, T>::make(j, scratch);
  int64_t bytes;
  MaxBand<T> band = MaxBand<T>::make(j.p, m.col + align64(j.p.cols.k), bytes);
  band.prepare(j.p.cols, m.col, m.right);
  m.row = j.p.rows.dil * band.size;
  for (int64_t t = begin; t < end; ++t)
    if (!max_plane<S, kIndex, false, kS>(j, band, m, t / j.p.C, t % j.p.C))
      max_plane<S, kIndex, true, 0>(j, band, m, t / j.p.C, t % j.p.C);
}

}  // namespace fastconv::FASTCONV_NS
#include "max_slide.inl"
namespace fastconv::FASTCONV_NS {

template <class S, bool kIndex, class P>
inline void max_pool(const PoolJob& j, void* scratch, int64_t begin, int64_t end) {
  const PoolAxis &rows = j.p.rows, &cols = j.p.cols;
  if (in_strips(j)) {
    if (cols.k == 2) return max_strips<S, kIndex, P, 2>(j, scratch, begin, end);
    return max_strips<S, kIndex, P, 3>(j, scratch, begin, end);
  }
  if (!pool_channels(j)) {
    if (cols.k == 2) return max_planes<S, kIndex, 2>(j, scratch, begin, end);
    if (cols.k == 3) return max_planes<S, kIndex, 3>(j, scratch, begin, end);
    return max_planes<S, kIndex, 0>(j, scratch, begin, end);
  }
  if (slides(j)) {
    if (cols.k == 2) return max_slide<S, kIndex, P, 2>(j, scratch, begin, end);
    return max_slide<S, kIndex, P, 3>(j, scratch, begin, end);
  }
  MaxRow<S, S> m = MaxRow<S, S>::make(j, scratch);
  m.row = rows.dil * j.x.stride[2];
  for (int64_t s = 0; s < cols.k; ++s) m.col[s] = s * cols.dil * j.x.stride[3];
  for (int64_t t = begin; t < end; ++t) {
    const int64_t n = t / rows.out, p = t % rows.out;
    m.start(j, n, 0, p);
    m.x = at<S>(j.x, n, 0, p * rows.stride - rows.pad, 0);
    if (!max_channels<S, kIndex, P, false>(j, m)) max_channels<S, kIndex, P, true>(j, m);
  }
}

template <class S>
inline void max_pool_run(const PoolJob& j, void* scratch, int64_t begin, int64_t end) {
  typedef IVec<Compute<S>> Places;
  if (j.index_type == IndexType::none) return max_pool<S, false, Places>(j, scratch, begin, end);
  if (j.index_type == IndexType::window8)
    return max_pool<S, true, typename BytePlaces<Compute<S>>::type>(j, scratch, begin, end);
  max_pool<S, true, Places>(j, scratch, begin, end);
}

}  // namespace fastconv::FASTCONV_NS
