// Max pooling and its gradient: bound by memory.
//
// Channel-last: vectors along channels, windows clipped at the edges. Otherwise one plane at a
// time: the rows a window needs live in a ring, padded with -inf and split by column phase (column
// mod stride), so that every tap of a row of outputs is one contiguous vector stream. The gradient
// is added to a plane of sums, one output at a time.
namespace fastconv::FASTCONV_NS {

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
template <class T>
inline void store_taps(const PoolJob& j, int64_t to, int64_t step, IVec<T> taps, int64_t lanes,
                       int64_t p, int64_t q, int64_t dq) {
  constexpr int W = kW<T>;
  const PoolAxis &rows = j.p.rows, &cols = j.p.cols;
  if (j.index_type == IndexType::window8) {
    typedef typename IndexOf<uint8_t, T>::type Bytes;
    const Bytes bytes = __builtin_convertvector(taps, Bytes);
    uint8_t* out = (uint8_t*)j.index.data + to;
    if (lanes == W && step == 1)
      __builtin_memcpy(out, &bytes, W);
    else
      for (int64_t i = 0; i < lanes; ++i) out[i * step] = bytes[i];
  } else if (j.index_type == IndexType::window32) {
    int32_t* out = (int32_t*)j.index.data + to;
    for (int64_t i = 0; i < lanes; ++i) out[i * step] = (int32_t)taps[i];
  } else {
    int64_t* out = (int64_t*)j.index.data + to;
    const int64_t h0 = p * rows.stride - rows.pad, w0 = q * cols.stride - cols.pad;
    for (int64_t i = 0; i < lanes; ++i) {
      const uint32_t tap = (uint32_t)taps[i], r = tap / (uint32_t)cols.k;  // 32 bits divide faster
      const int64_t s = tap - r * cols.k;
      out[i * step] = (h0 + r * rows.dil) * cols.in + w0 + i * dq * cols.stride + s * cols.dil;
    }
  }
}

// The running maximum: the first of equals wins, and any NaN.
template <class T, bool kIndex>
FASTCONV_INLINE void maximum(Vec<T>& best, IVec<T>& place, Vec<T> v, int64_t tap) {
  const IVec<T> wins = (v > best) | (v != v);
  best = select<T>(wins, v, best);
  if constexpr (kIndex) place = wins ? IVec<T>{} + (typename TapInt<T>::type)tap : place;
}

template <class S, bool kIndex>
inline void max_channels(const PoolJob& j, int64_t n, int64_t p) {
  typedef Compute<S> T;
  typedef typename TapInt<T>::type Int;
  const PoolAxis &rows = j.p.rows, &cols = j.p.cols;
  const int64_t h0 = p * rows.stride - rows.pad;
  const int64_t row = rows.dil * j.x.stride[2], col = cols.dil * j.x.stride[3];
  const Range r = taps_inside(rows, h0);
  for (int64_t q = 0; q < cols.out; ++q) {
    const int64_t w0 = q * cols.stride - cols.pad;
    const Range s = taps_inside(cols, w0);
    const S* x = at<S>(j.x, n, 0, h0 + r.first * rows.dil, w0 + s.first * cols.dil);
    S* y = at<S>(j.y, n, 0, p, q);
    by_vectors<kW<T>>(0, j.p.C, [&](int64_t c, int64_t lanes) {
      Vec<T> best = broadcast<T>(-__builtin_inff());
      IVec<T> place = IVec<T>{} + (Int)(r.first * cols.k + s.first);
      const S* from = x + c;
      for (int64_t i = r.first; i < r.last; ++i, from += row) {
        const S* tap = from;
        for (int64_t k = s.first; k < s.last; ++k, tap += col)
          maximum<T, kIndex>(best, place, load_lanes<S>(tap, lanes), i * cols.k + k);
      }
      store_lanes<S>(y + c, best, lanes, 1);
      if constexpr (kIndex)
        store_taps<T>(j, at<char>(j.index, n, c, p, q) - (char*)j.index.data, 1, place, lanes, p, q,
                      0);
    });
  }
}

// Scratch of a plane's max pooling: the ring of rows, and what depends on a column only. Columns
// count from the padding on.
template <class T>
struct MaxRing {
  typedef typename TapInt<T>::type Int;
  Phases phases;
  int64_t slots, row;  // rows held; elements of one
  T* data;
  int64_t* offset;  // [S] where tap s of output 0 lies in a row
  Int* first;       // [Q + W] the first tap inside the input

  static MaxRing make(const PoolProblem& p, void* scratch, int64_t& bytes) {
    MaxRing m;
    constexpr int W = kW<T>;
    const int64_t columns = max64(
        (p.cols.out - 1) * p.cols.stride + (p.cols.k - 1) * p.cols.dil + 1, p.cols.pad + p.cols.in);
    m.phases = {p.cols.stride, ceil_div(columns, p.cols.stride) + W};
    m.slots = (p.rows.k - 1) * p.rows.dil + 1;
    m.row = m.phases.size();
    m.data = (T*)scratch;
    m.offset = (int64_t*)((char*)scratch + align64((m.slots * m.row + W) * sizeof(T)));
    m.first = (Int*)((char*)m.offset + align64(p.cols.k * sizeof(int64_t)));
    bytes = (char*)(m.first + p.cols.out + W) - (char*)scratch;
    return m;
  }

  void prepare(const PoolAxis& cols) {
    for (int64_t i = 0; i < slots * row + kW<T>; ++i) data[i] = -__builtin_inff();
    for (int64_t s = 0; s < cols.k; ++s) offset[s] = phases.at(s * cols.dil);
    for (int64_t q = 0; q < cols.out + kW<T>; ++q)
      first[q] = q < cols.out ? (Int)taps_inside(cols, q * cols.stride - cols.pad).first : 0;
  }
};

template <class S, bool kIndex>
inline void max_plane(const PoolJob& j, MaxRing<Compute<S>>& ring, int64_t n, int64_t c) {
  typedef Compute<S> T;
  typedef typename TapInt<T>::type Int;
  const PoolAxis &rows = j.p.rows, &cols = j.p.cols;
  int64_t next = 0;  // the first row not in the ring yet
  for (int64_t p = 0; p < rows.out; ++p) {
    const int64_t h0 = p * rows.stride - rows.pad;
    const Range r = taps_inside(rows, h0);
    // The padding around a row is written once, by prepare.
    for (next = max64(next, h0); r.first < r.last && next <= h0 + (r.last - 1) * rows.dil; ++next)
      split_row<S>(ring.phases, ring.data + next % ring.slots * ring.row, cols.pad,
                   at<S>(j.x, n, c, next, 0), cols.in, j.x.stride[3]);
    const int64_t first = (h0 + r.first * rows.dil) % ring.slots;
    by_vectors<kW<T>>(0, cols.out, [&](int64_t q, int64_t lanes) {
      Vec<T> best = broadcast<T>(-__builtin_inff());
      IVec<T> place = {};
      if constexpr (kIndex) {
        __builtin_memcpy(&place, ring.first + q, sizeof place);
        place += (Int)(r.first * cols.k);
      }
      int64_t slot = first;
      for (int64_t i = r.first; i < r.last; ++i) {
        const T* row = ring.data + slot * ring.row + q;
        for (int64_t s = 0; s < cols.k; ++s)
          maximum<T, kIndex>(best, place, load<T>(row + ring.offset[s]), i * cols.k + s);
        slot += rows.dil;
        if (slot >= ring.slots) slot -= ring.slots;
      }
      store_lanes<S>(at<S>(j.y, n, c, p, q), best, lanes, j.y.stride[3]);
      if constexpr (kIndex)
        store_taps<T>(j, at<char>(j.index, n, c, p, q) - (char*)j.index.data, j.index.stride[3],
                      place, lanes, p, q, 1);
    });
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
  if (pool_channels(j)) return readers + Readers::bytes(j.p.cols);
  if (!j.max) return readers + AvgPlane<T>::make(j.p, nullptr).total;
  if (j.grad) return GradPlane<T>::make(j.p, nullptr).total;
  int64_t bytes;
  MaxRing<T>::make(j.p, nullptr, bytes);
  return bytes;
}

}  // namespace fastconv::FASTCONV_NS
