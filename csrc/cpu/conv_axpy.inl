// A 1x1 of few pixels whose weights lie along the output channels, as those of an input gradient
// do: the other half of conv_dots.inl, with vectors along k.
//
//   for each block of output channels: for each few rows of weights: for each tile of pixels:
//     acc[j][k .. k + W) += sum over rows of x[j][c + r] * w[c + r][k .. k + W) | epilogue, store
// The rows are sequential streams, and are read once; the sums of a block stay in L1.
namespace fastconv::FASTCONV_NS {

// Weights' rows of a tile of J pixels: that many x each, J sums and a vector of weights.
template <int J>
constexpr int kAxpyRows = (int)min64(8, ((kPairs ? 32 : 16) - 1) / J - 1);

static uint32_t axpy_tiles_ran;  // which tiles ran: bit J - 1, 16 higher in double

// x[j][0..R) times R rows of weights, of `lanes` output channels, to acc[panel][pixel][kPanel],
// panels `pitch` apart. Rows of the next tile are asked for, `ahead` bytes from these.
template <class S, int J, int R>
__attribute__((noinline)) void axpy_tile(const Compute<S>* const* x, const S* w, int64_t row,
                                         int64_t lanes, Compute<S>* acc, int64_t pitch,
                                         bool accumulate, int64_t ahead) {
  typedef Compute<S> T;
  constexpr int W = kW<T>, L = kPanel<T>;
  Vec<T> xv[J][R];
#pragma GCC unroll 6
  for (int j = 0; j < J; ++j)
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) xv[j][r] = broadcast<T>(x[j][r]);
  auto add = [&](int64_t k, auto load_w) __attribute__((always_inline)) {
    Vec<T> sums[J] = {};
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec<T> wv = load_w(w + r * row + k);
#pragma GCC unroll 6
      for (int j = 0; j < J; ++j) fma<T>(sums[j], wv, xv[j][r]);
    }
    T* to = acc + k / L * pitch + k % L;
#pragma GCC unroll 6
    for (int j = 0; j < J; ++j)
      store<T>(to + j * L, accumulate ? load<T>(to + j * L) + sums[j] : sums[j]);
  };
  int64_t k = 0;
  for (; k + W <= lanes; k += W) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) __builtin_prefetch((const char*)(w + r * row + k) + ahead, 0, 2);
    add(k, [](const S* p) { return load_widened<S>(p); });
  }
  if (const int64_t n = lanes - k) add(k, [n](const S* p) { return load_lanes<S>(p, n); });
}

// The same of `count` input channels, for the pixels at x.
template <class S, int J>
inline void axpy_chunk(const S* w, int64_t row, int64_t lanes, const Compute<S>* const* x,
                       int64_t pixels, int64_t c0, int64_t count, Compute<S>* acc, int64_t pitch) {
  typedef Compute<S> T;
  constexpr int R = kAxpyRows<J>, L = kPanel<T>;
  for (int64_t c = 0, rows; c < count; c += rows, w += rows * row) {
    rows = count - c >= R ? R : 1;
    const int64_t ahead = count - c >= 2 * R ? R * row * (int64_t)sizeof(S) : 0;
    for (int64_t m = 0; m < pixels; m += J) {
      const T* from[J];  // past the last pixel it is repeated, for sums that are not stored
      for (int j = 0; j < J; ++j) from[j] = x[min64(m + j, pixels - 1)] + c0 + c;
      if (rows == R)
        axpy_tile<S, J, R>(from, w, row, lanes, acc + m * L, pitch, c > 0, m ? 0 : ahead);
      else
        axpy_tile<S, J, 1>(from, w, row, lanes, acc + m * L, pitch, c > 0, 0);
    }
  }
}

// acc of `lanes` output channels, whose weights begin at w; `partial`: room for as much again.
template <class S, int J>
inline void axpy_block(const TapConv& job, const Blocking& b, const S* w, int64_t lanes,
                       const Compute<S>* const* x, int64_t pixels, Compute<S>* acc,
                       Compute<S>* partial, int64_t pitch) {
  typedef Compute<S> T;
  for (int64_t c0 = 0; c0 < job.C; c0 += b.chunk) {
    axpy_chunk<S, J>(w + c0 * job.ws[2], job.ws[2], lanes, x, pixels, c0,
                     min64(b.chunk, job.C - c0), c0 ? partial : acc, pitch);
    for (int64_t i = 0; c0 && i < ceil_div(lanes, kPanel<T>) * pitch; i += kW<T>)
      store<T>(acc + i, load<T>(acc + i) + load<T>(partial + i));
  }
  __atomic_fetch_or(&axpy_tiles_ran, 1u << (sizeof(T) == 8 ? 16 : 0) << (J - 1), __ATOMIC_RELAXED);
}

}  // namespace fastconv::FASTCONV_NS
