// The choice of a tile and of the splits of its depth: the cheapest by a model of cycles. Pure, no
// CUDA header.
//
// NOTE the model is computed, from sizes and datasheets alone; no figure here was measured by us.
#pragma once
#include <numeric>

#include "tiles.h"

namespace fastconv::cuda {

inline float least(float a, float b) { return a < b ? a : b; }  // fminf would be a call
inline float most(float a, float b) { return a > b ? a : b; }

struct TileChoice {
  int32_t tile, splits, split_depth;
  float waves;   // blocks over what runs at once
  float cycles;  // of the model below
};

// Multiply-adds of one SM and cycle in each kind of arithmetic, with float32 sums (NVIDIA's
// whitepapers: A100; GA102 and Ada, whose GeForce cards make a quarter of A100's: the professional
// ones make twice that). H100's 2048 are wgmma's, which reads shared memory itself: mma.sync is
// known to end near 60 to 65 % of them, and the reads of the best warp tile, 64 x 64, would alone
// end at 67 to 73 %. 3xTF32 makes three products.
inline float products_per_cycle(Math math, int arch) {
  const float half = arch >= 90 ? 1300.f : arch == 80 ? 1024.f : 256.f;
  return math == Math::tf32 ? half / 2 : math == Math::f32 ? half / 6 : half;
}

// Bytes of device memory a cycle: copies reach nine tenths of a datasheet (H100: 3.0 TB/s of 3.35).
inline float memory_rate(const Device& gpu) { return 0.9f * gpu.bandwidth / gpu.clock; }

// Bytes that stay in L2 until they are read again: half of it, as A100's and H100's halves keep
// copies of each other's lines, and what is read once passes through as well.
inline float kept_bytes(const Device& gpu) { return 0.5f * gpu.l2; }

// What a direction multiplies: M x K outputs over `depth`, for each of `groups`.
struct Product {
  Direction direction;
  Math math;
  int64_t M, K, groups, depth;
  float filled;     // the share of a stride phase's depth that is there, on average
  float a, b, out;  // bytes, once: of the operand of M rows, of that of K, of the outputs
  float phases;     // stride phases with a tap: each reads all of a
};

inline Product product_of(const ConvProblem& p, Math math, Direction d) {
  const int64_t C = p.C / p.G, K = p.K / p.G, taps = p.R * p.S, pixels = p.N * p.P * p.Q;
  const int64_t inputs = p.N * p.H * p.W;
  const float bytes = float(element_bytes(math)), w = bytes * float(p.K * taps) * float(C);
  const float y = bytes * float(pixels) * float(p.K), dx = bytes * float(inputs) * float(p.C);
  const float read = bytes * float(pixels * taps) * float(p.C), x = read < dx ? read : dx;
  if (d == Direction::weight_grad) return {d, math, K, taps * C, p.G, pixels, 1, y, x, w, 1};
  if (d == Direction::forward) return {d, math, pixels, K, p.G, taps * C, 1, x, w, y, 1};
  // A block of the input gradient works on one stride phase, of at most `longest` taps; every tap
  // reaches one phase, so that the mean is less. Taps of one phase are `apart_h` rows of w apart.
  const int64_t phases = p.stride_h * p.stride_w;
  const int64_t apart_h = p.stride_h / std::gcd(p.stride_h, p.dil_h);
  const int64_t apart_w = p.stride_w / std::gcd(p.stride_w, p.dil_w);
  const int64_t longest = ((p.R + apart_h - 1) / apart_h) * ((p.S + apart_w - 1) / apart_w);
  Product q = {d,  math, (inputs + phases - 1) / phases, C, p.G * phases, longest * K, 1, y, w,
               dx, 1};
  q.filled = float(taps) / float(phases * longest);
  q.phases = float((p.R < apart_h ? p.R : apart_h) * (p.S < apart_w ? p.S : apart_w));
  return q;
}

// How a product lies on a GPU under one tile.
struct Placing {
  int64_t rows, tiles;  // rows of tiles; tiles of all groups
  int64_t at_once;      // blocks on an SM
};

inline Placing placing_of(const Product& p, const Tile& t, const Device& gpu) {
  const int64_t rows = (p.M + t.bm - 1) / t.bm, columns = (p.K + t.bn - 1) / t.bn;
  return {rows, rows * columns * p.groups,
          blocks_at_once(t, element_bytes(p.math), gpu, p.direction)};
}

constexpr float kFill = 1500;  // cycles until a block's first step has come from device memory

// What a launch reads from device memory. In its grid the tiles of a row are neighbours, which read
// the same part of a at once; then come the rows, last the splits.
inline float bytes_read(const Product& p, const Device& gpu, const Placing& at, int splits,
                        float waves) {
  const float kept = kept_bytes(gpu);
  if (p.direction == Direction::weight_grad) {
    // The tiles of a split go through its pixels side by side, or turn by turn.
    const float turns = float(int64_t(waves / splits) + 1);
    return (p.a + p.b) * ((p.a + p.b) / splits > kept ? turns : 1.f);
  }
  // Every row reads all weights, those of one wave at once.
  const float again = least(float(int64_t(waves) + 1), float(at.rows));
  return p.a * (p.a > kept ? p.phases : 1.f) + p.b * (p.b / (p.groups * splits) > kept ? again : 1);
}

// Work that goes on behind other work is not hidden wholly: a guess, which decides where tiles
// differ in nothing else.
constexpr float kShows = 1 / 16.f;

// Cycles of one step on an SM with nothing else to wait for: the slowest of its products, its
// traffic of shared memory (each warp reads wm + wn rows, and bm + bn are written, 128 bytes a
// cycle) and its copies from L2 (40 bytes a cycle and SM). A warp multiplies on its scheduler's
// quarter of the tensor cores, and one per scheduler hides no latency.
inline float step_cycles(const Tile& t, Math math, int arch, int64_t concurrent) {
  const float row = float(t.bk * element_bytes(math));
  const float warps = float(concurrent * t.warps()), quarters = least(warps, 4);
  const float products =
      float(t.bm * t.bn * t.bk) * 4 / (quarters * products_per_cycle(math, arch));
  const float shared = (t.warps() * (t.wm + t.wn) + t.bm + t.bn) * row / 128;
  const float copies = (t.bm + t.bn) * row / 40;
  const float slowest = most(most(products, shared), copies);
  const float step = slowest + kShows * (products + shared + copies - slowest);
  return step * (warps <= 4 ? 1.5f : 1.f);
}

// The second launch that adds `parts` bytes of partial sums: about 2.5 us until it runs at full
// speed; then the parts are read once, from L2 where they stayed there. It has little to do but
// wait, so 12 bytes a cycle and SM, which also weighs the memory that parts take.
inline float second_pass_cycles(const Product& p, const Device& gpu, float parts) {
  const float from_memory = parts > kept_bytes(gpu) ? parts : 0.f;
  return 2.5e-6f * gpu.clock +
         most(parts / (12.f * gpu.sms), (from_memory + p.out) / memory_rate(gpu));
}

// The cycles of a product. A block fills its pipeline, multiplies, and stores its outputs at 16
// bytes a cycle; every block has the same share of device memory. The busiest SM has `turns` turns
// of `concurrent` blocks. Either it waits for the latency of each turn; or blocks hide each other's
// and it multiplies, or stores, all the time, but for the first fill and what the first or last
// turn has nothing beside; or memory is busy all the time, and a little of the SM's work shows. A
// single block at once hides nothing.
inline float tile_cycles(const Tile& t, const Product& p, const Device& gpu, const Placing& at,
                         int splits, int steps_each, float* waves) {
  const int64_t blocks = at.tiles * splits, per_sm = (blocks + gpu.sms - 1) / gpu.sms;
  const int64_t concurrent = per_sm < at.at_once ? per_sm : at.at_once;
  const int64_t turns = (per_sm + concurrent - 1) / concurrent;
  *waves = float(blocks) / float(gpu.sms * at.at_once);
  const bool split = splits > 1 || p.direction == Direction::weight_grad;
  const float parts = split ? float(p.M * p.K * p.groups) * splits * 4 : 0.f;

  const float products = p.filled * steps_each * step_cycles(t, p.math, gpu.arch, concurrent);
  const float stores = float(t.bm * t.bn) * (split ? 4 : element_bytes(p.math)) / 16;

  // Few blocks have too few bytes on their way for all of the bandwidth.
  const float resident = float(*waves < 1 ? blocks : gpu.sms * at.at_once);
  const float on_their_way =
      resident * (t.stages - 1) * t.shared_bytes(element_bytes(p.math)) / t.stages;
  const float rate = memory_rate(gpu);
  const float read = bytes_read(p, gpu, at, splits, *waves) / least(rate, on_their_way / kFill);
  const float written = (!split ? p.out : parts > kept_bytes(gpu) ? parts : 0.f) / rate;

  const float multiply = most(products, read / per_sm), store = most(stores, written / per_sm);
  const float latency = turns * (kFill + multiply + store);
  const float multiplying = kFill + per_sm * multiply + concurrent * store;
  const float storing = kFill + concurrent * multiply + per_sm * store;
  const float memory = kFill + read + written + kShows * per_sm * (products + stores);
  const float cycles = most(most(latency, multiplying), most(storing, memory));
  return split ? cycles + second_pass_cycles(p, gpu, parts) : cycles;
}

// The next number of splits to try: powers of two, one and a half times these, and the most that
// give every SM one, two ... sixteen blocks. `whole`: splits for one block on every SM.
inline int next_splits(int splits, float whole) {
  int power = 1;
  while (2 * power <= splits) power *= 2;
  const int next = splits < power + power / 2 ? power + power / 2 : 2 * power;
  const int blocks = int((splits + 1) / whole + 0.999f), filling = int(blocks * whole);
  const int chosen = filling > splits && filling < next ? filling : next;
  return chosen <= 16 * whole ? chosen : INT32_MAX;
}

constexpr int kLeastSteps = 4;  // of a split, where the depth has more

// The cheapest tile and number of splits; of an empty batch's product as if it had a row, a step.
inline TileChoice choose_tile(Product p, const Device& gpu) {
  p.M = p.M < 1 ? 1 : p.M, p.depth = p.depth < 1 ? 1 : p.depth;
  TileChoice best = {-1, 1, int32_t(p.depth), 0, 1e30f};
  for (int i = 0; i < tile_count(p.math, p.direction); ++i) {
    const Tile t = tile_of(p.math, i, p.direction);
    const Placing at = placing_of(p, t, gpu);
    if (at.at_once == 0) continue;
    const int steps = int((p.depth + t.bk - 1) / t.bk);
    const float whole = float(gpu.sms) / float(at.tiles);
    for (int splits = 1; splits == 1 || steps / splits >= kLeastSteps;
         splits = next_splits(splits, whole)) {
      const int steps_each = (steps + splits - 1) / splits;
      const int made = (steps + steps_each - 1) / steps_each;  // none without work
      float waves = 0;
      const float cycles = tile_cycles(t, p, gpu, at, made, steps_each, &waves);
      if (cycles < best.cycles) best = {i, made, int32_t(steps_each * t.bk), waves, cycles};
      if (splits >= whole && cycles > 2 * best.cycles) break;  // more cost more
    }
  }
  return best;
}
inline TileChoice choose_tile(const ConvProblem& p, Math math, const Device& gpu,
                              Direction d = Direction::forward) {
  return choose_tile(product_of(p, math, d), gpu);
}

}  // namespace fastconv::cuda
