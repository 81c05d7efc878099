// Max pooling: bound by memory. Its gradient: max_pool_grad.inl.
//
// Channel-last: max_channels.inl, the usual windows max_slide.inl. Otherwise one plane at a time:
// the usual windows max_strips.inl; of others the rows of a band of outputs are copied, padded with
// -inf and split by column phase (column mod stride), so that every tap of a row of outputs is one
// contiguous vector stream.
namespace fastconv::FASTCONV_NS {

template <class T>
struct TapInt {
  typedef int32_t type;
};
template <>
struct TapInt<double> {
  typedef int64_t type;
};

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
