// The register tile every dense kernel is built on: J broadcast operands times two vectors.
//
//   acc[j][0..2W) (+)= sum over runs, over i < count of x[j][offset + i * step] * w[i][0..2W)
//
// Forward: j are pixels, w packed weights. Weight gradient: j are (c, r, s), w packed dy.
// Each call sums from zero and then adds: partial sums keep the error of float32 small.
// Six operands and two vectors: 12 accumulators, 8 loads for 12 FMAs, one address register each.
namespace fastconv::FASTCONV_NS {

struct Run {
  int64_t offset, step, count;
};

constexpr int kTile = kTileOperands;

// Which tiles ran, for the tests' register: bit J - 1, 8 higher in double, 16 in a weight gradient,
// 32 where only the first vector is wanted.
static uint64_t tiles_ran;

template <class T>
inline void mark_tiles(uint64_t ran, bool weight_grad, bool narrow) {
  const int shift = (sizeof(T) == 8 ? 8 : 0) + (weight_grad ? 16 : 0) + (narrow ? 32 : 0);
  __atomic_fetch_or(&tiles_ran, ran << shift, __ATOMIC_RELAXED);
}

// A panel of so few output channels needs the first of its two vectors only.
template <class T>
inline bool is_narrow(int64_t lanes) {
  return lanes <= kW<T>;
}

template <class T, int J, int V>
FASTCONV_INLINE void sum_tile(const T* const* x, const Run* runs, int64_t run_count, const T* w,
                              Vec<T> (&sums)[V][J]) {
  constexpr int W = kW<T>;
  const T* base[J];
#pragma GCC unroll 6
  for (int j = 0; j < J; ++j) {
    base[j] = x[j];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) sums[v][j] = Vec<T>{};
  }
  for (const Run* run = runs; run < runs + run_count; ++run) {
    int64_t o = run->offset;
    const int64_t step = run->step;
    for (int64_t i = run->count; i > 0; --i) {
      Vec<T> wv[V];
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) wv[v] = load<T>(w + v * W);
      w += 2 * W;
#pragma GCC unroll 6
      for (int j = 0; j < J; ++j) {
        const Vec<T> b = broadcast<T>(base[j][o]);
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) fma<T>(sums[v][j], wv[v], b);
      }
      o += step;
    }
  }
}

template <class T, int J, int V>
__attribute__((noinline)) void fma_tile(const T* const* x, const Run* runs, int64_t run_count,
                                        const T* w, T* acc, bool accumulate) {
  constexpr int W = kW<T>;
  Vec<T> sums[V][J];
  sum_tile<T, J, V>(x, runs, run_count, w, sums);
#pragma GCC unroll 6
  for (int j = 0; j < J; ++j)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      T* to = acc + (2 * j + v) * W;
      store<T>(to, accumulate ? load<T>(to) + sums[v][j] : sums[v][j]);
    }
}

template <class T, int V>
FASTCONV_INLINE void fma_tile(int J, const T* const* x, const Run* runs, int64_t run_count,
                              const T* w, T* acc, bool accumulate) {
  switch (J) {
    case 1: return fma_tile<T, 1, V>(x, runs, run_count, w, acc, accumulate);
    case 2: return fma_tile<T, 2, V>(x, runs, run_count, w, acc, accumulate);
    case 3: return fma_tile<T, 3, V>(x, runs, run_count, w, acc, accumulate);
    case 4: return fma_tile<T, 4, V>(x, runs, run_count, w, acc, accumulate);
    case 5: return fma_tile<T, 5, V>(x, runs, run_count, w, acc, accumulate);
    default: return fma_tile<T, 6, V>(x, runs, run_count, w, acc, accumulate);
  }
}

template <class T>
FASTCONV_INLINE void fma_tile(bool narrow, int J, const T* const* x, const Run* runs,
                              int64_t run_count, const T* w, T* acc, bool accumulate) {
  if (narrow) return fma_tile<T, 1>(J, x, runs, run_count, w, acc, accumulate);
  return fma_tile<T, 2>(J, x, runs, run_count, w, acc, accumulate);
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
