// Strips: planes pooled by windows of two or three taps, two columns apart, read where they lie.
//
// W windows of a row need two vectors of it: their even elements are the first taps, the odd ones
// the second, and the third are the even ones moved on by one window. Columns in the padding are
// masked away.
namespace fastconv::FASTCONV_NS {

// A row's columns in a strip, or what was made of several rows': the even ones are the first taps
// of its windows, the odd ones the second.
template <class T>
struct StripRow {
  Vec<T> low, high, next;  // the last holds one column, the third tap of the last window

  template <int K>
  FASTCONV_INLINE void taps(Vec<T> (&tap)[K]) const {
    deinterleave<T>(low, high, tap[0], tap[1]);
    if constexpr (K == 3) tap[2] = shift_in<T>(tap[0], next);
  }
};

// The columns of one.
template <class S>
struct Strip {
  typedef Compute<S> T;
  static constexpr int W = kW<T>;
  int64_t q, windows;  // the first one and their number
  int64_t column;      // their first one, which may be in the padding
  Range low, high;     // lanes of its two vectors inside the input
  bool more, lone;     // so is the column after those; and no other strip reads it
  T outside;           // what a column in the padding holds

  Strip(const PoolAxis& cols, int64_t q, T outside) : q(q), outside(outside) {
    windows = min64(W, cols.out - q);
    column = q * 2 - cols.pad;
    low = lanes(cols.in, column), high = lanes(cols.in, column + W);
    more = column + 2 * W < cols.in;
    lone = more && q + W >= cols.out;
  }

  static Range lanes(int64_t in, int64_t from) {
    return {min64(max64(-from, 0), W), max64(min64(in - from, W), 0)};
  }

  // All of its windows, of three taps and of two, read places inside the input.
  bool whole() const {
    return windows == W && low.last - low.first == W && high.last - high.first == W && more;
  }

  FASTCONV_INLINE Vec<T> load(const S* x, Range r) const {
    if (!kMasks && r.last - r.first == W) return load_widened<S>(x);
    return load_between<S>(x, r.first, r.last, broadcast<T>(outside));
  }

  // What a row of windows of K taps reads, from the strip's first column on.
  template <int K, bool kWhole>
  FASTCONV_INLINE StripRow<T> read(const S* x) const {
    static_assert(K == 2 || K == 3, "taps that two vectors hold, but for one element");
    if (kWhole)
      return {load_widened<S>(x), load_widened<S>(x + W),
              broadcast<T>(widen(x[K == 3 ? 2 * W : 0]))};
    StripRow<T> r = {load(x, low), load(x + W, high), broadcast<T>(outside)};
    if (K == 3 && more) r.next = broadcast<T>(widen(x[2 * W]));
    return r;
  }
};

// The usual windows: of two or three taps, two rows and columns apart.
inline bool two_apart(const PoolProblem& p) {
  auto axis = [](const PoolAxis& a) { return a.stride == 2 && a.dil == 1 && !a.adaptive; };
  return axis(p.rows) && axis(p.cols) && p.rows.k == p.cols.k && (p.cols.k == 2 || p.cols.k == 3);
}

inline bool in_strips(const PoolJob& j) {
  return !pool_channels(j) && two_apart(j.p) && j.x.stride[3] == 1 && j.y.stride[3] == 1 &&
         (j.index_type == IndexType::none || j.index.stride[3] == 1);
}

// Those of a row of windows; without masks the last one overlaps.
template <class S>
class Strips {
 public:
  Strips(const PoolAxis& cols, Compute<S> outside, void* scratch) : first((Strip<S>*)scratch) {
    constexpr int64_t W = kW<Compute<S>>;
    last = first;
    for (int64_t q = 0; q < cols.out; q += W)
      *last++ = Strip<S>(cols, kMasks ? q : min64(q, max64(cols.out - W, 0)), outside);
    for (from = first; from < last && !from->whole();) ++from;
    for (to = from; to < last && to->whole();) ++to;
  }
  static int64_t bytes(const PoolAxis& cols) {
    return ceil_div(cols.out, kW<Compute<S>>) * sizeof(Strip<S>);
  }

  const Strip<S>* begin() const { return first; }
  const Strip<S>* end() const { return last; }

  // Calls f(strip, whether it is whole, as a constant) for each.
  template <class F>
  FASTCONV_INLINE void each(F f) const {
    const Strip<S>* s = first;
    for (; s < from; ++s) f(*s, Constant<0>());
    for (; s < to; ++s) f(*s, Constant<1>());
    for (; s < last; ++s) f(*s, Constant<0>());
  }

  // Calls f(these) or, where there is one, f(that one in registers).
  template <class F>
  FASTCONV_INLINE void use(F f) const {
    if (last - first > 1) return f(*this);
    const Only only = {*first};
    f(only);
  }

 private:
  struct Only {
    Strip<S> strip;

    template <class F>
    FASTCONV_INLINE void each(F f) const {
      f(strip, Constant<0>());
    }
  };
  Strip<S>*first, *last, *from, *to;
};

}  // namespace fastconv::FASTCONV_NS
