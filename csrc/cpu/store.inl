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
  bool apart;  // pixels of other images, which other threads store, lie between
};

// Output channels k .. k + lanes of group g of image n.
template <class S>
inline PanelStore<S> channel_store(const TapConv& job, int64_t n, int64_t g, int64_t k,
                                   int64_t lanes) {
  const int64_t k0 = g * job.K + k;
  const int64_t y = image_at(job, n, job.ys) + k0 * job.ys[1];
  const int64_t r = job.residual ? image_at(job, n, job.rs) + k0 * job.rs[1] : 0;
  return {job.bias ? (const S*)job.bias + k0 * job.bias_s : nullptr,
          job.residual ? (const S*)job.residual + r : nullptr,
          (S*)job.y + y,
          job.bias_s,
          job.rs[1],
          job.rs[2],
          job.rs[3],
          job.ys[1],
          job.ys[2],
          job.ys[3],
          lanes,
          job.activation,
          job.lattice.w > 1};
}

template <class S>
inline PanelStore<S> panel_store(const TapConv& job, int64_t n, int64_t g, int64_t panel) {
  constexpr int L = kPanel<Compute<S>>;
  return channel_store<S>(job, n, g, panel * L, min64(L, job.K - panel * L));
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

// n pixels of a row of channel-last y: vectors along k, of the last one `lanes` % W.
template <Activation kActivation, class S>
inline void store_channels(const PanelStore<S>& to, const Compute<S>* acc, const Compute<S>* bias,
                           int64_t p, int64_t q, int64_t n) {
  typedef Compute<S> T;
  constexpr int W = kW<T>;
  S* y = to.y + p * to.y_p + q * to.y_q;
  const S* residual = to.residual ? to.residual + p * to.r_p + q * to.r_q : nullptr;
  const Vec<T> b[2] = {load<T>(bias), load<T>(bias + W)};
  for (int64_t i = 0; i < n; ++i, acc += 2 * W, y += to.y_q) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const int64_t lanes = min64(to.lanes - half * W, W);
      if (lanes <= 0) break;
      Vec<T> v = load<T>(acc + half * W) + b[half];
      if (residual) v += load_lanes<S>(residual + half * W, lanes);
      store_lanes<S>(y + half * W, activate<T>(v, kActivation), lanes, 1);
    }
    if (residual) residual += to.r_q;
  }
}

// Up to W consecutive pixels of a planar y (NCHW), or of a stride phase: transpose, then vectors
// along q.
template <Activation kActivation, class S>
inline void store_pixels(const PanelStore<S>& to, const Compute<S>* acc, const Compute<S>* bias,
                         int64_t p, int64_t q, int64_t n) {
  typedef Compute<S> T;
  constexpr int W = kW<T>;
  for (int half = 0; half < 2 * W && half < to.lanes; half += W) {
    Vec<T> rows[W];
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) rows[i] = i < n ? load<T>(acc + i * 2 * W + half) : Vec<T>{};
    transpose<T>(rows);
    const int64_t lanes = min64(W, to.lanes - half);
#pragma GCC unroll 16
    for (int k = 0; k < W; ++k) {
      if (k >= lanes) break;
      Vec<T> v = rows[k] + broadcast<T>(bias[half + k]);
      if (to.residual)
        v += load_lanes<S>(to.residual + (half + k) * to.r_k + p * to.r_p + q * to.r_q, n);
      S* y = to.y + (half + k) * to.y_k + p * to.y_p + q * to.y_q;
      v = activate<T>(v, kActivation);
      // NOTE whole vectors of every second pixel are stored with what lies between.
      if (to.apart && n == W) {
        store_lanes<S>(y, v, W - 1, to.y_q);
        y[(W - 1) * to.y_q] = Narrow<S>::from(v[W - 1]);
      } else {
        store_lanes<S>(y, v, n, to.y_q);
      }
    }
  }
}

// A block of rows x cols pixels at (p0, q0); acc is [rows * cols][kPanel].
template <Activation kActivation, class S>
inline void store_block(const PanelStore<S>& to, const Compute<S>* acc, int64_t p0, int64_t q0,
                        int64_t rows, int64_t cols) {
  typedef Compute<S> T;
  constexpr int W = kW<T>, L = kPanel<T>;
  T bias[L];
  for (int64_t k = 0; k < L; ++k)
    bias[k] = to.bias && k < to.lanes ? widen(to.bias[k * to.bias_s]) : T(0);
  const bool channels = to.y_k == 1 && (!to.residual || to.r_k == 1);
  const bool pixels = !channels && (to.y_q == 1 || to.y_q == 2) && (!to.residual || to.r_q == 1);
  // Whole rows of a dense plane are one row.
  const bool dense = pixels && to.y_p == cols * to.y_q && (!to.residual || to.r_p == cols);
  if (dense) cols *= rows, rows = 1;
  for (int64_t i = 0; i < rows; ++i) {
    const T* row = acc + i * cols * L;
    if (channels)
      store_channels<kActivation, S>(to, row, bias, p0 + i, q0, cols);
    else if (pixels)
      for (int64_t j = 0; j < cols; j += W)
        store_pixels<kActivation, S>(to, row + j * L, bias, p0 + i, q0 + j, min64(W, cols - j));
    else
      for (int64_t j = 0; j < cols; ++j) store_scalar<S>(to, row + j * L, p0 + i, q0 + j);
  }
}

template <class S>
inline void store_panel(const PanelStore<S>& to, const Compute<S>* acc, int64_t p0, int64_t q0,
                        int64_t rows, int64_t cols) {
  switch (to.activation) {
    case Activation::relu: return store_block<Activation::relu, S>(to, acc, p0, q0, rows, cols);
    case Activation::sigmoid:
      return store_block<Activation::sigmoid, S>(to, acc, p0, q0, rows, cols);
    default: return store_block<Activation::none, S>(to, acc, p0, q0, rows, cols);
  }
}

// A whole tile from registers to channel-last y: its stores are on the way while the next is
// summed.
template <class M, int V, Activation kActivation, class S>
__attribute__((noinline)) void tile_to_channels(const Compute<S>* const* x, const Run* runs,
                                                int64_t run_count, const TilePanels<Compute<S>>& to,
                                                const Compute<S>* bias, S* y, int64_t y_q) {
  typedef Compute<S> T;
  constexpr int W = kW<T>;
  Vec<T> sums[V][kTile];
  sum_tile<M, kTile, V, false, 0, 1>(x, runs, run_count, to, sums);
#pragma GCC unroll 6
  for (int j = 0; j < kTile; ++j)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v)
      store_narrowed<S>(y + j * y_q + v * W,
                        activate<T>(sums[v][j] + load<T>(bias + v * W), kActivation));
}

}  // namespace fastconv::FASTCONV_NS
