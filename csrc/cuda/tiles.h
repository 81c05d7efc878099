// The tiles of the implicit GEMM kernels and the choice among them: pure, no CUDA header.
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
// Behind the stages lie an input gradient's table of taps, a weight gradient's ring of pixels.
constexpr int kTapTableBytes = 15 * 15 * 8 + 8, kPixelRingBytes = 2 * 3 * 64 * 8;
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
};

struct TileChoice {
  int32_t tile, splits, split_depth;
  float waves;   // blocks over what runs at once
  float cycles;  // of the model below, on the busiest SM
};

// Multiply-adds of one SM and cycle in each kind of arithmetic, with float32 sums (NVIDIA's
// whitepapers: A100, H100; GA102 and Ada, whose GeForce cards make a quarter of A100's: the
// professional ones make twice that). 3xTF32 makes three products.
inline float products_per_cycle(Math math, int arch) {
  const float half = arch >= 90 ? 2048.f : arch == 80 ? 1024.f : 256.f;
  return math == Math::tf32 ? half / 2 : math == Math::f32 ? half / 6 : half;
}

// Blocks of a tile that run on an SM at once; 0 where one is too large.
inline int blocks_at_once(const Tile& t, int element, const Device& gpu, Direction d) {
  const int behind = d == Direction::forward ? 0 : kPixelRingBytes;  // the larger of the two
  const int fitting = gpu.shared_per_sm / (t.shared_bytes(element) + behind + 1024);
  return t.blocks < fitting ? t.blocks : fitting;
}

// The cycles of a problem under one tile: NOTE computed, from sizes alone; no figure here was
// measured on a GPU.
//   - an SM works through ceil(blocks / sms) blocks;
//   - a step costs the slowest of its products, its reads of shared memory (each warp wm + wn rows,
//     128 bytes a cycle) and its copies from L2 (bm + bn rows, 40 bytes a cycle and SM); one warp
//     per scheduler hides no latency: x 1.5;
//   - filling the pipeline costs about 1500 cycles a group of concurrent blocks, the epilogue the
//     bytes of its outputs at 16 a cycle;
//   - of a stride phase's depth the share `filled` is there, on average;
//   - partial sums (`parts`) are written and read once, and cost a second launch of about 4000
//     cycles.
inline float tile_cycles(const Tile& t, Math math, const Device& gpu, int64_t M, int64_t K,
                         int64_t groups, int64_t depth, int splits, bool parts, int at_once,
                         float filled, float* waves) {
  const int element = element_bytes(math);
  const int64_t tiles = (M + t.bm - 1) / t.bm * ((K + t.bn - 1) / t.bn) * groups;
  const int64_t blocks = tiles * splits;
  *waves = float(blocks) / (float(gpu.sms) * at_once);
  const int64_t per_sm = (blocks + gpu.sms - 1) / gpu.sms;
  const int64_t concurrent = per_sm < at_once ? per_sm : at_once;

  const float steps = filled * float((depth + t.bk * splits - 1) / (t.bk * splits));
  const float products = float(t.bm) * t.bn * t.bk / products_per_cycle(math, gpu.arch);
  const float reads = float(t.warps()) * (t.wm + t.wn) * t.bk * element / 128;
  const float lonely = concurrent * t.warps() <= 4 ? 1.5f : 1.f;
  const float copies = float(t.bm + t.bn) * t.bk * element / 40;
  const float slowest = products > reads ? products : reads;
  const float step = (slowest > copies ? slowest : copies) * lonely;
  const float fill = 1500.f * ((per_sm + concurrent - 1) / concurrent);
  const float store = float(t.bm) * t.bn * (parts ? 4 : element) / 16;
  float cycles = per_sm * (steps * step + store) + fill;
  if (parts) cycles += 4000 + float(M) * K * groups * splits * 4 / (16.f * gpu.sms);
  return cycles;
}

// The next number of splits to try: each up to 32; of a weight gradient, whose depth is pixels and
// may take hundreds, what fills the GPU one, two ... four times.
inline int next_splits(int splits, Direction d, int64_t tiles, int64_t at_once) {
  if (d != Direction::weight_grad) return splits < 32 ? splits + 1 : INT32_MAX;
  for (int fills = 1; fills <= 4; ++fills)
    if (fills * at_once / tiles > splits) return int(fills * at_once / tiles);
  return INT32_MAX;
}

// The cheapest tile and number of splits. A split keeps at least eight steps, where there are more.
inline TileChoice choose_tile(int64_t M, int64_t K, int64_t groups, int64_t depth, Math math,
                              const Device& gpu, Direction d = Direction::forward,
                              float filled = 1) {
  TileChoice best = {-1, 1, int32_t(depth), 0, 1e30f};
  for (int i = 0; i < tile_count(math, d); ++i) {
    const Tile t = tile_of(math, i, d);
    const int64_t steps = (depth + t.bk - 1) / t.bk;
    const int64_t tiles = (M + t.bm - 1) / t.bm * ((K + t.bn - 1) / t.bn) * groups;
    const int at_once = blocks_at_once(t, element_bytes(math), gpu, d);
    if (at_once == 0) continue;
    for (int splits = 1; splits == 1 || steps / splits >= 8;
         splits = next_splits(splits, d, tiles, int64_t(at_once) * gpu.sms)) {
      const int64_t steps_each = (steps + splits - 1) / splits;
      const int made = int((steps + steps_each - 1) / steps_each);  // none without work
      if (made != splits && d != Direction::weight_grad) continue;
      const bool parts = made > 1 || d == Direction::weight_grad;
      float waves = 0;
      const float cycles =
          tile_cycles(t, math, gpu, M, K, groups, depth, made, parts, at_once, filled, &waves);
      if (cycles < best.cycles) best = {i, made, int32_t(steps_each * t.bk), waves, cycles};
    }
  }
  return best;
}
inline TileChoice choose_tile(const ConvProblem& p, Math math, const Device& gpu,
                              Direction d = Direction::forward) {
  const int64_t C = p.C / p.G, K = p.K / p.G, taps = p.R * p.S;
  if (d == Direction::weight_grad)
    return choose_tile(K, taps * C, p.G, p.N * p.P * p.Q, math, gpu, d);
  if (d == Direction::forward) return choose_tile(p.N * p.P * p.Q, K, p.G, taps * C, math, gpu);
  // A block of the input gradient works on one stride phase, of at most this many taps; every tap
  // reaches one phase, so that the mean is less.
  const int64_t phases = p.stride_h * p.stride_w;
  const int64_t most =
      ((p.R + p.stride_h - 1) / p.stride_h) * ((p.S + p.stride_w - 1) / p.stride_w);
  return choose_tile((p.N * p.H * p.W + phases - 1) / phases, C, p.G * phases, most * K, math, gpu,
                     d, float(taps) / float(phases * most));
}

}  // namespace fastconv::cuda
