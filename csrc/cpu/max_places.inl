// Maxima and their places: what the kernels of max pooling share.
namespace fastconv::FASTCONV_NS {

// The places of a vector of maxima while they are compared: where an output's index is a byte, as
// narrow as the instruction set has masks for.
template <class T>
struct BytePlaces {
  typedef IVec<T> type;
};
#if defined(__AVX512F__)
template <>
struct BytePlaces<float> {
  typedef Bytes type;
};
#endif

template <class P>
FASTCONV_INLINE P all_places(int64_t place) {
  auto each = P{}[0];
  each = place;
  return P{} + each;
}

// The first `lanes` of W bytes. NOTE a load that straddles what was just stored waits until that
// has left the store buffer, so no buffer where there are masks.
template <int W, class V>
FASTCONV_INLINE void store_bytes(uint8_t* to, V bytes, int64_t lanes) {
#if defined(__AVX512F__)
  if constexpr (W == 16) return _mm_mask_storeu_epi8(to, (1u << lanes) - 1, (__m128i)bytes);
#endif
  if (lanes == W) return (void)__builtin_memcpy(to, &bytes, W);
  uint8_t buffer[W];
  __builtin_memcpy(buffer, &bytes, W);
  copy_short<W / 2>(to, buffer, lanes);
}

// The places as bytes. NOTE converted, eight of 32 bits are taken apart lane by lane (g++ 12).
template <class T, class P>
FASTCONV_INLINE typename IndexOf<uint8_t, T>::type place_bytes(P places) {
#if defined(__AVX2__)
  if constexpr (sizeof(P) == 32 && kW<T> == 8) {
    const __m256i low = _mm256_shuffle_epi8((__m256i)places, _mm256_set1_epi32(0x0c080400));
    const __m128i pairs =
        _mm_unpacklo_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
    typename IndexOf<uint8_t, T>::type bytes;
    __builtin_memcpy(&bytes, &pairs, sizeof bytes);
    return bytes;
  }
#endif
  return __builtin_convertvector(places, typename IndexOf<uint8_t, T>::type);
}

// Indices of `lanes` outputs from element `to` on, `step` elements apart. The first one's window
// starts at `window` in the plane, and the others' `across` apart.
template <class T, class P>
FASTCONV_INLINE void store_places(const PoolJob& j, int64_t to, int64_t step, P places,
                                  int64_t lanes, int64_t window, int64_t across) {
  constexpr int W = kW<T>;
  if (sizeof(P) == W || j.index_type == IndexType::window8) {
    uint8_t* out = (uint8_t*)j.index.data + to;
    const auto bytes = place_bytes<T>(places);
    if (step == 1)
      store_bytes<W>(out, bytes, lanes);
    else
      for (int64_t i = 0; i < lanes; ++i) out[i * step] = bytes[i];
  } else if (j.index_type == IndexType::window32) {
    int32_t* out = (int32_t*)j.index.data + to;
    for (int64_t i = 0; i < lanes; ++i) out[i * step] = (int32_t)places[i];
  } else {
    int64_t* out = (int64_t*)j.index.data + to;
    for (int64_t i = 0; i < lanes; ++i) out[i * step] = window + i * across + places[i];
  }
}

// The running maximum: the first of equals wins and, where kExact, any NaN.
template <bool kIndex, bool kExact, class V, class P>
FASTCONV_INLINE void maximum(V& best, P& place, V v, P at) {
  if constexpr (!kIndex && !kExact) {
    best = v > best ? v : best;
    return;
  }
  auto wins = greater(v, best);
  if constexpr (kExact) wins |= is_nan(v);
  best = choose(wins, v, best);
  if constexpr (kIndex) place = choose(wins, at, place);
}

template <class T>
FASTCONV_INLINE bool has_nan(Vec<T> seen) {
  const T total = sum<T>(seen);
  return total != total;
}

}  // namespace fastconv::FASTCONV_NS
