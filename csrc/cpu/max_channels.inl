// Max pooling: what a row of outputs reads and writes, and channel-last images of any window,
// vectors along channels and windows clipped at the edges.
namespace fastconv::FASTCONV_NS {

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

}  // namespace fastconv::FASTCONV_NS
