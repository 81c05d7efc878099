// Gradients of the poolings. Channel-last: every place of dx gathers from the windows that hold it.
// Otherwise one plane at a time: dy is spread over a plane (max) or a row (average) of scratch.
// No two tasks write the same place, and sums have a fixed order.
namespace fastconv::FASTCONV_NS {

// Outputs whose window, dilation included, may hold place h.
inline Range readers_of(const PoolAxis& a, int64_t h) {
  if (a.adaptive) return {h * a.out / a.in, ceil_div((h + 1) * a.out, a.in)};
  const int64_t past = h + a.pad - a.dil * (a.k - 1);
  return {past > 0 ? ceil_div(past, a.stride) : 0, min64(a.out, (h + a.pad) / a.stride + 1)};
}

// The tap of window p that reads place h, or -1.
inline int64_t tap_at(const PoolAxis& a, int64_t p, int64_t h) {
  const int64_t distance = h + a.pad - p * a.stride;
  return distance % a.dil ? -1 : distance / a.dil;
}

// Offset of output (p, q)'s maximum in its plane; -1 where the index points outside.
inline int64_t place_of(const PoolJob& j, int64_t index, int64_t p, int64_t q) {
  const PoolAxis &rows = j.p.rows, &cols = j.p.cols;
  if (j.index_type == IndexType::flat64)
    return index >= 0 && index < rows.in * cols.in ? index : -1;
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

template <class S, class I>
inline void max_grad_channels(const PoolJob& j, void* scratch, int64_t n, int64_t h) {
  typedef Compute<S> T;
  const PoolAxis &rows = j.p.rows, &cols = j.p.cols;
  const int64_t C = j.p.C;
  T* __restrict sum = (T*)scratch;
  const Range ps = readers_of(rows, h);
  for (int64_t w = 0; w < cols.in; ++w) {
    const Range qs = readers_of(cols, w);
    zero(sum, C);
    for (int64_t p = ps.first; p < ps.last; ++p) {
      const int64_t r = tap_at(rows, p, h);
      for (int64_t q = qs.first; r >= 0 && q < qs.last; ++q) {
        const int64_t s = tap_at(cols, q, w);
        if (s < 0) continue;
        const I wanted = (I)(j.index_type == IndexType::flat64 ? h * cols.in + w : r * cols.k + s);
        const S* __restrict dy = at<S>(j.y, n, 0, p, q);
        const I* __restrict index = at<I>(j.index, n, 0, p, q);
        for (int64_t c = 0; c < C; ++c) {
          const T d = widen(dy[c]);
          sum[c] += index[c] == wanted ? d : T(0);
        }
      }
    }
    S* dx = at<S>(j.x, n, 0, h, w);
    for (int64_t c = 0; c < C; ++c) dx[c] = Narrow<S>::from(sum[c]);
  }
}

template <class S, class I>
inline void max_grad_plane(const PoolJob& j, void* scratch, int64_t n, int64_t c) {
  typedef Compute<S> T;
  const PoolAxis &rows = j.p.rows, &cols = j.p.cols;
  T* sum = (T*)scratch;
  zero(sum, rows.in * cols.in);
  for (int64_t p = 0; p < rows.out; ++p)
    for (int64_t q = 0; q < cols.out; ++q) {
      const int64_t place = place_of(j, *at<I>(j.index, n, c, p, q), p, q);
      if (place >= 0) sum[place] += widen(*at<S>(j.y, n, c, p, q));
    }
  for (int64_t h = 0; h < rows.in; ++h)
    for (int64_t w = 0; w < cols.in; ++w)
      *at<S>(j.x, n, c, h, w) = Narrow<S>::from(sum[h * cols.in + w]);
}

template <class S, class I>
inline void max_pool_grad(const PoolJob& j, void* scratch, int64_t begin, int64_t end) {
  if (pool_channels(j))
    for (int64_t t = begin; t < end; ++t)
      max_grad_channels<S, I>(j, scratch, t / j.p.rows.in, t % j.p.rows.in);
  else
    for (int64_t t = begin; t < end; ++t) max_grad_plane<S, I>(j, scratch, t / j.p.C, t % j.p.C);
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

template <class S>
inline void avg_grad_channels(const PoolJob& j, void* scratch, int64_t n, int64_t h) {
  typedef Compute<S> T;
  const int64_t C = j.p.C;
  T* __restrict sum = (T*)scratch;
  const Range ps = readers_of(j.p.rows, h);
  for (int64_t w = 0; w < j.p.cols.in; ++w) {
    const Range qs = readers_of(j.p.cols, w);
    zero(sum, C);
    for (int64_t p = ps.first; p < ps.last; ++p)
      for (int64_t q = qs.first; q < qs.last; ++q) {
        const int64_t counted = count_of(j.p, j.p.rows, p);
        const T divisor = (T)divisor_of(j.p, counted, count_of(j.p, j.p.cols, q));
        const S* __restrict dy = at<S>(j.y, n, 0, p, q);
        for (int64_t c = 0; c < C; ++c) sum[c] += widen(dy[c]) / divisor;
      }
    S* dx = at<S>(j.x, n, 0, h, w);
    for (int64_t c = 0; c < C; ++c) dx[c] = Narrow<S>::from(sum[c]);
  }
}

template <class S>
inline void avg_grad_plane(const PoolJob& j, AvgColumns<Compute<S>>& a, Compute<S>* spread,
                           int64_t n, int64_t c) {
  typedef Compute<S> T;
  const PoolAxis &rows = j.p.rows, &cols = j.p.cols;
  for (int64_t h = 0; h < rows.in; ++h) {
    const Range ps = readers_of(rows, h);
    zero(spread, cols.out);
    zero(a.row, cols.in);
    for (int64_t p = ps.first; p < ps.last; ++p) {
      const T counted = (T)count_of(j.p, rows, p);
      const S* dy = at<S>(j.y, n, c, p, 0);
      for (int64_t q = 0; q < cols.out; ++q)
        spread[q] += widen(dy[q * j.y.stride[3]]) / a.divisor(j.p, counted, q);
    }
    for (int64_t q = 0; q < cols.out; ++q)
      for (int64_t s = a.windows[q].first; s < a.windows[q].last; ++s) a.row[s] += spread[q];
    S* dx = at<S>(j.x, n, c, h, 0);
    for (int64_t w = 0; w < cols.in; ++w) dx[w * j.x.stride[3]] = Narrow<S>::from(a.row[w]);
  }
}

template <class S>
inline void avg_pool_grad_run(const PoolJob& j, void* scratch, int64_t begin, int64_t end) {
  if (pool_channels(j)) {
    for (int64_t t = begin; t < end; ++t)
      avg_grad_channels<S>(j, scratch, t / j.p.rows.in, t % j.p.rows.in);
    return;
  }
  AvgColumns<Compute<S>> columns = AvgColumns<Compute<S>>::make(j.p, scratch);
  columns.prepare(j.p);
  Compute<S>* spread = columns.counted + j.p.cols.out;
  for (int64_t t = begin; t < end; ++t) avg_grad_plane<S>(j, columns, spread, t / j.p.C, t % j.p.C);
}

// Bytes of scratch that a task of any pooling kernel of this job needs.
template <class S>
inline int64_t pool_scratch(const PoolJob& j) {
  typedef Compute<S> T;
  if (pool_channels(j)) return 2 * j.p.C * sizeof(T);
  if (!j.max) return AvgColumns<T>::bytes(j.p) + j.p.cols.out * sizeof(T);
  if (j.grad) return j.p.rows.in * j.p.cols.in * sizeof(T);
  int64_t bytes;
  MaxRing<T>::make(j.p, nullptr, bytes);
  return bytes;
}

}  // namespace fastconv::FASTCONV_NS
