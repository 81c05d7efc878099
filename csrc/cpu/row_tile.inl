// The register tile of conv_rows.inl: J output channels, broadcast, times V vectors along a row.
namespace fastconv::FASTCONV_NS {

constexpr int kRowVectors = kPairs ? 4 : 2;  // of a tile: 24 or 12 accumulators

// Which tiles ran, in float and double: bit J - 1, 8 higher for each further vector.
static uint32_t row_tiles_ran[2];

// Products of a filter's taps or channels, one after the other in both operands.
struct RowRun {
  int64_t x, x_step, w, w_step, count;
};

// Where the sums of a tile go: element (j, v W) at y + j * plane + v * W.
template <class T>
struct RowTarget {
  T* y;
  int64_t plane;
  const T* before;  // partial sums to add, as y with their own plane; may be null
  int64_t before_plane;
  const T* residual;  // may be null
  int64_t residual_plane;
  const T* bias;  // of the tile's channels; may be null
  bool relu;
  int64_t last;  // lanes of the last vector
};

template <class T, int J, int V>
__attribute__((noinline)) void row_tile(const T* x, const T* const* w, const RowRun* runs,
                                        int64_t run_count, const RowTarget<T>& to, Lines next) {
  constexpr int W = kW<T>;
  const T* base[J];
  Vec<T> sums[J][V];
#pragma GCC unroll 6
  for (int j = 0; j < J; ++j) {
    base[j] = w[j];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sums[j][v] = Vec<T>{};
  }
  auto multiply = [&](const T* from, int64_t o) __attribute__((always_inline)) {
    Vec<T> xv[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) xv[v] = load<T>(from + v * W);
#pragma GCC unroll 6
    for (int j = 0; j < J; ++j) {
      const Vec<T> b = broadcast<T>(base[j][o]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) fma<T>(sums[j][v], xv[v], b);
    }
  };
  const RowRun *run = runs, *end = runs + run_count;
  for (; run < end && run->count == 1; ++run) multiply(x + run->x, run->w);
  for (; run < end; ++run) {
    const T* from = x + run->x;
    const int64_t x_step = run->x_step, w_step = run->w_step;
    int64_t o = run->w;
    for (int64_t i = run->count; i > 0; --i) {
      multiply(from, o);
      __builtin_prefetch(next.at, 0, 2);
      next.at += next.step, from += x_step, o += w_step;
    }
  }
#pragma GCC unroll 6
  for (int j = 0; j < J; ++j) {
    const Vec<T> bias = to.bias ? broadcast<T>(to.bias[j]) : Vec<T>{};
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sums[j][v] += bias;
  }
  if (to.before || to.residual) {
#pragma GCC unroll 6
    for (int j = 0; j < J; ++j)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        const int64_t lanes = v < V - 1 ? W : to.last;
        if (to.before) sums[j][v] += load<T>(to.before + j * to.before_plane + v * W);
        if (to.residual)
          sums[j][v] += load_lanes<T>(to.residual + j * to.residual_plane + v * W, lanes);
      }
  }
  if (to.relu)
#pragma GCC unroll 6
    for (int j = 0; j < J; ++j)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sums[j][v] = activate<T>(sums[j][v], Activation::relu);
  T* y = to.y;
#pragma GCC unroll 6
  for (int j = 0; j < J; ++j, y += to.plane) {
#pragma GCC unroll 4
    for (int v = 0; v < V - 1; ++v) store<T>(y + v * W, sums[j][v]);
    if (to.last == W)
      store<T>(y + (V - 1) * W, sums[j][V - 1]);
    else
      store_lanes<T>(y + (V - 1) * W, sums[j][V - 1], to.last, 1);
  }
}

template <class T, int V>
FASTCONV_INLINE void row_tile(int J, const T* x, const T* const* w, const RowRun* runs,
                              int64_t run_count, const RowTarget<T>& to, Lines next) {
  switch (J) {
    case 1: return row_tile<T, 1, V>(x, w, runs, run_count, to, next);
    case 2: return row_tile<T, 2, V>(x, w, runs, run_count, to, next);
    case 3: return row_tile<T, 3, V>(x, w, runs, run_count, to, next);
    case 4: return row_tile<T, 4, V>(x, w, runs, run_count, to, next);
    case 5: return row_tile<T, 5, V>(x, w, runs, run_count, to, next);
    default: return row_tile<T, 6, V>(x, w, runs, run_count, to, next);
  }
}

template <class T>
FASTCONV_INLINE void row_tile(int J, int V, const T* x, const T* const* w, const RowRun* runs,
                              int64_t run_count, const RowTarget<T>& to, Lines next) {
  if constexpr (kRowVectors == 4) {
    if (V == 4) return row_tile<T, 4>(J, x, w, runs, run_count, to, next);
    if (V == 3) return row_tile<T, 3>(J, x, w, runs, run_count, to, next);
  }
  if (V == 1) return row_tile<T, 1>(J, x, w, runs, run_count, to, next);
  return row_tile<T, 2>(J, x, w, runs, run_count, to, next);
}

}  // namespace fastconv::FASTCONV_NS
