// Max pooling and its gradient: bound by memory.
//
// Channel-last: vectors along channels, windows clipped at the edges. Otherwise one plane at a
// time: the rows of a band of outputs are copied, padded with -inf and split by column phase
// (column mod stride), so that every tap of a row of outputs is one contiguous vector stream. The
// gradient is added to a plane of sums, one output at a time.
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

// The first `lanes` of W bytes. NOTE a load that straddles what was just stored waits until that
// has left the store buffer, so no buffer where there are masks.
template <int W, class V>
FASTCONV_INLINE void store_bytes(uint8_t* to, V bytes, int64_t lanes) {
#if defined(__AVX512F__)
  if constexpr (W == 16) return _mm_mask_storeu_epi8(to, (1u << lanes) - 1, (__m128i)bytes);
#endif
  if (lanes == W) return (void)__builtin_memcpy(to, &bytes, W);
  uint8_t buffer[W];
  __builtin_memcpy(buffer, &bytes, W);
  copy_short<W / 2>(to, buffer, lanes);
}

// Indices of `lanes` outputs from element `to` on, `step` elements apart. The first one's window
// starts at `window` in the plane, and the others' `across` apart.
template <class T>
FASTCONV_INLINE void store_places(const PoolJob& j, int64_t to, int64_t step, IVec<T> places,
                                  int64_t lanes, int64_t window, int64_t across) {
  constexpr int W = kW<T>;
  if (j.index_type == IndexType::window8) {
    uint8_t* out = (uint8_t*)j.index.data + to;
    const auto bytes = __builtin_convertvector(places, typename IndexOf<uint8_t, T>::type);
    if (step == 1)
      store_bytes<W>(out, bytes, lanes);
    else
      for (int64_t i = 0; i < lanes; ++i) out[i * step] = bytes[i];
  } else if (j.index_type == IndexType::window32) {
    int32_t* out = (int32_t*)j.index.data + to;
    for (int64_t i = 0; i < lanes; ++i) out[i * step] = (int32_t)places[i];
  } else {
    int64_t* out = (int64_t*)j.index.data + to;
    for (int64_t i = 0; i < lanes; ++i) out[i * step] = window + i * across + places[i];
  }
}

// The running maximum: the first of equals wins and, where kExact, any NaN.
template <class T, bool kIndex, bool kExact>
FASTCONV_INLINE void maximum(Vec<T>& best, IVec<T>& place, Vec<T> v, int64_t tap) {
  IVec<T> wins = v > best;
  if constexpr (kExact) wins |= v != v;
  best = select<T>(wins, v, best);
  if constexpr (kIndex) place = wins ? IVec<T>{} + (typename TapInt<T>::type)tap : place;
}

// U vectors of maxima from element `at` on over the columns `s` of the windows; kS: their number
// where it is known. What was read is added to `seen`, which shows a NaN that way.
template <class S, class E, bool kIndex, bool kExact, int U, int kS>
FASTCONV_INLINE void max_vectors(const MaxRow<S, E>& m, Range s, int64_t at, int64_t lanes,
                                 Vec<Compute<E>> (&best)[U], IVec<Compute<E>> (&place)[U],
                                 Vec<Compute<E>>& seen) {
  typedef Compute<E> T;
  constexpr int W = kW<T>;
  Vec<T> read[U] = {};
  const E* from = m.x + at + m.rows.first * m.row;
  int64_t down = m.rows.first * m.down;
  auto tap = [&](int64_t k) {
    for (int u = 0; u < U; ++u) {
      Vec<T> v = load_lanes<E>(from + m.col[k] + u * W, lanes);
      opaque<T>(v);  // GCC would load it twice
      if constexpr (!kExact) read[u] += v;
      maximum<T, kIndex, kExact>(best[u], place[u], v, down + k * m.right);
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

template <class S, bool kIndex, bool kExact, int U>
FASTCONV_INLINE void max_pixel(const PoolJob& j, const MaxRow<S, S>& m, Range s, int64_t q,
                               int64_t c, int64_t lanes, Vec<Compute<S>>& seen) {
  typedef Compute<S> T;
  constexpr int W = kW<T>;
  Vec<T> best[U];
  IVec<T> place[U];
  for (int u = 0; u < U; ++u) {
    best[u] = broadcast<T>(-__builtin_inff());
    place[u] = IVec<T>{} + (typename TapInt<T>::type)(m.rows.first * m.down + s.first * m.right);
  }
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

template <class T>
FASTCONV_INLINE bool has_nan(Vec<T> seen) {
  const T total = sum<T>(seen);
  return total != total;
}

// A row of an image's outputs, channel-last; false where a NaN was read (or infinities of both
// signs) and the maxima are the numbers' only.
template <class S, bool kIndex, bool kExact>
inline bool max_channels(const PoolJob& j, const MaxRow<S, S>& m) {
  typedef Compute<S> T;
  constexpr int W = kW<T>, U = 4;
  const PoolAxis& cols = j.p.cols;
  Vec<T> seen = {};
  for (int64_t q = 0; q < cols.out; ++q) {
    const Range s = taps_inside(cols, q * cols.stride - cols.pad);
    int64_t c = 0;
    for (; c + U * W <= j.p.C; c += U * W) max_pixel<S, kIndex, kExact, U>(j, m, s, q, c, W, seen);
    by_vectors<W>(c, j.p.C, [&](int64_t from, int64_t lanes) {
      max_pixel<S, kIndex, kExact, 1>(j, m, s, q, from, lanes, seen);
    });
  }
  return !has_nan<T>(seen);
}

constexpr int64_t kBandBytes = 16384;

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
  for (int u = 0; u < U; ++u) {
    best[u] = broadcast<T>(-__builtin_inff());
    if constexpr (kIndex) {
      __builtin_memcpy(&place[u], first + q + u * W, sizeof place[u]);
      place[u] += (typename TapInt<T>::type)(m.rows.first * m.down);
    }
  }
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

template <class S, bool kIndex>
inline void max_pool(const PoolJob& j, void* scratch, int64_t begin, int64_t end) {
  const PoolAxis &rows = j.p.rows, &cols = j.p.cols;
  if (!pool_channels(j)) {
    if (cols.k == 2) return max_planes<S, kIndex, 2>(j, scratch, begin, end);
    if (cols.k == 3) return max_planes<S, kIndex, 3>(j, scratch, begin, end);
    return max_planes<S, kIndex, 0>(j, scratch, begin, end);
  }
  MaxRow<S, S> m = MaxRow<S, S>::make(j, scratch);
  m.row = rows.dil * j.x.stride[2];
  for (int64_t s = 0; s < cols.k; ++s) m.col[s] = s * cols.dil * j.x.stride[3];
  for (int64_t t = begin; t < end; ++t) {
    const int64_t n = t / rows.out, p = t % rows.out;
    m.start(j, n, 0, p);
    m.x = at<S>(j.x, n, 0, p * rows.stride - rows.pad, 0);
    if (!max_channels<S, kIndex, false>(j, m)) max_channels<S, kIndex, true>(j, m);
  }
}

template <class S>
inline void max_pool_run(const PoolJob& j, void* scratch, int64_t begin, int64_t end) {
  if (j.index_type == IndexType::none) return max_pool<S, false>(j, scratch, begin, end);
  max_pool<S, true>(j, scratch, begin, end);
}

// Offset of output (p, q)'s maximum in its plane; -1 where the index points outside.
inline int64_t place_of(const PoolJob& j, int64_t index, int64_t p, int64_t q) {
  const PoolAxis &rows = j.p.rows, &cols = j.p.cols;
  if (j.index_type == IndexType::flat64)
    return index >= 0 && index < rows.in * cols.in ? index : -1;
  if (index < 0 || index >= rows.k * cols.k) return -1;
  const int64_t h = p * rows.stride - rows.pad + index / cols.k * rows.dil;
  const int64_t w = q * cols.stride - cols.pad + index % cols.k * cols.dil;
  return h >= 0 && h < rows.in && w >= 0 && w < cols.in ? h * cols.in + w : -1;
}

// Calls the instance of a kernel for the job's index type.
#define FASTCONV_BY_INDEX(j, call) \
  switch (j.index_type) {          \
    case IndexType::window8: {     \
      typedef uint8_t I;           \
      return call;                 \
    }                              \
    case IndexType::window32: {    \
      typedef int32_t I;           \
      return call;                 \
    }                              \
    default: {                     \
      typedef int64_t I;           \
      return call;                 \
    }                              \
  }

// Scratch of a plane's gradient: where each tap lies from tap 0 on, and the sums.
template <class T>
struct GradPlane {
  int64_t *h, *w, *flat;  // [R * S]
  T* sum;                 // [H][W]
  int64_t total;          // bytes

  static GradPlane make(const PoolProblem& p, void* scratch) {
    const int64_t taps = p.rows.k * p.cols.k;
    int64_t* h = (int64_t*)scratch;
    GradPlane g = {h, h + taps, h + 2 * taps, (T*)(h + 3 * taps), 0};
    g.total = (char*)(g.sum + p.rows.in * p.cols.in) - (char*)scratch;
    return g;
  }

  void prepare(const PoolProblem& p) const {
    for (int64_t t = 0; t < p.rows.k * p.cols.k; ++t) {
      h[t] = t / p.cols.k * p.rows.dil, w[t] = t % p.cols.k * p.cols.dil;
      flat[t] = h[t] * p.cols.in + w[t];
    }
  }
};

// dy is added at the maxima's places, in the order of the outputs.
template <class S, class I>
inline void max_grad_plane(const PoolJob& j, const GradPlane<Compute<S>>& g, int64_t n, int64_t c) {
  typedef Compute<S> T;
  const PoolAxis &rows = j.p.rows, &cols = j.p.cols;
  const bool direct = sizeof(S) == sizeof(T) && j.x.stride[3] == 1 && j.x.stride[2] == cols.in;
  T* sum = direct ? (T*)at<S>(j.x, n, c, 0, 0) : g.sum;
  zero(sum, rows.in * cols.in);
  const uint64_t H = rows.in, W = cols.in, taps = rows.k * cols.k;
  const int64_t *flat = g.flat, dy_s = j.y.stride[3], index_s = j.index.stride[3];
  // The windows that lie inside along a row are [inside, outside).
  const int64_t last = cols.in - 1 + cols.pad - (cols.k - 1) * cols.dil;
  const int64_t inside = ceil_div(cols.pad, cols.stride);
  const int64_t outside = last < 0 ? 0 : min64(last / cols.stride + 1, cols.out);
  for (int64_t p = 0; p < rows.out; ++p) {
    const S* dy = at<S>(j.y, n, c, p, 0);
    const I* index = at<I>(j.index, n, c, p, 0);
    const int64_t h0 = p * rows.stride - rows.pad;
    T* to = sum + h0 * cols.in - cols.pad;  // tap 0
    int64_t q = 0;
    auto step = [&] { ++q, to += cols.stride, dy += dy_s, index += index_s; };
    auto check = [&] {
      const uint64_t t = *index;
      if (t < taps && (uint64_t)(h0 + g.h[t]) < H &&
          (uint64_t)(q * cols.stride - cols.pad + g.w[t]) < W)
        to[flat[t]] += widen(*dy);
    };
    if (sizeof(I) == 8) {  // places in the plane
      for (; q < cols.out; step())
        if ((uint64_t)*index < H * W) sum[*index] += widen(*dy);
    } else if (h0 >= 0 && h0 + (rows.k - 1) * rows.dil < rows.in) {
      for (; q < min64(inside, outside); step()) check();
      for (; q < outside; step())
        if ((uint64_t)*index < taps) to[flat[*index]] += widen(*dy);
    }
    for (; q < cols.out; step()) check();
  }
  for (int64_t h = 0; !direct && h < rows.in; ++h)
    narrow_row<S>(at<S>(j.x, n, c, h, 0), sum + h * cols.in, cols.in, j.x.stride[3]);
}

template <class S, class I>
inline void max_pool_grad(const PoolJob& j, void* scratch, int64_t begin, int64_t end) {
  if (pool_channels(j)) return grad_channels<S, I, true>(j, scratch, begin, end);
  const GradPlane<Compute<S>> plane = GradPlane<Compute<S>>::make(j.p, scratch);
  plane.prepare(j.p);
  for (int64_t t = begin; t < end; ++t) max_grad_plane<S, I>(j, plane, t / j.p.C, t % j.p.C);
}

template <class S>
inline void max_pool_grad_run(const PoolJob& j, void* scratch, int64_t begin, int64_t end) {
  FASTCONV_BY_INDEX(j, (max_pool_grad<S, I>(j, scratch, begin, end)))
}

// y at the maxima's places in x; 0 where the index points outside. Tasks: (image, output row).
template <class S, class I>
inline void max_pool_gather(const PoolJob& j, int64_t begin, int64_t end) {
  const PoolAxis &rows = j.p.rows, &cols = j.p.cols;
  for (int64_t t = begin; t < end; ++t) {
    const int64_t n = t / rows.out, p = t % rows.out;
    auto one = [&](int64_t q, int64_t c) {
      const int64_t place = place_of(j, *at<I>(j.index, n, c, p, q), p, q);
      S value = {};
      if (place >= 0) value = *at<S>(j.x, n, c, place / cols.in, place % cols.in);
      *at<S>(j.y, n, c, p, q) = value;
    };
    if (j.y.stride[1] == 1)
      for (int64_t q = 0; q < cols.out; ++q)
        for (int64_t c = 0; c < j.p.C; ++c) one(q, c);
    else
      for (int64_t c = 0; c < j.p.C; ++c)
        for (int64_t q = 0; q < cols.out; ++q) one(q, c);
  }
}

template <class S>
inline void max_pool_gather_run(const PoolJob& j, int64_t begin, int64_t end) {
  FASTCONV_BY_INDEX(j, (max_pool_gather<S, I>(j, begin, end)))
}

// Bytes of scratch that a task of any pooling kernel of this job needs.
template <class S>
inline int64_t pool_scratch(const PoolJob& j) {
  typedef Compute<S> T;
  const int64_t readers = j.grad ? align64(Readers::bytes(j.p.rows)) : 0;
  const int64_t taps = align64(j.p.cols.k) * sizeof(int64_t);
  if (pool_channels(j)) return readers + Readers::bytes(j.p.cols) + taps;
  if (!j.max) return readers + AvgPlane<T>::make(j.p, nullptr).total;
  if (j.grad) return GradPlane<T>::make(j.p, nullptr).total;
  int64_t bytes;
  MaxBand<T>::make(j.p, nullptr, bytes);
  return taps + bytes;
}

}  // namespace fastconv::FASTCONV_NS
