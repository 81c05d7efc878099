// The tiles of the implicit GEMM kernels (tile_choice.h chooses among them): no CUDA header.
//
// A block of the output GEMM (M = N P Q pixels, N = K channels, depth = R S C) is bm x bn; it goes
// through the depth in steps of bk, `stages` of which are on their way in shared memory; a warp
// computes wm x wn. The warp tile decides the traffic between shared memory and registers: a step
// of 16 reads (wm + wn) rows for wm wn products, so 64 x 64 is best, and two blocks on an SM hide
// each other's barriers.
#pragma once
#include "conv_params.h"

namespace fastconv::cuda {

struct Tile {
  int bm, bn, bk, wm, wn, stages;
  // The budget, held by tests/test_cuda_build.py: blocks on an SM of an A100 (164 KB of shared
  // memory, 64 K registers), and registers of a thread on sm_80 and sm_90a, none of them spilled.
  int blocks, registers;

  constexpr int warps() const { return (bm / wm) * (bn / wn); }
  constexpr int threads() const { return 32 * warps(); }
  constexpr int shared_bytes(int element) const { return stages * (bm + bn) * bk * element; }
};

// f16 and bf16.
constexpr Tile kHalfTiles[] = {
    // Large batches: the least traffic per product; one block an SM, so only for many blocks.
    {256, 128, 32, 64, 64, 3, 1, 244},
    // The default.
    {128, 128, 32, 64, 64, 4, 2, 252},
    // The default where an SM has 100 KB of shared memory (sm_86, sm_89).
    {128, 128, 32, 64, 64, 3, 2, 252},
    // Up to 64 output channels, or too few blocks of 128 x 128.
    {128, 64, 32, 64, 32, 4, 3, 168},
    // Small maps and batches: more blocks, and a longer step for the fixed cost of each.
    {64, 64, 64, 64, 32, 3, 3, 208},
    // Up to 32 output channels.
    {128, 32, 32, 32, 32, 4, 4, 120},
};
// tf32: a float is twice as wide, so a step is half as deep for the same bytes.
constexpr Tile kTf32Tiles[] = {
    {128, 128, 16, 64, 64, 4, 2, 252},
    {128, 64, 16, 64, 32, 4, 3, 168},
    {64, 64, 32, 64, 32, 3, 3, 216},
    {128, 32, 16, 32, 32, 4, 4, 120},
};
// float32 as 3xTF32: a second set of accumulators takes the sums each 32 of depth, which leaves no
// registers for a warp tile of 64 x 64.
constexpr Tile kFloatTiles[] = {
    {128, 128, 32, 64, 32, 3, 1, 224},
    {128, 64, 32, 64, 32, 3, 2, 232},
    {64, 64, 32, 32, 32, 3, 3, 152},
    {128, 32, 32, 32, 32, 3, 2, 160},
};

// Gradients. Operands that lie in memory along the wrong axis (weights of the input gradient, both
// of the weight gradient) are transposed on the way to registers, by ldmatrix for 2-byte elements
// and by 4-byte reads for floats. M is pixels of dx or K, N is C or R S C.
// Behind the stages lie the steps from tap to tap of an input gradient, a weight gradient's ring of
// pixels.
constexpr int kTurnBytes = 32, kPixelRingBytes = 2 * 3 * 64 * 8;
constexpr Tile kHalfGradTiles[] = {
    // The default.
    {128, 128, 32, 64, 64, 4, 2, 255},
    // Up to 64 channels, or too few blocks of 128 x 128.
    {128, 64, 32, 64, 32, 4, 2, 208},
    // Small maps; weights of 64 x 64.
    {64, 64, 64, 64, 32, 3, 3, 216},
    // Up to 32 channels.
    {128, 32, 32, 32, 32, 4, 3, 136},
};
constexpr Tile kTf32GradTiles[] = {
    {128, 128, 16, 64, 64, 4, 2, 255},
    {128, 64, 16, 64, 32, 4, 2, 208},
    {64, 64, 32, 64, 32, 3, 3, 232},
    {128, 32, 16, 32, 32, 4, 3, 128},
};
constexpr Tile kFloatGradTiles[] = {
    {128, 128, 32, 64, 32, 3, 1, 240},
    {128, 64, 32, 64, 32, 3, 2, 255},
    {64, 64, 32, 32, 32, 3, 3, 168},
    {128, 32, 32, 32, 32, 3, 2, 176},
};

template <int N>
constexpr int count(const Tile (&)[N]) {
  return N;
}
constexpr int tile_count(Math math, Direction d = Direction::forward) {
  if (d != Direction::forward)
    return math == Math::tf32  ? count(kTf32GradTiles)
           : math == Math::f32 ? count(kFloatGradTiles)
                               : count(kHalfGradTiles);
  return math == Math::tf32  ? count(kTf32Tiles)
         : math == Math::f32 ? count(kFloatTiles)
                             : count(kHalfTiles);
}
constexpr Tile tile_of(Math math, int index, Direction d = Direction::forward) {
  if (d != Direction::forward)
    return math == Math::tf32  ? kTf32GradTiles[index]
           : math == Math::f32 ? kFloatGradTiles[index]
                               : kHalfGradTiles[index];
  return math == Math::tf32  ? kTf32Tiles[index]
         : math == Math::f32 ? kFloatTiles[index]
                             : kHalfTiles[index];
}

// What of a GPU the choice depends on.
struct Device {
  int32_t arch;           // 80, 86, 89, 90
  int32_t sms;            // streaming multiprocessors
  int32_t shared_per_sm;  // bytes, of which each block loses 1024 to the system
  int32_t l2;             // bytes
  float clock;            // Hz, of the multiprocessors
  float bandwidth;        // bytes a second, of device memory
};

// Blocks of a tile that run on an SM at once; 0 where one is too large.
inline int blocks_at_once(const Tile& t, int element, const Device& gpu, Direction d) {
  const int behind = d == Direction::forward ? 0 : kPixelRingBytes;  // the larger of the two
  const int fitting = gpu.shared_per_sm / (t.shared_bytes(element) + behind + 1024);
  return t.blocks < fitting ? t.blocks : fitting;
}

}  // namespace fastconv::cuda
