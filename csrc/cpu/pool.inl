// What max and average pooling share: windows and their places, in both directions.
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
  t.last = a.k;
  if (origin + (a.k - 1) * a.dil >= a.in)
    t.last = origin < a.in ? ceil_div(a.in - origin, a.dil) : 0;
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

// One window that holds a place: its output, the tap that reads the place, and the factor of an
// average's 1 / divisor that belongs to the axis.
struct Reader {
  int64_t out, tap;
  double scale;
};

// The windows that hold each place of an axis, in ascending order.
struct Readers {
  int64_t* start;  // [in + 1] into list
  Reader* list;

  const Reader* begin(int64_t place) const { return list + start[place]; }
  const Reader* end(int64_t place) const { return list + start[place + 1]; }

  // The same windows hold this place and the one before.
  bool same(int64_t place) const {
    const Reader *a = begin(place), *b = end(place), *before = begin(place - 1);
    if (b - a != a - before) return false;
    while (a < b && a->out == before->out) ++a, ++before;
    return a == b;
  }

  static int64_t bytes(const PoolAxis& a) {
    const int64_t most = a.adaptive ? a.in + 2 * a.out : a.out * a.k;
    return (a.in + 1) * sizeof(int64_t) + most * sizeof(Reader);
  }

  // Calls f(out, tap, place) for each place of each window, outputs ascending.
  template <class F>
  static void each(const PoolAxis& a, F f) {
    for (int64_t p = 0; p < a.out; ++p) {
      const Range w = a.adaptive ? window_of(a, p) : taps_inside(a, p * a.stride - a.pad);
      for (int64_t i = w.first; i < w.last; ++i)
        f(p, i, a.adaptive ? i : p * a.stride - a.pad + i * a.dil);
    }
  }

  // A divisor that the caller gave is the rows' factor.
  static Readers make(const PoolProblem& p, const PoolAxis& a, void* scratch) {
    const double given = !p.divisor ? 0 : &a == &p.rows ? 1.0 / p.divisor : 1;
    Readers r = {(int64_t*)scratch, (Reader*)((int64_t*)scratch + a.in + 1)};
    zero(r.start, a.in + 1);
    each(a, [&](int64_t, int64_t, int64_t place) { ++r.start[place]; });
    int64_t total = 0;
    for (int64_t i = 0; i <= a.in; ++i) {
      const int64_t count = r.start[i];
      r.start[i] = total, total += count;
    }
    each(a, [&](int64_t out, int64_t tap, int64_t place) {
      r.list[r.start[place]++] = {out, tap, given ? given : 1.0 / count_of(p, a, out)};
    });
    for (int64_t i = a.in; i > 0; --i) r.start[i] = r.start[i - 1];  // filling moved them on
    r.start[0] = 0;
    return r;
  }
};

// As many elements of type I as a vector of T has.
template <class I, class T>
struct IndexOf {
  typedef I type __attribute__((vector_size(kW<T> * sizeof(I))));
};

template <class T, class I>
FASTCONV_INLINE typename IndexOf<I, T>::type load_index(const I* index, int64_t lanes) {
  typename IndexOf<I, T>::type v = {};
  if (lanes == kW<T>)
    __builtin_memcpy(&v, index, sizeof v);
  else
    for (int64_t i = 0; i < lanes; ++i) v[i] = index[i];
  return v;
}

// U vectors of channels from c of `count` places from (h, w) on, which the same windows hold: each
// gathers from those. A maximum's gradient is dy where the index is the place's, an average's is
// dy / divisor.
template <class S, class I, bool kMax, int U>
FASTCONV_INLINE void grad_places(const PoolJob& j, const Readers& rows, const Readers& cols,
                                 int64_t n, int64_t h, int64_t w, int64_t count, int64_t c,
                                 int64_t lanes) {
  typedef Compute<S> T;
  constexpr int W = kW<T>;
  Vec<T> sum[U] = {};
  for (const Reader* r = rows.begin(h); r < rows.end(h); ++r)
    for (const Reader* s = cols.begin(w); s < cols.end(w); ++s) {
      const S* from = at<S>(j.y, n, c, r->out, s->out);
      const T scale = (T)(r->scale * s->scale);
      const I* index = kMax ? at<I>(j.index, n, c, r->out, s->out) : nullptr;
      const I wanted = j.index_type == IndexType::flat64 ? (I)(h * j.p.cols.in + w)
                                                         : (I)(r->tap * j.p.cols.k + s->tap);
      for (int u = 0; u < U; ++u) {
        const Vec<T> dy = load_lanes<S>(from + u * W, lanes);
        if constexpr (kMax) {
          // Compared as wide as it is stored: an index outside the plane must not wrap.
          const auto place = load_index<T>(index + u * W, lanes);
          const auto match = place == decltype(place){} + wanted;
          sum[u] += __builtin_convertvector(match, IVec<T>) ? dy : Vec<T>{};
        } else {
          sum[u] += dy * scale;
        }
      }
    }
  S* dx = at<S>(j.x, n, c, h, w);
  for (int64_t i = 0; i < count; ++i, dx += j.x.stride[3])
    for (int u = 0; u < U; ++u) store_lanes<S>(dx + u * W, sum[u], lanes, 1);
}

// Rows of dx, channel-last (which is dense: it is the op's own output).
template <class S, class I, bool kMax>
inline void grad_channels(const PoolJob& j, void* scratch, int64_t begin, int64_t end) {
  constexpr int W = kW<Compute<S>>, U = 4;
  const Readers rows = Readers::make(j.p, j.p.rows, scratch);
  const Readers cols =
      Readers::make(j.p, j.p.cols, (char*)scratch + align64(Readers::bytes(j.p.rows)));
  const int64_t H = j.p.rows.in, width = j.p.cols.in, C = j.p.C;
  for (int64_t t = begin; t < end; ++t) {
    const int64_t n = t / H, h = t % H;
    if (!kMax && t > begin && h > 0 && rows.same(h)) {
      S* dx = at<S>(j.x, n, 0, h, 0);
      __builtin_memcpy(dx, dx - j.x.stride[2], width * C * sizeof(S));
      continue;
    }
    int64_t past = 0;
    for (int64_t w = 0; w < width; w = past) {
      for (past = w + 1; !kMax && past < width && cols.same(past);) ++past;
      int64_t c = 0;
      for (; c + U * W <= C; c += U * W)
        grad_places<S, I, kMax, U>(j, rows, cols, n, h, w, past - w, c, W);
      by_vectors<W>(c, C, [&](int64_t from, int64_t lanes) {
        grad_places<S, I, kMax, 1>(j, rows, cols, n, h, w, past - w, from, lanes);
      });
    }
  }
}

}  // namespace fastconv::FASTCONV_NS
