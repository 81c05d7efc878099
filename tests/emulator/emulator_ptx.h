// The wrappers of csrc/cuda/ptx.cuh in plain C++: the same names, arguments and effects.
#pragma once
#include <math.h>

namespace fastconv::cuda::ptx {

// ---- Conversions ----

inline uint32_t float_bits(float v) {
  uint32_t bits;
  memcpy(&bits, &v, 4);
  return bits;
}
inline float bits_float(uint32_t bits) {
  float v;
  memcpy(&v, &bits, 4);
  return v;
}
inline uint32_t mul_hi(uint32_t a, uint32_t b) { return uint32_t(uint64_t(a) * b >> 32); }

inline float to_float(float v) { return v; }
inline float to_float(bf16 v) { return bits_float(uint32_t(v.bits) << 16); }
// A half's exponent, moved into a float's place, is 112 too small; 31 stands for Inf and NaN.
inline float to_float(half v) {
  const float f = bits_float(uint32_t(v.bits & 0x7fff) << 13) * 0x1p112f;
  const uint32_t special = f >= 65536.f ? 0x7f800000u : 0;
  return bits_float(float_bits(f) | special | uint32_t(v.bits & 0x8000) << 16);
}

template <class T>
inline T from_float(float v);
template <>
inline float from_float<float>(float v) {
  return v;
}
template <>
inline bf16 from_float<bf16>(float v) {
  const uint32_t bits = float_bits(v);
  if (v != v) return {uint16_t(0x7fff)};  // as cvt.rn.bf16.f32: the canonical NaN
  return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
template <>
inline half from_float<half>(float v) {
  const uint16_t sign = float_bits(v) >> 16 & 0x8000;
  const float a = fabsf(v);
  if (v != v) return {uint16_t(0x7fff)};
  if (a >= 65520.f) return {uint16_t(sign | 0x7c00)};
  if (a < 0x1p-14f) return {uint16_t(sign | uint16_t(nearbyintf(a * 0x1p24f)))};
  const uint32_t bits = float_bits(a) - (112u << 23);
  return {uint16_t(sign | (bits + 0xfff + (bits >> 13 & 1)) >> 13)};
}

inline uint32_t cvt_rna_tf32(float v) {
  const uint32_t bits = float_bits(v);
  const bool finite = (bits & 0x7f800000) != 0x7f800000;
  return (bits + (finite ? 0x1000 : 0)) & 0xffffe000;
}

template <class V>
inline void keep(V&) {
  static_assert(sizeof(V) == 4 || sizeof(V) == 8);
}

// ---- Loads and stores ----

inline uint32_t shared_address(const void* p) { return emulator::shared_address(p); }

template <class T>
inline T ld_shared(uint32_t address) {
  static_assert(sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
  T value;
  memcpy(&value, emulator::shared_bytes_at(address, sizeof(T), "ld.shared"), sizeof(T));
  emulator::note_shared_access(address, sizeof(T));
  return value;
}
template <class T>
inline void st_shared(uint32_t address, T value) {
  static_assert(sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
  memcpy(emulator::shared_bytes_at(address, sizeof(T), "st.shared"), &value, sizeof(T));
  emulator::note_shared_access(address, sizeof(T));
}
template <class T>
inline T ld_global(const T* p) {
  emulator::check_global(p, sizeof(T), false, "ld.global");
  return *p;
}
template <class T>
inline void st_global(T* p, T value) {
  emulator::check_global(p, sizeof(T), true, "st.global");
  *p = value;
}

template <int kBytes>
inline void cp_async(uint32_t to, const void* from, bool valid = true) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  emulator::cp_async(to, from, kBytes, valid);
}
inline void cp_async_commit_group() { emulator::cp_async_commit_group(); }
template <int kPending>
inline void cp_async_wait_group() {
  emulator::cp_async_wait_group(kPending);
}

// ---- Warp operations: defined in warp.cpp ----

constexpr uint32_t kFullWarp = 0xffffffffu;

void ldmatrix_x4(uint32_t (&d)[4], uint32_t row);
void ldmatrix_x4_trans(uint32_t (&d)[4], uint32_t row);
template <class T>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t* b);
void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t* b);

// Each lane gets the bits of the lane it names; its own where that lane is outside the warp.
uint32_t shfl_bits(uint32_t bits, int source, uint32_t mask);
inline int lane_id() {
  return (threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % 32;
}
template <class T>
inline T shfl_idx(T value, int lane, uint32_t mask = kFullWarp) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  uint32_t bits[sizeof(T) / 4];
  memcpy(bits, &value, sizeof(T));
  for (uint32_t& b : bits) b = shfl_bits(b, lane & 31, mask);
  memcpy(&value, bits, sizeof(T));
  return value;
}
template <class T>
inline T shfl_up(T value, int delta, uint32_t mask = kFullWarp) {
  const int lane = lane_id();
  return shfl_idx(value, lane >= delta ? lane - delta : lane, mask);
}
template <class T>
inline T shfl_down(T value, int delta, uint32_t mask = kFullWarp) {
  const int lane = lane_id();
  return shfl_idx(value, lane + delta < 32 ? lane + delta : lane, mask);
}
template <class T>
inline T shfl_bfly(T value, int lane_mask, uint32_t mask = kFullWarp) {
  return shfl_idx(value, lane_id() ^ lane_mask, mask);
}
uint32_t vote_ballot(bool v, uint32_t mask = kFullWarp);
inline bool vote_any(bool v, uint32_t mask = kFullWarp) { return vote_ballot(v, mask) != 0; }
inline bool vote_all(bool v, uint32_t mask = kFullWarp) { return vote_ballot(!v, mask) == 0; }
void syncwarp(uint32_t mask = kFullWarp);

}  // namespace fastconv::cuda::ptx
