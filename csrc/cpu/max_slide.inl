// Max pooling, channel-last, in windows of two or three taps, two rows and columns apart.
//
// The maxima of a row's windows are found first, then those of the rows, so that the first of
// equals wins in row-major order too. What windows of three share is kept, a column in registers
// and a row's maxima in memory: 4 loads and 6 comparisons instead of 9 and 8. With its index on
// Zen 4: 3x3 64 @112 104 -> 71 us, 2x2 72 -> 58; without 80 -> 64 and 57 -> 54.
namespace fastconv::FASTCONV_NS {

inline bool slides(const PoolJob& j) { return pool_channels(j) && two_apart(j.p); }

// The maxima of the windows of an input's row and their places in it, for the next row of outputs.
template <class T, class P>
struct KeptRow {
  int64_t pitch;  // channels of a pixel
  T* best;
  P* place;  // of each W channels

  static KeptRow make(const PoolProblem& p, void* scratch, int64_t& bytes) {
    const int64_t pitch = ceil_div(p.C, kW<T>) * kW<T>, size = p.cols.out * pitch;
    const KeptRow row = {pitch, (T*)scratch, (P*)((char*)scratch + align64(size * sizeof(T)))};
    bytes = (char*)(row.place + size / kW<T>)-(char*)scratch;
    return row;
  }
};

// U vectors of channels of an input's row, walked along its windows. A column in the padding is
// its neighbour, which then wins against nothing; so are rows.
template <class S, bool kIndex, class P, int K, int U>
struct SlidingRow {
  typedef Compute<S> T;
  static constexpr int W = kW<T>;
  Vec<T> shared[U];  // the column that the next window begins with
  Vec<T> best[U];
  P place[U];

  FASTCONV_INLINE void start(const S* x, int64_t lanes, Vec<T> (&read)[U]) {
    for (int u = 0; u < U; ++u) {
      shared[u] = load_lanes<S>(x + u * W, lanes);
      read[u] += shared[u];
    }
  }

  // The window whose columns lie at `column`, `first` tap inside.
  FASTCONV_INLINE void next(const S* x, const int64_t (&column)[K], int64_t lanes, P first,
                            int64_t right, Vec<T> (&read)[U]) {
    for (int u = 0; u < U; ++u) {
      best[u] = K == 3 ? shared[u] : load_lanes<S>(x + column[0] + u * W, lanes);
      if (K == 2) read[u] += best[u];
      place[u] = first;
      for (int k = 1; k < K; ++k) {
        shared[u] = load_lanes<S>(x + column[k] + u * W, lanes);
        read[u] += shared[u];
        maximum<kIndex, false>(best[u], place[u], shared[u], all_places<P>(k * right));
      }
    }
  }
};

// What a row of outputs reads: rows of inputs at column 0, channel 0; a window's first row is kept
// where K is 3. `top`: its place in the window.
template <class S, int K>
struct SlidingRows {
  const S* x[K];
  int64_t top;
};

template <int K>
FASTCONV_INLINE void columns_of(const PoolJob& j, int64_t q, int64_t (&column)[K]) {
  const int64_t w0 = q * 2 - j.p.cols.pad;
  for (int k = 0; k < K; ++k) column[k] = min64(max64(w0 + k, 0), j.p.cols.in - 1) * j.x.stride[3];
}

// Keeps the maxima of a row's windows, as the first row of a row of outputs.
template <class S, bool kIndex, class P, int U>
FASTCONV_INLINE void keep_row(const PoolJob& j, const S* x, int64_t top, int64_t right, int64_t c,
                              int64_t lanes, const KeptRow<Compute<S>, P>& kept,
                              Vec<Compute<S>>& seen) {
  typedef Compute<S> T;
  constexpr int W = kW<T>;
  Vec<T> read[U] = {};
  SlidingRow<S, kIndex, P, 3, U> row;
  row.start(x + c, lanes, read);
  for (int64_t q = 0, at = c; q < j.p.cols.out; ++q, at += kept.pitch) {
    int64_t column[3];
    columns_of(j, q, column);
    row.next(x + c, column, lanes, all_places<P>(q == 0 && j.p.cols.pad ? right : 0), right, read);
    for (int u = 0; u < U; ++u) {
      store<T>(kept.best + at + u * W, row.best[u]);
      if constexpr (kIndex) kept.place[at / W + u] = row.place[u] + all_places<P>(top);
    }
  }
  for (int u = 0; u < U; ++u) seen += read[u];
}

// U vectors of channels of a row of outputs.
template <class S, bool kIndex, class P, int K, int U>
FASTCONV_INLINE void slide(const PoolJob& j, const MaxRow<S, S>& m, const SlidingRows<S, K>& rows,
                           int64_t c, int64_t lanes, const KeptRow<Compute<S>, P>& kept,
                           Vec<Compute<S>>& seen) {
  typedef Compute<S> T;
  constexpr int W = kW<T>;
  const int64_t right = m.right, down = m.down, Q = j.p.cols.out;
  const P outside = all_places<P>(j.p.cols.pad ? right : 0);
  Vec<T> read[U] = {};
  SlidingRow<S, kIndex, P, K, U> row[2];
  for (int i = 0; i < 2 && K == 3; ++i) row[i].start(rows.x[K - 2 + i] + c, lanes, read);
  S* y = m.y + c;
  int64_t to = m.index - (char*)j.index.data + c;
  for (int64_t q = 0, at = c; q < Q; ++q, at += kept.pitch) {
    int64_t column[K];
    columns_of(j, q, column);
    for (int i = 0; i < 2; ++i)
      row[i].next(rows.x[K - 2 + i] + c, column, lanes, q == 0 ? outside : P{}, right, read);
    for (int u = 0; u < U; ++u) {
      Vec<T> best = row[0].best[u];
      P place = row[0].place[u];
      if constexpr (K == 3) {
        best = load<T>(kept.best + at + u * W);
        if constexpr (kIndex) place = kept.place[at / W + u];
        maximum<kIndex, false>(best, place, row[0].best[u],
                               P(row[0].place[u] + all_places<P>(down)));
        store<T>(kept.best + at + u * W, row[1].best[u]);
        if constexpr (kIndex) kept.place[at / W + u] = row[1].place[u];
      } else {
        place += all_places<P>(rows.top);
      }
      maximum<kIndex, false>(best, place, row[1].best[u],
                             P(row[1].place[u] + all_places<P>((K - 1) * down)));
      store_lanes<S>(y + u * W, best, lanes, 1);
      if constexpr (kIndex)
        store_places<T>(j, to + u * W, 1, place, lanes, m.origin + q * m.step, 0);
    }
    y += j.y.stride[3], to += j.index.stride[3];
  }
  for (int u = 0; u < U; ++u) seen += read[u];
}

// f(channel, lanes, vectors, as a constant) over all channels.
template <class T, class F>
FASTCONV_INLINE void by_channels(int64_t channels, F f) {
  constexpr int W = kW<T>, U = kMasks ? 4 : 2;
  int64_t c = 0;
  for (; c + U * W <= channels; c += U * W) f(c, int64_t{W}, Constant<U>());
  for (; c + W <= channels; c += W) f(c, int64_t{W}, Constant<1>());
  if (c < channels) f(c, channels - c, Constant<1>());
}

// Tasks: (image, row of outputs). Where NaNs were read the row is done again, exactly.
template <class S, bool kIndex, class P, int K>
inline void max_slide(const PoolJob& j, void* scratch, int64_t begin, int64_t end) {
  typedef Compute<S> T;
  const PoolAxis& axis = j.p.rows;
  MaxRow<S, S> m = MaxRow<S, S>::make(j, scratch);
  m.row = j.x.stride[2];
  for (int64_t s = 0; s < K; ++s) m.col[s] = s * j.x.stride[3];
  int64_t bytes;
  const auto kept = KeptRow<T, P>::make(j.p, (char*)m.col + align64(K * sizeof(int64_t)), bytes);
  bool shared_nan = false;
  for (int64_t t = begin; t < end; ++t) {
    const int64_t n = t / axis.out, p = t % axis.out, h0 = p * 2 - axis.pad;
    m.start(j, n, 0, p);
    m.x = at<S>(j.x, n, 0, h0, 0);
    SlidingRows<S, K> rows;
    for (int r = 0; r < K; ++r)
      rows.x[r] = at<S>(j.x, n, 0, min64(max64(h0 + r, 0), axis.in - 1), 0);
    rows.top = h0 < 0 ? m.down : 0;
    if (K == 3 && (t == begin || p == 0)) {
      Vec<T> seen = {};
      by_channels<T>(j.p.C, [&](int64_t c, int64_t lanes, auto vectors) {
        keep_row<S, kIndex, P, decltype(vectors)::value>(j, rows.x[0], rows.top, m.right, c, lanes,
                                                         kept, seen);
      });
      shared_nan = has_nan<T>(seen);
    }
    Vec<T> seen = {};
    by_channels<T>(j.p.C, [&](int64_t c, int64_t lanes, auto vectors) {
      slide<S, kIndex, P, K, decltype(vectors)::value>(j, m, rows, c, lanes, kept, seen);
    });
    const bool nan = has_nan<T>(seen);
    if (nan || shared_nan) max_channels<S, kIndex, P, true>(j, m);
    shared_nan = nan;
  }
}

}  // namespace fastconv::FASTCONV_NS
