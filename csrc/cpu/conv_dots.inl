// A 1x1 of few pixels, such as a fully connected layer of a small batch: reading the weights bounds
// it, so they are read once, where they lie, with vectors along c.
//
//   for each few output channels: for each chunk of C: for each tile of pixels:
//     sums[j][r][0..W) += x[j][c .. c + W) * w[k + r][c .. c + W) | then lanes, epilogue and store
// Several rows of weights at once: they are sequential streams, which the processor fetches ahead,
// and give one pixel enough independent sums.
namespace fastconv::FASTCONV_NS {

// Output channels of a tile of J pixels: sums, weights and one vector of x fill the registers.
template <class T, int J>
constexpr int kDotRows = (int)min64(min64(8, kPanel<T>), ((kPairs ? 32 : 16) - 1) / (J + 1));
// Tiles of as many pixels each, the last of which may overlap: of kFewPixels in all.
constexpr int kDotTiles = (int)ceil_div(kFewPixels, kTile);
// Weights are asked for so far ahead, into L2, as it is too early for L1. Zen 4, 9216 -> 4096 of
// one pixel in ms, into L2 | into L1 | not: 5.2 | 6.9 | 7.2; of fewer rows at once, not: four 6.5,
// two 7.3, one 8.6.
constexpr int64_t kDotAhead = 1024;

static uint32_t dot_tiles_ran;  // which tiles ran: bit J - 1, 8 higher of couples, 16 in double

// `count` input channels of J pixels and kDotRows output channels. Sums are from zero and then
// added. `ahead`: bytes to weights that are read later.
template <class S, class M, int J>
__attribute__((noinline)) void dot_tile(const Compute<S>* const* x, const S* const* w,
                                        int64_t count, int64_t ahead, Vec<Compute<S>>* total,
                                        bool accumulate) {
  typedef Compute<S> T;
  constexpr int W = kW<T>, R = kDotRows<T, J>;
  Vec<T> sums[J][R];
  const T* pixel[J];
  const S* row[R];
#pragma GCC unroll 6
  for (int j = 0; j < J; ++j) {
    pixel[j] = x[j];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) sums[j][r] = Vec<T>{};
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) row[r] = w[r];
  auto add = [&](auto load) __attribute__((always_inline)) {
    Vec<T> wv[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) wv[r] = load(row[r]);
#pragma GCC unroll 6
    for (int j = 0; j < J; ++j) {
      const Vec<T> xv = load(pixel[j]);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) multiply<M>(sums[j][r], wv[r], xv);
    }
  };
  int64_t c = 0;
  for (; c + W <= count; c += W) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) __builtin_prefetch((const char*)(row[r] + c) + ahead, 0, 2);
    add([c](auto* p) { return load_widened(p + c); });
  }
  if (const int64_t lanes = count - c)
    add([c, lanes](auto* p) { return load_lanes(p + c, lanes); });
#pragma GCC unroll 6
  for (int j = 0; j < J; ++j)
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      Vec<T>& to = total[j * R + r];
      to = accumulate ? to + sums[j][r] : sums[j][r];
    }
}

// acc[pixel][kPanel] of `lanes` output channels, whose weights begin at w. S: of the weights, of
// couples float; the job counts operands of M.
template <class S, class M, int J>
inline void dot_panel(const TapConv& job, const Blocking& b, const S* w, int64_t lanes,
                      const Compute<S>* const* x, int64_t pixels, Compute<S>* acc) {
  typedef Compute<S> T;
  constexpr int W = kW<T>, R = kDotRows<T, J>, L = kPanel<T>;
  constexpr int kSums = (J * R + W - 1) / W * W;  // whole groups of sum_lanes
  const int64_t tiles = ceil_div(pixels, J);
  Vec<T> total[kDotTiles][kSums];
  for (int64_t t = 0; t < tiles; ++t)
    for (int i = J * R; i < kSums; ++i) total[t][i] = Vec<T>{};
  for (int64_t k = 0; k < lanes; k += R) {
    for (int64_t c0 = 0; c0 < job.C; c0 += b.chunk) {
      const int64_t cn = min64(b.chunk, job.C - c0);
      const S* rows[R];  // past the last one it is repeated
      for (int r = 0; r < R; ++r) rows[r] = w + min64(k + r, lanes - 1) * job.ws[1] + c0;
      for (int64_t t = 0; t < tiles; ++t) {
        const T* from[J];
        for (int j = 0; j < J; ++j) from[j] = x[min64(t * J + j, pixels - 1)] + c0;
        dot_tile<S, M, J>(from, rows, cn, t ? 0 : kDotAhead, total[t], c0 > 0);
      }
    }
    for (int64_t t = 0; t < tiles; ++t) {
      T sums[kSums];
      for (int i = 0; i < kSums; i += W) store<T>(sums + i, sum_lanes<T>(total[t] + i));
      for (int64_t j = 0; j < min64(J, pixels - t * J); ++j)
        __builtin_memcpy(acc + (t * J + j) * L + k, sums + j * R, R * sizeof(T));
    }
  }
  const int kind = sizeof(T) == 8 ? 16 : kNumbers<M> == 2 ? 8 : 0;
  __atomic_fetch_or(&dot_tiles_ran, 1u << kind << (J - 1), __ATOMIC_RELAXED);
}

}  // namespace fastconv::FASTCONV_NS
