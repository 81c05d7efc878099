// Residual add and the gradient of an activation: one pass over two operands.
namespace fastconv::FASTCONV_NS {

template <class T, bool kGrad>
FASTCONV_INLINE Vec<T> pair_vector(Vec<T> a, Vec<T> b, Activation activation) {
  if constexpr (kGrad) return activation_grad<T>(a, b, activation);
  return activate<T>(a + b, activation);
}

template <class S, bool kGrad, Activation kActivation>
inline void pair_row(const S* a, int64_t a_s, const S* b, int64_t b_s, S* out, int64_t out_s,
                     int64_t n) {
  typedef Compute<S> T;
  constexpr int W = kW<T>, U = 8;
  auto vector = [&](int64_t at) {
    Vec<T> v = pair_vector<T, kGrad>(load_widened<S>(a + at), load_widened<S>(b + at), kActivation);
    opaque<T>(v);
    return v;
  };
  const bool dense = a_s == 1 && b_s == 1 && out_s == 1;
  int64_t i = 0;
  if (dense) {
    // Four vectors in ascending order before the first is stored: operands and result are often a
    // multiple of 4 KB and a few cache lines apart, where a load waits for the store before it.
    for (; i + U * W <= n; i += U * W) {
      Vec<T> v[U];
      for (int u = 0; u < U; ++u) v[u] = vector(i + u * W);
      for (int u = 0; u < U; ++u) store_narrowed<S>(out + i + u * W, v[u]);
    }
    for (; i + W <= n; i += W) store_narrowed<S>(out + i, vector(i));
  }
  for (; i < n; i += W) {
    const int64_t lanes = min64(W, n - i);
    T va[W] = {}, vb[W] = {};
    widen_row<S>(va, a + i * a_s, lanes, a_s);
    widen_row<S>(vb, b + i * b_s, lanes, b_s);
    store_lanes<S>(out + i * out_s, pair_vector<T, kGrad>(load<T>(va), load<T>(vb), kActivation),
                   lanes, out_s);
  }
}

// A task is a block of elements where dense; else (image, row) channel-last, (image, channel).
template <class S, bool kGrad, Activation kActivation>
inline void pair_tasks(const PairJob& j, int64_t begin, int64_t end) {
  if (j.dense) {
    const int64_t first = begin * kPairBlock, n = min64(end * kPairBlock, j.total) - first;
    return pair_row<S, kGrad, kActivation>(
        (const S*)j.a.data + first, 1, (const S*)j.b.data + first, 1, (S*)j.out.data + first, 1, n);
  }
  const bool channels = j.out.stride[1] == 1 && j.out.size[1] > 1;
  const int outer = channels ? 2 : 1, middle = channels ? 3 : 2, inner = channels ? 1 : 3;
  for (int64_t t = begin; t < end; ++t) {
    const int64_t n = t / j.out.size[outer], o = t % j.out.size[outer];
    auto row = [&](const View& v, int64_t m) {
      return (S*)v.data + n * v.stride[0] + o * v.stride[outer] + m * v.stride[middle];
    };
    for (int64_t m = 0; m < j.out.size[middle]; ++m)
      pair_row<S, kGrad, kActivation>(row(j.a, m), j.a.stride[inner], row(j.b, m),
                                      j.b.stride[inner], row(j.out, m), j.out.stride[inner],
                                      j.out.size[inner]);
  }
}

template <class S, bool kGrad>
inline void pair_activation(const PairJob& j, int64_t begin, int64_t end) {
  switch (j.activation) {
    case Activation::none: return pair_tasks<S, kGrad, Activation::none>(j, begin, end);
    case Activation::relu: return pair_tasks<S, kGrad, Activation::relu>(j, begin, end);
    case Activation::sigmoid: return pair_tasks<S, kGrad, Activation::sigmoid>(j, begin, end);
  }
}

template <class S>
inline void pair_run(const PairJob& j, int64_t begin, int64_t end) {
  if (j.grad) return pair_activation<S, true>(j, begin, end);
  pair_activation<S, false>(j, begin, end);
}

}  // namespace fastconv::FASTCONV_NS
