// Max pooling's gradient, and values at the maxima's places: bound by memory.
//
// Channel-last: pool.inl. Otherwise dy is added to a plane of sums, one output at a time.
namespace fastconv::FASTCONV_NS {

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
  const int64_t columns = align64(j.p.cols.k) * sizeof(int64_t);  // MaxRow's
  int64_t bytes = 0;
  if (j.max && !j.grad && slides(j)) KeptRow<T, IVec<T>>::make(j.p, nullptr, bytes);
  if (pool_channels(j)) return j.grad ? readers + Readers::bytes(j.p.cols) : columns + bytes;
  const int64_t strips = !j.grad && in_strips(j) ? Strips<S>::bytes(j.p.cols) : 0;
  if (!j.max) return readers + align64(AvgPlane<T>::make(j.p, nullptr).total) + strips;
  if (strips) return strips;
  if (j.grad) return GradPlane<T>::make(j.p, nullptr).total;
  MaxBand<T>::make(j.p, nullptr, bytes);
  return columns + bytes;
}

}  // namespace fastconv::FASTCONV_NS
