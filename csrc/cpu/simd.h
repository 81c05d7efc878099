// Vectors for one ISA. Included once per ISA file, inside its namespace, so that nothing compiled
// for a wide ISA can be the copy the linker keeps. GCC vector extensions; no torch, no STL.
//
// The ISA file defines FASTCONV_NS (namespace) and FASTCONV_BYTES (vector bytes).
#include <stdint.h>

#if defined(__F16C__)
#include <immintrin.h>  // its functions are always inlined
#endif

namespace fastconv::FASTCONV_NS {

template <class T>
constexpr int kW = FASTCONV_BYTES / sizeof(T);  // lanes
template <class T>
constexpr int kPanel = 2 * kW<T>;  // output channels of a register tile: two vectors

template <class T>
struct VecOf {
  typedef T type __attribute__((vector_size(FASTCONV_BYTES)));
};
template <class T>
using Vec = typename VecOf<T>::type;

template <class T>
struct IntOf;
template <>
struct IntOf<float> {
  typedef int32_t type __attribute__((vector_size(FASTCONV_BYTES)));
};
template <>
struct IntOf<double> {
  typedef int64_t type __attribute__((vector_size(FASTCONV_BYTES)));
};
template <class T>
using IVec = typename IntOf<T>::type;

#define FASTCONV_INLINE inline __attribute__((always_inline))

template <class T>
FASTCONV_INLINE Vec<T> load(const T* p) {
  Vec<T> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <class T>
FASTCONV_INLINE void store(T* p, Vec<T> v) {
  __builtin_memcpy(p, &v, sizeof v);
}

template <class T>
FASTCONV_INLINE Vec<T> broadcast(T s) {
  constexpr int W = kW<T>;
  if constexpr (W == 2) return Vec<T>{s, s};
  if constexpr (W == 4) return Vec<T>{s, s, s, s};
  if constexpr (W == 8) return Vec<T>{s, s, s, s, s, s, s, s};
  if constexpr (W == 16) return Vec<T>{s, s, s, s, s, s, s, s, s, s, s, s, s, s, s, s};
}

#if defined(__AVX512F__)
#define FASTCONV_REGISTER "v"
#elif defined(__x86_64__) && FASTCONV_BYTES <= 32
#define FASTCONV_REGISTER "x"
#endif

// From here on the compiler neither knows v's value nor moves its computation; no instruction.
template <class T>
FASTCONV_INLINE void opaque(Vec<T>& v) {
#if defined(FASTCONV_REGISTER)
  asm volatile("" : "+" FASTCONV_REGISTER(v));
#endif
}

// acc += a * b. NOTE the form is forced: left to itself GCC turns a register tile's FMAs into
// reloads and moves (0.92 of peak against 0.99).
template <class T>
FASTCONV_INLINE void fma(Vec<T>& acc, Vec<T> a, Vec<T> b) {
#if defined(__FMA__) && defined(FASTCONV_REGISTER)
  if constexpr (sizeof(T) == 4)
    asm("vfmadd231ps %2, %1, %0"
        : "+" FASTCONV_REGISTER(acc)
        : FASTCONV_REGISTER(a), FASTCONV_REGISTER(b));
  else
    asm("vfmadd231pd %2, %1, %0"
        : "+" FASTCONV_REGISTER(acc)
        : FASTCONV_REGISTER(a), FASTCONV_REGISTER(b));
#else
  acc = a * b + acc;
#endif
}

template <class T>
FASTCONV_INLINE Vec<T> select(IVec<T> mask, Vec<T> yes, Vec<T> no) {
  return mask ? yes : no;
}

// Halves are added until one lane is left.
template <class T, int kLanes = kW<T>, class V>
FASTCONV_INLINE T sum(V v) {
  if constexpr (kLanes == 1) {
    return v[0];
  } else {
    typedef T Half __attribute__((vector_size(kLanes / 2 * sizeof(T))));
    Half half[2];
    __builtin_memcpy(half, &v, sizeof half);
    return sum<T, kLanes / 2>(half[0] + half[1]);
  }
}

// Rows of interleaved halves; applied log2(W) times it transposes a W x W block.
template <class T>
FASTCONV_INLINE void interleave(Vec<T> a, Vec<T> b, Vec<T>& lo, Vec<T>& hi) {
  constexpr int W = kW<T>;
  if constexpr (W == 2) {
    lo = __builtin_shuffle(a, b, IVec<T>{0, 2});
    hi = __builtin_shuffle(a, b, IVec<T>{1, 3});
  } else if constexpr (W == 4) {
    lo = __builtin_shuffle(a, b, IVec<T>{0, 4, 1, 5});
    hi = __builtin_shuffle(a, b, IVec<T>{2, 6, 3, 7});
  } else if constexpr (W == 8) {
    lo = __builtin_shuffle(a, b, IVec<T>{0, 8, 1, 9, 2, 10, 3, 11});
    hi = __builtin_shuffle(a, b, IVec<T>{4, 12, 5, 13, 6, 14, 7, 15});
  } else {
    lo = __builtin_shuffle(a, b, IVec<T>{0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23});
    hi = __builtin_shuffle(a, b,
                           IVec<T>{8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31});
  }
}

// The inverse: elements of even and of odd index.
template <class T>
FASTCONV_INLINE void deinterleave(Vec<T> a, Vec<T> b, Vec<T>& even, Vec<T>& odd) {
  constexpr int W = kW<T>;
  if constexpr (W == 2) {
    even = __builtin_shuffle(a, b, IVec<T>{0, 2});
    odd = __builtin_shuffle(a, b, IVec<T>{1, 3});
  } else if constexpr (W == 4) {
    even = __builtin_shuffle(a, b, IVec<T>{0, 2, 4, 6});
    odd = __builtin_shuffle(a, b, IVec<T>{1, 3, 5, 7});
  } else if constexpr (W == 8) {
    even = __builtin_shuffle(a, b, IVec<T>{0, 2, 4, 6, 8, 10, 12, 14});
    odd = __builtin_shuffle(a, b, IVec<T>{1, 3, 5, 7, 9, 11, 13, 15});
  } else {
    even = __builtin_shuffle(
        a, b, IVec<T>{0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30});
    odd = __builtin_shuffle(
        a, b, IVec<T>{1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31});
  }
}

template <class T>
FASTCONV_INLINE void transpose(Vec<T> (&rows)[kW<T>]) {
  constexpr int W = kW<T>;
#pragma GCC unroll 4
  for (int stage = 1; stage < W; stage *= 2) {
    Vec<T> next[W];
#pragma GCC unroll 8
    for (int i = 0; i < W / 2; ++i)
      interleave<T>(rows[i], rows[i + W / 2], next[2 * i], next[2 * i + 1]);
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) rows[i] = next[i];
  }
}

// exp(x) for float vectors: 2^n * 2^f, |f| <= 1/2, degree-6 polynomial of 2^f's Taylor series in
// f ln 2; relative error about 1e-7. Arguments are clamped where float exp is 0 or inf.
FASTCONV_INLINE Vec<float> exp_approx(Vec<float> x) {
  const Vec<float> hi = broadcast(88.7f), lo = broadcast(-87.3f);
  Vec<float> t = select<float>(x > hi, hi, x);
  t = select<float>(t < lo, lo, t);
  const Vec<float> magic = broadcast(12582912.f);  // 1.5 * 2^23: adding it rounds to an integer
  const Vec<float> shifted = t * 1.44269504f + magic;
  const Vec<float> n = shifted - magic;
  const Vec<float> r = (t - n * 0.693145752f) - n * 1.42860677e-6f;
  Vec<float> p = broadcast(1.f / 720);
  p = p * r + 1.f / 120;
  p = p * r + 1.f / 24;
  p = p * r + 1.f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.f;
  p = p * r + 1.f;
  const IVec<float> bits = (reinterpret_cast<IVec<float>>(shifted) << 23) + (int32_t)0x3f800000;
  const Vec<float> y = p * reinterpret_cast<Vec<float>>(bits);
  Vec<float> e = select<float>(x > hi, broadcast(__builtin_inff()), y);
  e = select<float>(x < lo, Vec<float>{}, e);
  return select<float>(x == x, e, x);  // NaN stays NaN
}

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

// The first `lanes` of a vector; the others are zero.
template <class S>
FASTCONV_INLINE Vec<Compute<S>> load_lanes(const S* p, int64_t lanes) {
  constexpr int W = kW<Compute<S>>;
  if (lanes == W) return load_widened<S>(p);
  S buffer[W] = {};
  for (int64_t i = 0; i < lanes; ++i) buffer[i] = p[i];
  return load_widened<S>(buffer);
}
template <class S>
FASTCONV_INLINE void store_lanes(S* p, Vec<Compute<S>> v, int64_t lanes, int64_t step) {
  constexpr int W = kW<Compute<S>>;
  if (lanes == W && step == 1) return store_narrowed<S>(p, v);
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
    by_vectors<kW<T>>(
        0, n, [&](int64_t i, int64_t) { store<T>(dst + i, load_widened<S>(src + i)); });
  else
    for (int64_t i = 0; i < n; ++i) dst[i] = widen(src[i * stride]);
}

// dst[i * stride] = src[i], narrowed.
template <class S>
FASTCONV_INLINE void narrow_row(S* __restrict dst, const Compute<S>* __restrict src, int64_t n,
                                int64_t stride) {
  typedef Compute<S> T;
  if (stride == 1 && n >= kW<T>)
    by_vectors<kW<T>>(
        0, n, [&](int64_t i, int64_t) { store_narrowed<S>(dst + i, load<T>(src + i)); });
  else
    for (int64_t i = 0; i < n; ++i) dst[i * stride] = Narrow<S>::from(src[i]);
}

}  // namespace fastconv::FASTCONV_NS
