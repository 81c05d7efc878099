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

// Past the caches, where vectors are whole cache lines and `p` is the beginning of one; else as
// `store`. Other threads may read it after `fence_stores`.
constexpr bool kWholeLines = FASTCONV_BYTES == 64;
FASTCONV_INLINE void store_past(float* p, Vec<float> v) {
#if FASTCONV_BYTES == 64 && defined(__AVX512F__)
  _mm512_stream_ps(p, (__m512)v);
#else
  store<float>(p, v);
#endif
}
FASTCONV_INLINE void fence_stores() {
#if FASTCONV_BYTES == 64 && defined(__AVX512F__)
  _mm_sfence();
#endif
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

// Two bfloat16 in a float's place, an operand of a dot product of two that adds up in float.
struct Couple {};
template <class M>
struct DataOf {
  typedef M type;
};
template <>
struct DataOf<Couple> {
  typedef float type;
};
// Of arithmetic M: what its operands are held in, and how many numbers one is.
template <class M>
using Data = typename DataOf<M>::type;
template <class M>
constexpr int kNumbers = 1;
template <>
constexpr int kNumbers<Couple> = 2;

// acc += a . b. NOTE no -m flag allows the instruction: whether there is one is asked when running
// (bf16_dots in cpu.cpp). It takes subnormal numbers as zero.
template <class M>
FASTCONV_INLINE void multiply(Vec<Data<M>>& acc, Vec<Data<M>> a, Vec<Data<M>> b) {
  if constexpr (kNumbers<M> == 1) {
    fma<M>(acc, a, b);
  } else {
#if defined(__AVX512F__)
    asm("vdpbf16ps %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
#else
    const IVec<float> x = reinterpret_cast<IVec<float>>(a), y = reinterpret_cast<IVec<float>>(b);
    fma<float>(acc, reinterpret_cast<Vec<float>>(x << 16), reinterpret_cast<Vec<float>>(y << 16));
    fma<float>(acc, reinterpret_cast<Vec<float>>(x & ~0xffff),
               reinterpret_cast<Vec<float>>(y & ~0xffff));
#endif
  }
}

template <class T>
FASTCONV_INLINE Vec<T> select(IVec<T> mask, Vec<T> yes, Vec<T> no) {
  return mask ? yes : no;
}

// Where a > b, and where v is a NaN: a mask, or lanes of all ones.
#if defined(__AVX512F__)
FASTCONV_INLINE __mmask16 greater(Vec<float> a, Vec<float> b) {
  return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GT_OQ);
}
FASTCONV_INLINE __mmask8 greater(Vec<double> a, Vec<double> b) {
  return _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_GT_OQ);
}
FASTCONV_INLINE __mmask16 is_nan(Vec<float> v) {
  return _mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_UNORD_Q);
}
FASTCONV_INLINE __mmask8 is_nan(Vec<double> v) {
  return _mm512_cmp_pd_mask((__m512d)v, (__m512d)v, _CMP_UNORD_Q);
}
FASTCONV_INLINE Vec<float> choose(__mmask16 k, Vec<float> yes, Vec<float> no) {
  return (Vec<float>)_mm512_mask_blend_ps(k, (__m512)no, (__m512)yes);
}
FASTCONV_INLINE Vec<double> choose(__mmask8 k, Vec<double> yes, Vec<double> no) {
  return (Vec<double>)_mm512_mask_blend_pd(k, (__m512d)no, (__m512d)yes);
}
FASTCONV_INLINE IVec<float> choose(__mmask16 k, IVec<float> yes, IVec<float> no) {
  return (IVec<float>)_mm512_mask_blend_epi32(k, (__m512i)no, (__m512i)yes);
}
FASTCONV_INLINE IVec<double> choose(__mmask8 k, IVec<double> yes, IVec<double> no) {
  return (IVec<double>)_mm512_mask_blend_epi64(k, (__m512i)no, (__m512i)yes);
}
typedef uint8_t Bytes __attribute__((vector_size(16)));  // kW<float> of them
FASTCONV_INLINE Bytes choose(__mmask16 k, Bytes yes, Bytes no) {
  return (Bytes)_mm_mask_blend_epi8(k, (__m128i)no, (__m128i)yes);
}
#else
template <class V>
FASTCONV_INLINE auto greater(V a, V b) {
  return a > b;
}
template <class V>
FASTCONV_INLINE auto is_nan(V v) {
  return v != v;
}
template <class M, class V>
FASTCONV_INLINE V choose(M mask, V yes, V no) {
  return mask ? yes : no;
}
#endif

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
    even =
        __builtin_shuffle(a, b, IVec<T>{0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30});
    odd =
        __builtin_shuffle(a, b, IVec<T>{1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31});
  }
}

// a[1], ..., a[W - 1], b[0]
template <class T>
FASTCONV_INLINE Vec<T> shift_in(Vec<T> a, Vec<T> b) {
  IVec<T> from;
#pragma GCC unroll 16
  for (int i = 0; i < kW<T>; ++i) from[i] = i + 1;
  return __builtin_shuffle(a, b, from);
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

// The sum of each row's lanes: a transpose whose halves are added as they are interleaved.
template <class T>
FASTCONV_INLINE Vec<T> sum_lanes(const Vec<T>* rows) {
  constexpr int W = kW<T>;
  Vec<T> sums[W];
#pragma GCC unroll 16
  for (int i = 0; i < W; ++i) sums[i] = rows[i];
#pragma GCC unroll 4
  for (int n = W / 2; n > 0; n /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < n; ++i) {
      Vec<T> lo, hi;
      interleave<T>(sums[i], sums[i + n], lo, hi);
      sums[i] = lo + hi;
    }
  return sums[0];
}

// A constant as an argument.
template <int kValue>
struct Constant {
  static constexpr int value = kValue;
};

// exp(x) for float vectors: 2^n * 2^f, |f| <= 1/2, degree-7 polynomial of 2^f's Taylor series in
// f ln 2, whose remainder is 5e-9. Arguments are clamped where float exp is 0 or inf.
FASTCONV_INLINE Vec<float> exp_approx(Vec<float> x) {
  const Vec<float> hi = broadcast(88.7f), lo = broadcast(-87.3f);
  Vec<float> t = select<float>(x > hi, hi, x);
  t = select<float>(t < lo, lo, t);
  const Vec<float> magic = broadcast(12582912.f);  // 1.5 * 2^23: adding it rounds to an integer
  const Vec<float> shifted = t * 1.44269504f + magic;
  const Vec<float> n = shifted - magic;
  const Vec<float> r = (t - n * 0.693145752f) - n * 1.42860677e-6f;
  Vec<float> p = broadcast(1.f / 5040);
  p = p * r + 1.f / 720;
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

}  // namespace fastconv::FASTCONV_NS
