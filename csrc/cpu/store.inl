// From a panel of accumulators [pixel][kPanel] to the output: epilogue, narrowing, layout.
namespace fastconv::FASTCONV_NS {

// Where a panel goes: `lanes` output channels from element k0 of each operand, one image.
template <class S>
struct PanelStore {
  const S* bias;      // may be null
  const S* residual;  // may be null
  S* y;
  int64_t bias_s, r_k, r_p, r_q, y_k, y_p, y_q;
  int64_t lanes;
  Activation activation;
};

// Panel `panel` of group g of image n.
template <class S>
inline PanelStore<S> panel_store(const TapConv& job, int64_t n, int64_t g, int64_t panel) {
  constexpr int L = kPanel<Compute<S>>;
  const int64_t k0 = g * job.K + panel * L;
  return {job.bias ? (const S*)job.bias + k0 * job.bias_s : nullptr,
          job.residual ? (const S*)job.residual + n * job.rs[0] + k0 * job.rs[1] : nullptr,
          (S*)job.y + n * job.ys[0] + k0 * job.ys[1],
          job.bias_s,
          job.rs[1],
          job.rs[2],
          job.rs[3],
          job.ys[1],
          job.ys[2],
          job.ys[3],
          min64(L, job.K - panel * L),
          job.activation};
}

template <class S>
inline void store_scalar(const PanelStore<S>& to, const Compute<S>* acc, int64_t p, int64_t q) {
  typedef Compute<S> T;
  for (int64_t k = 0; k < to.lanes; ++k) {
    T v = acc[k];
    if (to.bias) v += widen(to.bias[k * to.bias_s]);
    if (to.residual) v += widen(to.residual[k * to.r_k + p * to.r_p + q * to.r_q]);
    to.y[k * to.y_k + p * to.y_p + q * to.y_q] =
        Narrow<S>::from(activate_scalar<T>(v, to.activation));
  }
}

// One pixel of channel-last y: whole vectors along k.
template <class S>
inline void store_channels(const PanelStore<S>& to, const Compute<S>* acc, const Compute<S>* bias,
                           int64_t p, int64_t q) {
  typedef Compute<S> T;
  constexpr int W = kW<T>;
  for (int half = 0; half < 2 * W; half += W) {
    Vec<T> v = load<T>(acc + half) + load<T>(bias + half);
    if (to.residual) v += load_widened<S>(to.residual + half + p * to.r_p + q * to.r_q);
    store_narrowed<S>(to.y + half + p * to.y_p + q * to.y_q, activate<T>(v, to.activation));
  }
}

// W consecutive pixels of a planar y (NCHW): transpose, then whole vectors along q.
template <class S>
inline void store_pixels(const PanelStore<S>& to, const Compute<S>* acc, const Compute<S>* bias,
                         int64_t p, int64_t q) {
  typedef Compute<S> T;
  constexpr int W = kW<T>;
  for (int half = 0; half < 2 * W && half < to.lanes; half += W) {
    Vec<T> rows[W];
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) rows[i] = load<T>(acc + i * 2 * W + half);
    transpose<T>(rows);
    const int64_t lanes = min64(W, to.lanes - half);
#pragma GCC unroll 16
    for (int k = 0; k < W; ++k) {
      if (k >= lanes) break;
      Vec<T> v = rows[k] + broadcast<T>(bias[half + k]);
      if (to.residual)
        v += load_widened<S>(to.residual + (half + k) * to.r_k + p * to.r_p + q * to.r_q);
      store_narrowed<S>(to.y + (half + k) * to.y_k + p * to.y_p + q * to.y_q,
                        activate<T>(v, to.activation));
    }
  }
}

// A block of rows x cols pixels at (p0, q0); acc is [rows * cols][kPanel].
template <class S>
inline void store_panel(const PanelStore<S>& to, const Compute<S>* acc, int64_t p0, int64_t q0,
                        int64_t rows, int64_t cols) {
  typedef Compute<S> T;
  constexpr int W = kW<T>, L = kPanel<T>;
  T bias[L];
  for (int64_t k = 0; k < L; ++k)
    bias[k] = to.bias && k < to.lanes ? widen(to.bias[k * to.bias_s]) : T(0);
  const bool channels = to.y_k == 1 && to.lanes == L && (!to.residual || to.r_k == 1);
  const bool pixels = !channels && to.y_q == 1 && (!to.residual || to.r_q == 1);
  // Whole rows of a dense plane are one row.
  const bool dense = pixels && to.y_p == cols && (!to.residual || to.r_p == cols);
  if (dense) cols *= rows, rows = 1;
  for (int64_t i = 0; i < rows; ++i) {
    int64_t j = 0;
    const T* row = acc + i * cols * L;
    if (channels)
      for (; j < cols; ++j) store_channels<S>(to, row + j * L, bias, p0 + i, q0 + j);
    if (pixels)
      for (; j + W <= cols; j += W) store_pixels<S>(to, row + j * L, bias, p0 + i, q0 + j);
    for (; j < cols; ++j) store_scalar<S>(to, row + j * L, p0 + i, q0 + j);
  }
}

}  // namespace fastconv::FASTCONV_NS
