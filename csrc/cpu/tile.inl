// The register tile every dense kernel is built on: J broadcast operands times V vectors.
//
//   acc[j][0..V W) (+)= sum over runs, over i < count of x[j][offset + i * step] * w[i][0..V W)
//
// Forward: j are pixels, w packed weights. Weight gradient: j are (c, r, s), w packed dy.
// Each call sums from zero and then adds: partial sums keep the error of float32 small.
// Six operands and two vectors, a panel: 12 accumulators, 8 loads for 12 FMAs, one address register
// each. Where there are 32 registers, two panels side by side: 24 accumulators, 10 loads for 24.
namespace fastconv::FASTCONV_NS {

struct Run {
  int64_t offset, step, count;
  int64_t skip = 0;  // elements of w before its own
};

constexpr int kTile = kTileOperands;
constexpr bool kPairs = FASTCONV_BYTES == 64;  // AVX-512's 32 registers

// Which tiles ran, for the tests' register: by kind and number of vectors, bit J - 1, 16 higher in
// double.
enum class Tiles { forward, weight_grad, weight_grad_rows, couples, couples_rows };
static uint32_t tiles_ran[kTileKinds][kTileVectors];

template <class T>
inline void mark_tiles(uint32_t ran, Tiles kind, int vectors) {
  __atomic_fetch_or(&tiles_ran[static_cast<int>(kind)][vectors - 1],
                    ran << (sizeof(T) == 8 ? 16 : 0), __ATOMIC_RELAXED);
}

// Vectors of a tile for that many output channels from a panel's first on; over 2: of a pair of
// panels, which no task parts. NOTE one vector is summed in another order than more are, so which
// channels share a tile must not depend on the threads.
template <class T>
inline int tile_vectors(int64_t lanes) {
  return (int)min64(ceil_div(lanes, (int64_t)kW<T>), kPairs ? 4 : 2);
}
constexpr int panels_of(int vectors) { return (vectors + 1) / 2; }

constexpr int64_t kLine = 64;  // bytes of a cache line

// What a tile asks for, for a later one: a line for each of its products, or two; step 0: nothing.
struct Lines {
  const char* at;
  int64_t step;
};

// The panels of a tile: weights and accumulators of the first, and how far those of the second are.
template <class T>
struct TilePanels {
  int vectors;
  const T* w;
  int64_t next_w;
  T* acc;
  int64_t next_acc;
  Lines ahead = {};
  int64_t step_w = 0;  // of weights read where they lie: from one product to the next
};

// Whether a tile asks for two lines a product. One of two vectors has few FMAs beside its loads:
// with AVX-512 on Zen 4 sums of 256 products at 0.98 of the peak, with a second line 0.90; with
// AVX2 all 3x3 and 5x5 are 1.02 times as fast without it.
constexpr bool asks_twice(int vectors) { return vectors > 2; }

// Memory that the tiles of the next point or chunk read, for those of this one to ask for. A core
// does not look as far ahead as L3 is away (3x3 256->256 @56 on Emerald Rapids: 0.78 of the FMA
// peak in the tiles, 0.89 so; a line per product, as a burst of lines holds up the loads behind
// it). Where the products are fewer than the lines, two each: 512->512 @14 on Zen 4 2.4 -> 2.8
// times the peak, @7 1.5 -> 1.7. Into L2, as it is too early for L1 (512->512 @14 2.1, with AVX2
// 4.1 ms in place of 2.8).
struct Ahead {
  struct Stream {
    const char* at;
    int64_t lines;
  } streams[3];
  int added, taken;
  int64_t per_product;

  FASTCONV_INLINE void add(const void* from, int64_t bytes) {
    streams[added++] = {(const char*)from, (bytes + kLine - 1) / kLine};
  }
  // After the last stream: how many products there are for all of them, in tiles of how many
  // vectors.
  FASTCONV_INLINE void spread(int64_t products, int vectors) {
    int64_t lines = 0;
    for (int i = 0; i < added; ++i) lines += streams[i].lines;
    per_product = lines > products && asks_twice(vectors) ? 2 : 1;
  }
  // For a tile of so many products.
  FASTCONV_INLINE Lines take(int64_t products) {
    while (taken < added && streams[taken].lines <= 0) ++taken;
    if (taken == added) return {};
    Stream& s = streams[taken];
    const Lines lines = {s.at, per_product * kLine};
    s.at += products * lines.step, s.lines -= products * per_product;
    return lines;
  }
};

// M: the arithmetic. kCache: the level that lines come into. kApart: operands are at x[0] and so
// many elements apart, which leaves one address for all; 0: they are where x says.
template <class M, int J, int V, bool kInPlace = false, int kApart = 0, int kCache = V < 2 ? 1 : 2>
FASTCONV_INLINE void sum_tile(const Data<M>* const* x, const Run* runs, int64_t run_count,
                              const TilePanels<Data<M>>& to, Vec<Data<M>> (&sums)[V][J]) {
  typedef Data<M> T;
  constexpr int W = kW<T>;
  const T* w = to.w;
  const int64_t next = to.next_w, step_w = kInPlace ? to.step_w : 2 * W;
  const char* ahead = to.ahead.step ? to.ahead.at : (const char*)w;
  const int64_t line_step = to.ahead.step, second = line_step ? line_step - kLine : 0;
  const T* base[J];
#pragma GCC unroll 6
  for (int j = 0; j < J; ++j) {
    base[j] = kApart ? x[0] + j * kApart : x[j];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sums[v][j] = Vec<T>{};
  }
  // One vector has too few sums to hide the latency of an FMA: every other operand has its own.
  Vec<T> others[J];
#pragma GCC unroll 6
  for (int j = 0; j < J; ++j) others[j] = Vec<T>{};
  for (const Run* run = runs; run < runs + run_count; ++run) {
    int64_t o = run->offset, i = run->count;
    const int64_t step = run->step;
    w += run->skip;
    for (; V == 1 && i > 1; i -= 2) {
      const Vec<T> one = load<T>(w), other = load<T>(w + step_w);
      w += 2 * step_w;
      __builtin_prefetch(ahead, 0, 4 - kCache);
      ahead += line_step;
#pragma GCC unroll 6
      for (int j = 0; j < J; ++j) {
        multiply<M>(sums[0][j], one, broadcast<T>(base[j][o]));
        multiply<M>(others[j], other, broadcast<T>(base[j][o + step]));
      }
      o += 2 * step;
    }
    for (; i > 0; --i) {
      // One offset for all operands: GCC would step a pointer for each, beside 12 FMAs.
      if (!kPairs) asm("" : "+r"(o));
      Vec<T> wv[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) wv[v] = load<T>(w + v / 2 * next + v % 2 * W);
      w += step_w;
      __builtin_prefetch(ahead, 0, 4 - kCache);
      if (asks_twice(V)) __builtin_prefetch(ahead + second, 0, 4 - kCache);
      ahead += line_step;
#pragma GCC unroll 6
      for (int j = 0; j < J; ++j) {
        const Vec<T> b = broadcast<T>(base[j][o]);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) multiply<M>(sums[v][j], wv[v], b);
      }
      o += step;
    }
  }
#pragma GCC unroll 6
  for (int j = 0; j < J; ++j)
    if (V == 1) sums[0][j] += others[j];
}

template <class M, int J, int V, bool kInPlace, int kApart>
__attribute__((noinline)) void fma_tile(const Data<M>* const* x, const Run* runs, int64_t run_count,
                                        const TilePanels<Data<M>>& to, int64_t at,
                                        bool accumulate) {
  typedef Data<M> T;
  constexpr int W = kW<T>;
  Vec<T> sums[V][J];
  T* const panels[2] = {to.acc + at, to.acc + at + to.next_acc};
  sum_tile<M, J, V, kInPlace, kApart>(x, runs, run_count, to, sums);
#pragma GCC unroll 6
  for (int j = 0; j < J; ++j)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      T* acc = panels[v / 2] + (2 * j + v % 2) * W;
      store<T>(acc, accumulate ? load<T>(acc) + sums[v][j] : sums[v][j]);
    }
}

// By the number of operands.
template <class M, int V, bool kInPlace, int kApart = 0>
FASTCONV_INLINE void fma_operands(int J, const Data<M>* const* x, const Run* runs,
                                  int64_t run_count, const TilePanels<Data<M>>& to, int64_t at,
                                  bool accumulate) {
  switch (J) {
    case 1: return fma_tile<M, 1, V, kInPlace, kApart>(x, runs, run_count, to, at, accumulate);
    case 2: return fma_tile<M, 2, V, kInPlace, kApart>(x, runs, run_count, to, at, accumulate);
    case 3: return fma_tile<M, 3, V, kInPlace, kApart>(x, runs, run_count, to, at, accumulate);
    case 4: return fma_tile<M, 4, V, kInPlace, kApart>(x, runs, run_count, to, at, accumulate);
    case 5: return fma_tile<M, 5, V, kInPlace, kApart>(x, runs, run_count, to, at, accumulate);
    default: return fma_tile<M, 6, V, kInPlace, kApart>(x, runs, run_count, to, at, accumulate);
  }
}

// Into the accumulators from element `at` of each panel on.
template <class M, bool kInPlace = false, int kApart = 0>
FASTCONV_INLINE void fma_tile(int J, const Data<M>* const* x, const Run* runs, int64_t run_count,
                              const TilePanels<Data<M>>& to, int64_t at, bool accumulate) {
  if constexpr (kPairs) {
    if (to.vectors == 4)
      return fma_operands<M, 4, kInPlace, kApart>(J, x, runs, run_count, to, at, accumulate);
    if (to.vectors == 3)
      return fma_operands<M, 3, kInPlace, kApart>(J, x, runs, run_count, to, at, accumulate);
  }
  if (to.vectors == 1 && !kInPlace)
    return fma_operands<M, 1, false, kApart>(J, x, runs, run_count, to, at, accumulate);
  return fma_operands<M, 2, kInPlace, kApart>(J, x, runs, run_count, to, at, accumulate);
}

// FLOPs of `iterations` rounds of twelve independent FMAs, for calibration.
inline double fma_peak(int64_t iterations) {
  constexpr int W = kW<float>;
  float in[W] = {}, out[W];
  Vec<float> acc[12] = {}, a = load<float>(in), b = load<float>(in);
  for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 12
    for (int j = 0; j < 12; ++j) {
      opaque<float>(b);  // else, without FMA, one product serves every accumulator
      fma<float>(acc[j], a, b);
    }
    asm volatile("" : "+m"(in));  // the operands stay unknown to the compiler
    a = load<float>(in), b = load<float>(in);
  }
#pragma GCC unroll 12
  for (int j = 1; j < 12; ++j) acc[0] += acc[j];  // unrolled: else acc lives in memory
  store<float>(out, acc[0]);
  asm volatile("" : : "m"(out));
  return 2.0 * 12 * W * (double)iterations;
}

}  // namespace fastconv::FASTCONV_NS
