// Operations of a whole warp. Fragment layouts: PTX ISA manual, "Matrix Fragments for
// mma.m16n8k16" and "... mma.m16n8k8", and the figure of ldmatrix.
//
// Tensor cores add exact products and round the sum toward zero (Fasi, Higham, Mikaitis, Pranesh,
// "Numerical behavior of NVIDIA tensor cores", PeerJ CS 7:e330, 2021). Here one mma is exact up
// to float64 and its result is cut to float32 once.
#include "../../csrc/cuda/ptx.cuh"
#include "engine.h"
#include "memory.h"

// The 29 bits of a double's mantissa that a float lacks are cleared.
float emulator::cut(double v) {
  uint64_t bits;
  memcpy(&bits, &v, 8);
  bits &= ~((uint64_t(1) << 29) - 1);
  memcpy(&v, &bits, 8);
  return float(v);
}

namespace fastconv::cuda::ptx {
namespace {

using emulator::cut;

constexpr int kLanes = 32;

template <class Args>
Args& of(void* const* args, int lane) {
  return *static_cast<Args*>(args[lane]);
}

// ---- ldmatrix ----

struct LoadMatrix {
  uint32_t* d;
  uint32_t row;
};

template <bool kTrans>
void run_ldmatrix(void* const* args, uint32_t) {
  uint16_t m[8][8];
  for (int i = 0; i < 4; ++i) {
    uint32_t addresses[8];
    for (int r = 0; r < 8; ++r) {
      addresses[r] = of<LoadMatrix>(args, 8 * i + r).row;
      memcpy(m[r], emulator::shared_bytes_at(addresses[r], 16, "ldmatrix"), 16);
    }
    if (emulator::options.count_banks) emulator::count_phase(addresses, 8, 16);
    for (int lane = 0; lane < kLanes; ++lane) {
      const int g = lane / 4, t = lane % 4 * 2;
      const uint16_t low = kTrans ? m[t][g] : m[g][t], high = kTrans ? m[t + 1][g] : m[g][t + 1];
      of<LoadMatrix>(args, lane).d[i] = low | uint32_t(high) << 16;
    }
  }
}

const emulator::WarpOp kLoadMatrix = {"ldmatrix", run_ldmatrix<false>};
const emulator::WarpOp kLoadMatrixTrans = {"ldmatrix.trans", run_ldmatrix<true>};

// ---- mma ----

struct Mma {
  float* d;
  const uint32_t *a, *b;
};

typedef double Row __attribute__((vector_size(64)));  // the 8 columns of a tile

template <int K>
void multiply(void* const* args, const double (&a)[16][K], const Row (&b)[K]) {
  for (int row = 0; row < 16; ++row) {
    Row sum;
    for (int t = 0; t < 4; ++t) {
      const float* d = of<Mma>(args, row % 8 * 4 + t).d + row / 8 * 2;
      sum[2 * t] = d[0];
      sum[2 * t + 1] = d[1];
    }
    for (int k = 0; k < K; ++k) sum += a[row][k] * b[k];
    for (int t = 0; t < 4; ++t) {
      float* d = of<Mma>(args, row % 8 * 4 + t).d + row / 8 * 2;
      d[0] = cut(sum[2 * t]);
      d[1] = cut(sum[2 * t + 1]);
    }
  }
}

template <class T>
void run_mma16(void* const* args, uint32_t) {
  double a[16][16];
  Row b[16];
  auto value = [](uint32_t pair, int i) { return to_float(T{uint16_t(pair >> 16 * i)}); };
  for (int lane = 0; lane < kLanes; ++lane) {
    const Mma& mma = of<Mma>(args, lane);
    const int g = lane / 4, t = lane % 4 * 2;
    for (int i = 0; i < 2; ++i) {
      for (int r = 0; r < 4; ++r) a[g + r % 2 * 8][t + i + r / 2 * 8] = value(mma.a[r], i);
      for (int r = 0; r < 2; ++r) b[t + i + r * 8][g] = value(mma.b[r], i);
    }
  }
  multiply<16>(args, a, b);
}

void run_mma8(void* const* args, uint32_t) {
  double a[16][8];
  Row b[8];
  auto value = [](uint32_t bits) { return bits_float(bits & ~0x1fffu); };
  for (int lane = 0; lane < kLanes; ++lane) {
    const Mma& mma = of<Mma>(args, lane);
    const int g = lane / 4, t = lane % 4;
    for (int r = 0; r < 4; ++r) a[g + r % 2 * 8][t + r / 2 * 4] = value(mma.a[r]);
    for (int r = 0; r < 2; ++r) b[t + r * 4][g] = value(mma.b[r]);
  }
  multiply<8>(args, a, b);
}

const emulator::WarpOp kMmaHalf = {"mma.m16n8k16.f16", run_mma16<half>};
const emulator::WarpOp kMmaBf16 = {"mma.m16n8k16.bf16", run_mma16<bf16>};
const emulator::WarpOp kMmaTf32 = {"mma.m16n8k8.tf32", run_mma8};

// ---- Shuffle, vote, syncwarp ----

struct Shuffle {
  uint32_t bits, result;
  int source;
};
void run_shuffle(void* const* args, uint32_t mask) {
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!(mask >> lane & 1)) continue;
    Shuffle& s = of<Shuffle>(args, lane);
    if (!(mask >> s.source & 1))
      emulator::fail("shfl: lane %d reads lane %d, outside the mask 0x%x", lane, s.source, mask);
    s.result = of<Shuffle>(args, s.source).bits;
  }
}
const emulator::WarpOp kShuffle = {"shfl", run_shuffle};

struct Vote {
  bool vote;
  uint32_t result;
};
void run_ballot(void* const* args, uint32_t mask) {
  uint32_t votes = 0;
  for (int lane = 0; lane < kLanes; ++lane)
    if (mask >> lane & 1) votes |= uint32_t(of<Vote>(args, lane).vote) << lane;
  for (int lane = 0; lane < kLanes; ++lane)
    if (mask >> lane & 1) of<Vote>(args, lane).result = votes;
}
const emulator::WarpOp kBallot = {"vote", run_ballot};
const emulator::WarpOp kSyncwarp = {"syncwarp", nullptr};

// Instructions that need all 32 lanes to exist.
void full_warp(const emulator::WarpOp& op, void* args) {
  if (emulator::current->warp->existing != kFullWarp)
    emulator::fail("%s in a warp of fewer than 32 threads", op.name);
  emulator::collective(op, kFullWarp, args);
}

}  // namespace

void ldmatrix_x4(uint32_t (&d)[4], uint32_t row) {
  LoadMatrix args = {d, row};
  full_warp(kLoadMatrix, &args);
}
void ldmatrix_x4_trans(uint32_t (&d)[4], uint32_t row) {
  LoadMatrix args = {d, row};
  full_warp(kLoadMatrixTrans, &args);
}
template <>
void mma_m16n8k16<half>(float (&d)[4], const uint32_t (&a)[4], const uint32_t* b) {
  Mma args = {d, a, b};
  full_warp(kMmaHalf, &args);
}
template <>
void mma_m16n8k16<bf16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t* b) {
  Mma args = {d, a, b};
  full_warp(kMmaBf16, &args);
}
void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t* b) {
  Mma args = {d, a, b};
  full_warp(kMmaTf32, &args);
}
uint32_t shfl_bits(uint32_t bits, int source, uint32_t mask) {
  Shuffle args = {bits, 0, source};
  emulator::collective(kShuffle, mask, &args);
  return args.result;
}
uint32_t vote_ballot(bool v, uint32_t mask) {
  Vote args = {v, 0};
  emulator::collective(kBallot, mask, &args);
  return args.result;
}
void syncwarp(uint32_t mask) { emulator::collective(kSyncwarp, mask, nullptr); }

}  // namespace fastconv::cuda::ptx
