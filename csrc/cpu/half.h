// Storage types: conversions to and from the type of the arithmetic, rows and parts of vectors.
// Included once per ISA file after simd.h.
namespace fastconv::FASTCONV_NS {

// 16-bit storage: arithmetic is in float.
struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};
typedef uint32_t Words __attribute__((vector_size(FASTCONV_BYTES)));
typedef uint16_t Halves __attribute__((vector_size(FASTCONV_BYTES / 2)));  // kW<float> of them

template <class To, class From>
FASTCONV_INLINE To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "a change of type, not of size");
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

// The conversions, written once for scalars (F float, U uint32_t) and for vectors (F Vec<float>,
// U Words). They round to nearest even and keep a NaN a NaN.
template <class F, class U>
FASTCONV_INLINE F widen_bits(bf16, U bits) {
  return bits_as<F>(bits << 16);
}
template <class U, class F>
FASTCONV_INLINE U narrow_bits(bf16, F v) {
  const U u = bits_as<U>(v), rounded = (u + 0x7fff + (u >> 16 & 1)) >> 16;
  return v == v ? rounded : (u >> 16 | 0x40);
}
template <class F, class U>
FASTCONV_INLINE F widen_bits(f16, U bits) {
  const U sign = (bits & 0x8000) << 16, body = bits & 0x7fff;
  const F small = bits_as<F>(body | 0x3f000000) - 0.5f;  // subnormal: body * 2^-24
  const U finite = body < 0x400 ? bits_as<U>(small) : (body << 13) + 0x38000000;
  return bits_as<F>(sign | (body < 0x7c00 ? finite : (body << 13 | 0x7f800000)));
}
template <class U, class F>
FASTCONV_INLINE U narrow_bits(f16, F v) {
  const U u = bits_as<U>(v), sign = u >> 16 & 0x8000, a = u & 0x7fffffff;
  const F size = bits_as<F>(a);
  const U small = bits_as<U>(size + 0.5f) - 0x3f000000;  // a multiple of 2^-24
  const U normal = (a + 0xfff + (a >> 13 & 1) - 0x38000000) >> 13;
  const U finite = size < 0x1p-14f ? small : normal;
  const U known = size < 65520.f ? finite : U{} + 0x7c00;  // from there on: infinity
  return sign | (v == v ? known : U{} + 0x7e00);
}

FASTCONV_INLINE float widen(float v) { return v; }
FASTCONV_INLINE double widen(double v) { return v; }
FASTCONV_INLINE float widen(bf16 v) { return widen_bits<float>(v, (uint32_t)v.bits); }
FASTCONV_INLINE float widen(f16 v) {
#if defined(__F16C__)
  return _cvtsh_ss(v.bits);
#else
  return widen_bits<float>(v, (uint32_t)v.bits);
#endif
}

// What the processor has an instruction for. NOTE the maskz forms are plain instructions whose
// definition in GCC 12's header does not read an uninitialised variable.
#if defined(__AVX512F__)
constexpr __mmask16 kAll = 0xffff;
FASTCONV_INLINE Words to_words(Halves h) {
  return (Words)_mm512_maskz_cvtepu16_epi32(kAll, (__m256i)h);
}
FASTCONV_INLINE Vec<float> widen(f16, Halves h) {
  return (Vec<float>)_mm512_maskz_cvtph_ps(kAll, (__m256i)h);
}
FASTCONV_INLINE Halves narrow(f16, Vec<float> v) {
  return (Halves)_mm512_maskz_cvtps_ph(kAll, (__m512)v, _MM_FROUND_TO_NEAREST_INT);
}
#elif defined(__F16C__)
constexpr int kParts = FASTCONV_BYTES / 32;  // 2 where AVX-512's logic runs on AVX2
FASTCONV_INLINE Words to_words(Halves h) {
  __m128i from[kParts];
  __m256i to[kParts];
  __builtin_memcpy(from, &h, sizeof from);
  for (int i = 0; i < kParts; ++i) to[i] = _mm256_cvtepu16_epi32(from[i]);
  Words words;
  __builtin_memcpy(&words, to, sizeof words);
  return words;
}
FASTCONV_INLINE Vec<float> widen(f16, Halves h) {
  __m128i from[kParts];
  __m256 to[kParts];
  __builtin_memcpy(from, &h, sizeof from);
  for (int i = 0; i < kParts; ++i) to[i] = _mm256_cvtph_ps(from[i]);
  return load<float>((const float*)to);
}
FASTCONV_INLINE Halves narrow(f16, Vec<float> v) {
  __m256 from[kParts];
  __m128i to[kParts];
  __builtin_memcpy(from, &v, sizeof from);
  for (int i = 0; i < kParts; ++i) to[i] = _mm256_cvtps_ph(from[i], _MM_FROUND_TO_NEAREST_INT);
  Halves h;
  __builtin_memcpy(&h, to, sizeof h);
  return h;
}
#else
FASTCONV_INLINE Words to_words(Halves h) { return __builtin_convertvector(h, Words); }
FASTCONV_INLINE Vec<float> widen(f16 s, Halves h) { return widen_bits<Vec<float>>(s, to_words(h)); }
FASTCONV_INLINE Halves narrow(f16 s, Vec<float> v) {
  return __builtin_convertvector(narrow_bits<Words>(s, v), Halves);
}
#endif
FASTCONV_INLINE Vec<float> widen(bf16 s, Halves h) {
  return widen_bits<Vec<float>>(s, to_words(h));
}
FASTCONV_INLINE Halves narrow(bf16 s, Vec<float> v) {
  return __builtin_convertvector(narrow_bits<Words>(s, v), Halves);
}

template <class S>
struct Narrow {
  static FASTCONV_INLINE S from(float v) { return S{(uint16_t)narrow_bits<uint32_t>(S{}, v)}; }
};
template <>
struct Narrow<float> {
  static FASTCONV_INLINE float from(float v) { return v; }
};
template <>
struct Narrow<double> {
  static FASTCONV_INLINE double from(double v) { return v; }
};
#if defined(__F16C__)
template <>
struct Narrow<f16> {
  static FASTCONV_INLINE f16 from(float v) {
    return f16{(uint16_t)_cvtss_sh(v, _MM_FROUND_TO_NEAREST_INT)};
  }
};
#endif

// The type the arithmetic of a storage type is done in.
template <class S>
struct ComputeOf {
  typedef float type;
};
template <>
struct ComputeOf<double> {
  typedef double type;
};
template <class S>
using Compute = typename ComputeOf<S>::type;

// A vector of T from / to storage S at consecutive addresses.
template <class S>
FASTCONV_INLINE Vec<Compute<S>> load_widened(const S* p) {
  if constexpr (sizeof(S) == sizeof(Compute<S>)) {
    return load<S>(p);
  } else {
    Halves h;
    __builtin_memcpy(&h, p, sizeof h);
    return widen(S{}, h);
  }
}
template <class S>
FASTCONV_INLINE void store_narrowed(S* p, Vec<Compute<S>> v) {
  if constexpr (sizeof(S) == sizeof(Compute<S>)) {
    store<S>(p, v);
  } else {
    const Halves h = narrow(S{}, v);
    __builtin_memcpy(p, &h, sizeof h);
  }
}

// n <= 2 N elements, as two pieces of constant size that may overlap.
template <int N, class S>
FASTCONV_INLINE void copy_short(S* to, const S* from, int64_t n) {
  if (n >= N) {
    S first[N], last[N];
    __builtin_memcpy(first, from, sizeof first);
    __builtin_memcpy(last, from + n - N, sizeof last);
    __builtin_memcpy(to, first, sizeof first);
    __builtin_memcpy(to + n - N, last, sizeof last);
  } else if constexpr (N > 1) {
    copy_short<N / 2>(to, from, n);
  }
}

// p[2 i] = v[i], touching nothing past the last: what lies between is stored as it was.
template <class T>
FASTCONV_INLINE void store_alternate(T* p, Vec<T> v) {
  constexpr int W = kW<T>;
  Vec<T> lo, hi;
  interleave<T>(v, v, lo, hi);
  IVec<T> even;
#pragma GCC unroll 16
  for (int i = 0; i < W; ++i) even[i] = i % 2 ? 0 : -1;
  store<T>(p, select<T>(even, lo, load<T>(p)));
  store<T>(p + W - 1, select<T>(even, load<T>(p + W - 1), hi));
}

#if defined(__AVX512F__)
constexpr bool kMasks = true;  // parts of vectors cost what whole ones do
#else
constexpr bool kMasks = false;
#endif

#if defined(__AVX2__) && FASTCONV_BYTES == 32
#define FASTCONV_MASKED_LOADS 1
// Lanes [from, to) of the vector at p and zeros, and where they lie.
template <class T>
FASTCONV_INLINE Vec<T> load_masked(const T* p, int64_t from, int64_t to, IVec<T>& mask) {
  IVec<T> lane;
  for (int i = 0; i < kW<T>; ++i) lane[i] = i;
  auto first = lane[0], last = lane[0];
  first = from, last = to;
  mask = (lane >= IVec<T>{} + first) & (lane < IVec<T>{} + last);
  if constexpr (sizeof(T) == 4)
    return (Vec<T>)_mm256_maskload_ps(p, (__m256i)mask);
  else
    return (Vec<T>)_mm256_maskload_pd(p, (__m256i)mask);
}
#endif

// The first `lanes` of a vector; the others are zero. What lies past them is not touched.
template <class S>
FASTCONV_INLINE Vec<Compute<S>> load_lanes(const S* p, int64_t lanes) {
  constexpr int W = kW<Compute<S>>;
  if (lanes == W) return load_widened<S>(p);
#if defined(__AVX512F__)
  const uint32_t mask = (1u << lanes) - 1;
  if constexpr (sizeof(S) == 8) return (Vec<S>)_mm512_maskz_loadu_pd((__mmask8)mask, p);
  if constexpr (sizeof(S) == 4) return (Vec<S>)_mm512_maskz_loadu_ps((__mmask16)mask, p);
  if constexpr (sizeof(S) == 2)
    return widen(S{}, (Halves)_mm256_maskz_loadu_epi16((__mmask16)mask, p));
#else
#if defined(FASTCONV_MASKED_LOADS)
  if constexpr (sizeof(S) >= 4) {
    IVec<S> mask;
    return load_masked<S>(p, 0, lanes, mask);
  }
#endif
  S buffer[W] = {};
  copy_short<W / 2>(buffer, p, lanes);
  return load_widened<S>(buffer);
#endif
}
// Lanes [from, to) of a vector at p; the others are `rest`'s, and what they would read is not
// touched.
template <class S>
FASTCONV_INLINE Vec<Compute<S>> load_between(const S* p, int64_t from, int64_t to,
                                             Vec<Compute<S>> rest) {
  typedef Compute<S> T;
#if defined(__AVX512F__)
  const uint32_t mask = (1u << to) - (1u << from);
  if constexpr (sizeof(S) == 8) return (Vec<S>)_mm512_mask_loadu_pd((__m512d)rest, mask, p);
  if constexpr (sizeof(S) == 4) return (Vec<S>)_mm512_mask_loadu_ps((__m512)rest, mask, p);
  if constexpr (sizeof(S) == 2) {
    const Halves read = (Halves)_mm256_maskz_loadu_epi16((__mmask16)mask, p);
    return (Vec<T>)_mm512_mask_blend_ps((__mmask16)mask, (__m512)rest, (__m512)widen(S{}, read));
  }
#else
#if defined(FASTCONV_MASKED_LOADS)
  if constexpr (sizeof(S) >= 4) {
    IVec<T> mask;
    const Vec<T> read = load_masked<S>(p, from, to, mask);
    return select<T>(mask, read, rest);
  }
#endif
  T buffer[kW<T>];
  store<T>(buffer, rest);
  for (int64_t i = from; i < to; ++i) buffer[i] = widen(p[i]);
  return load<T>(buffer);
#endif
}
template <class S>
FASTCONV_INLINE void store_lanes(S* p, Vec<Compute<S>> v, int64_t lanes, int64_t step) {
  constexpr int W = kW<Compute<S>>;
  if (lanes == W && step == 1) return store_narrowed<S>(p, v);
  if constexpr (sizeof(S) == sizeof(Compute<S>) && W >= 4)
    if (lanes == W && step == 2) return store_alternate<S>(p, v);
#if defined(__AVX512F__)
  if (step == 1) {
    const uint32_t mask = (1u << lanes) - 1;
    if constexpr (sizeof(S) == 8) return _mm512_mask_storeu_pd(p, (__mmask8)mask, (__m512d)v);
    if constexpr (sizeof(S) == 4) return _mm512_mask_storeu_ps(p, (__mmask16)mask, (__m512)v);
    if constexpr (sizeof(S) == 2)
      return _mm256_mask_storeu_epi16(p, (__mmask16)mask, (__m256i)narrow(S{}, v));
  }
#endif
  S buffer[W];
  store_narrowed<S>(buffer, v);
  if (step == 1)
    copy_short<W / 2>(p, buffer, lanes);
  else
    for (int64_t i = 0; i < lanes; ++i) p[i * step] = buffer[i];
}

// f(i, lanes) for vectors that cover [first, n); the last one overlaps the one before.
template <int W, class F>
FASTCONV_INLINE void by_vectors(int64_t first, int64_t n, F f) {
  if (n < W) {
    if (first < n) f(first, n - first);
    return;
  }
  for (; first < n; first += W) f(first < n - W ? first : n - W, int64_t{W});
}

// dst[i] = src[i * stride], widened.
template <class S>
FASTCONV_INLINE void widen_row(Compute<S>* __restrict dst, const S* __restrict src, int64_t n,
                               int64_t stride) {
  typedef Compute<S> T;
  if (stride == 1 && n >= kW<T>)
    by_vectors<kW<T>>(0, n,
                      [&](int64_t i, int64_t) { store<T>(dst + i, load_widened<S>(src + i)); });
  else if (stride == 1 && sizeof(S) == sizeof(T))
    copy_short<kW<T> / 2>(dst, (const T*)src, n);
  else {
    int64_t i = 0;
    if (stride == 2)  // two vectors end one element past the last that is wanted
      for (Vec<T> odd; i + kW<T> < n; i += kW<T>) {
        Vec<T> even;
        deinterleave<T>(load_widened<S>(src + 2 * i), load_widened<S>(src + 2 * i + kW<T>), even,
                        odd);
        store<T>(dst + i, even);
      }
    for (; i < n; ++i) dst[i] = widen(src[i * stride]);
  }
}

// dst[i * stride] = src[i], narrowed.
template <class S>
FASTCONV_INLINE void narrow_row(S* __restrict dst, const Compute<S>* __restrict src, int64_t n,
                                int64_t stride) {
  typedef Compute<S> T;
  if (stride == 1 && n >= kW<T>)
    by_vectors<kW<T>>(0, n,
                      [&](int64_t i, int64_t) { store_narrowed<S>(dst + i, load<T>(src + i)); });
  else
    for (int64_t i = 0; i < n; ++i) dst[i * stride] = Narrow<S>::from(src[i]);
}

}  // namespace fastconv::FASTCONV_NS
