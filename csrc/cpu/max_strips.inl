// Max pooling of planes in strips: windows of two or three taps, two rows and columns apart.
//
// A strip of W windows is walked down its plane, for the last row of a window of three is the next
// one's first. Row after row, as averages go, with the last row's maxima in memory was 0.83 to 0.97
// times as fast (Zen 4, 64 @112 and 256 @28): instructions bound it, not memory.
namespace fastconv::FASTCONV_NS {

// The maxima of a row's windows are found first, then those of the rows, so that the first of
// equals wins in row-major order too. Instead of a row in the padding its neighbour is read again,
// which wins against nothing.
template <class S, bool kIndex, class P, bool kExact, int K>
FASTCONV_INLINE void max_strip(const PoolJob& j, const Strip<S>& of, int64_t n, int64_t c,
                               Vec<Compute<S>>& seen) {
  typedef Compute<S> T;
  const Strip<S> strip = of;  // in registers
  const int64_t x_row = j.x.stride[2], y_row = j.y.stride[2], index_row = j.index.stride[2];
  const int64_t pad = j.p.rows.pad, count = j.p.rows.out;
  const int64_t down = j.index_type == IndexType::flat64 ? j.p.cols.in : K;
  const S* x = at<S>(j.x, n, c, -pad, strip.column);
  const S* bottom = x + (j.p.rows.in - 1 + pad) * x_row;
  S* y = at<S>(j.y, n, c, 0, strip.q);
  int64_t to = at<char>(j.index, n, c, 0, strip.q) - (char*)j.index.data;
  P first = {};
  first[0] = strip.low.first;
  Vec<T> read = seen, row_best;
  P row_place;
  auto row = [&](const S* from) __attribute__((always_inline)) {
    const StripRow<T> columns = strip.template read<K, false>(from);
    const Vec<T> pair = columns.low + columns.high;
    read += strip.lone ? pair + columns.next : pair;
    Vec<T> tap[K];
    columns.taps(tap);
    row_best = tap[0], row_place = first;
    for (int k = 1; k < K; ++k)
      maximum<kIndex, kExact>(row_best, row_place, tap[k], all_places<P>(k));
  };
  row(x + pad * x_row);
  row_place += all_places<P>(pad * down);
  for (int64_t p = 0; p < count; ++p) {
    if (K == 2 && p > 0) row(x);
    Vec<T> best = row_best;
    P place = row_place;
#pragma GCC unroll 2
    for (int r = 1; r < K; ++r) {
      const S* from = x + r * x_row;
      const bool inside = from <= bottom;
      row(inside ? from : bottom);
      if (kExact && !inside) break;
      maximum<kIndex, kExact>(best, place, row_best, P(row_place + all_places<P>(r * down)));
    }
    store_lanes<S>(y, best, strip.windows, 1);
    if constexpr (kIndex)
      store_places<T>(j, to, 1, place, strip.windows, (p * 2 - pad) * j.p.cols.in + strip.column,
                      2);
    x += 2 * x_row, y += y_row, to += index_row;
  }
  seen = read;
}

template <class S, bool kIndex, class P, int K>
inline void max_strips(const PoolJob& j, void* scratch, int64_t begin, int64_t end) {
  typedef Compute<S> T;
  const Strips<S> strips(j.p.cols, -__builtin_inff(), scratch);
  for (int64_t t = begin; t < end; ++t) {
    const int64_t n = t / j.p.C, c = t % j.p.C;
    Vec<T> seen = {};
    for (const Strip<S>& s : strips) max_strip<S, kIndex, P, false, K>(j, s, n, c, seen);
    if (has_nan<T>(seen))
      for (const Strip<S>& s : strips) max_strip<S, kIndex, P, true, K>(j, s, n, c, seen);
  }
}

}  // namespace fastconv::FASTCONV_NS
