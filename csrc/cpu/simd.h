// Vectors for one ISA. Included once per ISA file, inside its namespace, so that nothing compiled
// for a wide ISA can be the copy the linker keeps. GCC vector extensions; no torch, no STL.
//
// The ISA file defines FASTCONV_NS (namespace) and FASTCONV_BYTES (vector bytes).
#include <stdint.h>

#if defined(__F16C__)
#include <immintrin.h>
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

// acc += a * b. NOTE the form is forced: left to itself GCC turns a register tile's FMAs into
// reloads and moves (0.92 of peak against 0.99).
template <class T>
FASTCONV_INLINE void fma(Vec<T>& acc, Vec<T> a, Vec<T> b) {
#if defined(__FMA__) && FASTCONV_BYTES <= 32
  if constexpr (sizeof(T) == 4)
    asm("vfmadd231ps %2, %1, %0" : "+x"(acc) : "x"(a), "x"(b));
  else
    asm("vfmadd231pd %2, %1, %0" : "+x"(acc) : "x"(a), "x"(b));
#elif defined(__AVX512F__)
  if constexpr (sizeof(T) == 4)
    asm("vfmadd231ps %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
  else
    asm("vfmadd231pd %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
#else
  acc = a * b + acc;
#endif
}

template <class T>
FASTCONV_INLINE Vec<T> select(IVec<T> mask, Vec<T> yes, Vec<T> no) {
  return mask ? yes : no;
}

template <class T>
FASTCONV_INLINE T sum(Vec<T> v) {
  T total = 0;
  for (int i = 0; i < kW<T>; ++i) total += v[i];
  return total;
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

FASTCONV_INLINE float bits_to_float(uint32_t u) {
  float f;
  __builtin_memcpy(&f, &u, 4);
  return f;
}
FASTCONV_INLINE uint32_t float_to_bits(float f) {
  uint32_t u;
  __builtin_memcpy(&u, &f, 4);
  return u;
}

FASTCONV_INLINE float widen(float v) { return v; }
FASTCONV_INLINE double widen(double v) { return v; }
FASTCONV_INLINE float widen(bf16 v) { return bits_to_float((uint32_t)v.bits << 16); }
FASTCONV_INLINE float widen(f16 v) {
#if defined(__F16C__)
  return _cvtsh_ss(v.bits);
#else
  const uint32_t sign = (uint32_t)(v.bits & 0x8000) << 16, body = v.bits & 0x7fff;
  if (body >= 0x7c00) return bits_to_float(sign | 0x7f800000 | (body & 0x3ff) << 13);
  if (body >= 0x400) return bits_to_float(sign | ((body << 13) + 0x38000000));
  const float small = (float)body * 5.9604644775390625e-8f;  // subnormal: body * 2^-24
  return bits_to_float(sign | float_to_bits(small));
#endif
}

template <class S>
struct Narrow;
template <>
struct Narrow<float> {
  static FASTCONV_INLINE float from(float v) { return v; }
};
template <>
struct Narrow<double> {
  static FASTCONV_INLINE double from(double v) { return v; }
};
template <>
struct Narrow<bf16> {
  static FASTCONV_INLINE bf16 from(float v) {  // round to nearest even
    const uint32_t u = float_to_bits(v);
    const uint32_t rounded = (u + 0x7fff + (u >> 16 & 1)) >> 16;
    return bf16{(uint16_t)((u & 0x7fffffff) > 0x7f800000 ? 0x7fc0 | (u >> 16 & 0x8000) : rounded)};
  }
};
template <>
struct Narrow<f16> {
  static FASTCONV_INLINE f16 from(float v) {  // round to nearest even
#if defined(__F16C__)
    return f16{(uint16_t)_cvtss_sh(v, 0)};
#else
    const uint32_t u = float_to_bits(v), sign = u >> 16 & 0x8000, a = u & 0x7fffffff;
    if (a > 0x7f800000) return f16{(uint16_t)(sign | 0x7e00)};
    if (a >= 0x477ff000) return f16{(uint16_t)(sign | 0x7c00)};  // 65520 and above: infinity
    if (a < 0x38800000) {                                        // subnormal result
      const uint32_t s = float_to_bits(bits_to_float(a) + 0.5f) - 0x3f000000;
      return f16{(uint16_t)(sign | s)};
    }
    const uint32_t r = a + 0xfff + (a >> 13 & 1);
    return f16{(uint16_t)(sign | ((r - 0x38000000) >> 13))};
#endif
  }
};

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

// dst[i] = src[i * stride], widened.
template <class S>
FASTCONV_INLINE void widen_row(Compute<S>* __restrict dst, const S* __restrict src, int64_t n,
                               int64_t stride) {
  if (stride == 1)
    for (int64_t i = 0; i < n; ++i) dst[i] = widen(src[i]);
  else
    for (int64_t i = 0; i < n; ++i) dst[i] = widen(src[i * stride]);
}

// A vector of T from / to storage S at consecutive addresses.
template <class S>
FASTCONV_INLINE Vec<Compute<S>> load_widened(const S* p) {
  typedef Compute<S> T;
  if constexpr (sizeof(S) == sizeof(T)) {
    return load<T>((const T*)p);
  } else {
    T buffer[kW<T>];
    widen_row<S>(buffer, p, kW<T>, 1);
    return load<T>(buffer);
  }
}
template <class S>
FASTCONV_INLINE void store_narrowed(S* p, Vec<Compute<S>> v) {
  typedef Compute<S> T;
  if constexpr (sizeof(S) == sizeof(T)) {
    store<T>((T*)p, v);
  } else {
    for (int i = 0; i < kW<T>; ++i) p[i] = Narrow<S>::from(v[i]);
  }
}

}  // namespace fastconv::FASTCONV_NS
