// Rows: what the kernels that are bound by memory share. Sums, and rows split by phase.
namespace fastconv::FASTCONV_NS {

constexpr int64_t kSumTerms = 16;  // of a partial sum in T, before it is added to one in double

// sum of n consecutive elements
template <class S>
inline double sum_run(const S* x, int64_t n) {
  typedef Compute<S> T;
  constexpr int W = kW<T>, U = 4;
  double total = 0;
  while (n > 0) {
    const int64_t count = min64(n, kSumTerms * U * W);
    Vec<T> v[U] = {};
    T tail = 0;
    int64_t i = 0;
#pragma GCC unroll 1
    for (; i + U * W <= count; i += U * W)
      for (int u = 0; u < U; ++u) v[u] += load_widened<S>(x + i + u * W);
    for (; i + W <= count; i += W) v[0] += load_widened<S>(x + i);
    for (; i < count; ++i) tail += widen(x[i]);
    total += (double)(sum<T>((v[0] + v[1]) + (v[2] + v[3])) + tail);
    x += count, n -= count;
  }
  return total;
}

// n elements that are read soon; an address beyond the tensor does no harm.
template <class S>
inline void prefetch_row(const S* x, int64_t n) {
  for (int64_t i = 0; i < n; i += 64 / (int64_t)sizeof(S)) __builtin_prefetch(x + i);
}

// A row whose columns are split by phase (column mod stride): the columns that one tap of a window
// reads lie side by side.
struct Phases {
  int64_t stride, span;  // elements of a phase

  int64_t size() const { return stride * span; }
  int64_t at(int64_t column) const {
    if (stride == 1) return column;  // without a division
    if (stride == 2) return (column & 1) * span + (column >> 1);
    return column % stride * span + column / stride;
  }
};

// Columns [first, first + n) of a split row from src.
template <class S>
inline void split_row(const Phases& to, Compute<S>* dst, int64_t first, const S* src, int64_t n,
                      int64_t step) {
  typedef Compute<S> T;
  constexpr int W = kW<T>;
  if (to.stride == 2 && step == 1) {
    T *even = dst + to.at(first), *odd = dst + to.at(first + 1);
    int64_t i = 0;
    for (; i + 2 * W <= n; i += 2 * W) {
      Vec<T> e, o;
      deinterleave<T>(load_widened<S>(src + i), load_widened<S>(src + i + W), e, o);
      store<T>(even + i / 2, e);
      store<T>(odd + i / 2, o);
    }
    if (i < n) {
      const int64_t left = n - i, low = min64(left, W);
      Vec<T> e, o;
      deinterleave<T>(load_lanes<S>(src + i, low), load_lanes<S>(src + i + low, left - low), e, o);
      store_lanes<T>(even + i / 2, e, (left + 1) / 2, 1);
      store_lanes<T>(odd + i / 2, o, left / 2, 1);
    }
    return;
  }
  int64_t done = 0;
  if (to.stride == 4 && step == 1) {
    T* phase[4];
    for (int i = 0; i < 4; ++i) phase[i] = dst + to.at(first + i);
    for (; done + 4 * W <= n; done += 4 * W) {
      Vec<T> even[2], odd[2], out[4];
      for (int i = 0; i < 2; ++i) {
        const S* from = src + done + 2 * i * W;
        deinterleave<T>(load_widened<S>(from), load_widened<S>(from + W), even[i], odd[i]);
      }
      deinterleave<T>(even[0], even[1], out[0], out[2]);
      deinterleave<T>(odd[0], odd[1], out[1], out[3]);
      for (int i = 0; i < 4; ++i) store<T>(phase[i] + done / 4, out[i]);
    }
  }
  for (int64_t i = done; i < min64(done + to.stride, n); ++i)
    widen_row<S>(dst + to.at(first + i), src + i * step, ceil_div(n - i, to.stride),
                 step * to.stride);
}

// The inverse: dst[i * step] is column first + i. src may be read a vector past its end.
template <class S>
inline void join_row(const Phases& from, const Compute<S>* src, int64_t first, S* dst, int64_t n,
                     int64_t step) {
  typedef Compute<S> T;
  constexpr int W = kW<T>;
  if (from.stride == 2 && step == 1) {
    const T *even = src + from.at(first), *odd = src + from.at(first + 1);
    for (int64_t i = 0; i < n; i += 2 * W) {
      const int64_t lanes = min64(n - i, 2 * W), low = min64(lanes, W);
      Vec<T> lo, hi;
      interleave<T>(load<T>(even + i / 2), load<T>(odd + i / 2), lo, hi);
      store_lanes<S>(dst + i, lo, low, 1);
      store_lanes<S>(dst + i + low, hi, lanes - low, 1);
    }
    return;
  }
  for (int64_t i = 0; i < min64(from.stride, n); ++i)
    narrow_row<S>(dst + i * step, src + from.at(first + i), ceil_div(n - i, from.stride),
                  step * from.stride);
}

}  // namespace fastconv::FASTCONV_NS
