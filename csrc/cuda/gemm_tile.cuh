// The warp's share of a block's product: fragments from shared memory, tensor-core products.
//
// Operands of the forward pass are rows along the depth, 64 or 128 bytes a step. The 16-byte chunks
// of a row are permuted so that eight rows read by one ldmatrix lie in different banks. A chunk
// holds 8 halves or 4 floats, and one step of the tensor core takes 32 bytes of either, so all
// arithmetics share this. Gradients have operands that lie across the depth, and are transposed.
#pragma once
#include "epilogue.cuh"
#include "tiles.h"

namespace fastconv::cuda {

FASTCONV_BOTH constexpr int min_of(int a, int b) { return a < b ? a : b; }

template <Math kM>
struct Storage {
  using type = float;
};
template <>
struct Storage<Math::f16> {
  using type = half;
};
template <>
struct Storage<Math::bf16> {
  using type = bf16;
};

// An operand's part of a stage: rows of a tile, each bk of depth, or (kDepthRows) bk rows of depth,
// each the whole tile, where that is how it lies in memory.
template <class T, int kTileRows, int kBk, int kThreads, bool kDepthRows>
struct OperandShape {
  static constexpr int kRows = kDepthRows ? kBk : kTileRows;
  static constexpr int kRowBytes = (kDepthRows ? kTileRows : kBk) * int(sizeof(T));
  static constexpr int kChunks = kRowBytes / 16, kRowsPerPass = kThreads / kChunks;
  static constexpr int kLoads = kRows / kRowsPerPass, kPassBytes = kRowsPerPass * kRowBytes;
  static_assert(kRowsPerPass % (kDepthRows && sizeof(T) == 4 ? 4 : 8) == 0,
                "a thread's rows share one permutation of chunks");
  static_assert(kRows % kRowsPerPass == 0);
};

template <Math kM, int kIndex, bool kOneByOne, Direction kD = Direction::forward>
struct GemmConfig {
  static constexpr Math kMath = kM;
  static constexpr Direction kDirection = kD;
  static constexpr Tile kTile = tile_of(kM, kIndex, kD);
  static constexpr bool kPointwise = kOneByOne;
  // Whether there may be several stride phases; a gradient has no bias, residual or activation.
  static constexpr bool kPhases = kD == Direction::input_grad && !kOneByOne;
  static constexpr bool kEpilogue = kD == Direction::forward;
  using T = typename Storage<kM>::type;
  static constexpr bool kDepthRowsA = kD == Direction::weight_grad;
  static constexpr bool kDepthRowsB = kD != Direction::forward;
  static constexpr int kThreads = kTile.threads();
  using A = OperandShape<T, kTile.bm, kTile.bk, kThreads, kDepthRowsA>;
  using B = OperandShape<T, kTile.bn, kTile.bk, kThreads, kDepthRowsB>;
  static constexpr int kStepBytes = kTile.bk * int(sizeof(T)), kSteps = kStepBytes / 32;
  static constexpr int kBytesA = kTile.bm * kStepBytes;
  static constexpr int kStageBytes = kBytesA + kTile.bn * kStepBytes;
  // store_tile's part of a warp: 16 rows of floats, and two slabs of residual.
  static constexpr int kSlabPitch = kTile.wn + 8;
  static constexpr int kSlabBytes = 16 * (kSlabPitch * 4 + 2 * kTile.wn * int(sizeof(T)));
  static constexpr int kSharedBytes =
      kTile.shared_bytes(sizeof(T)) + (kD == Direction::input_grad    ? kTurnBytes
                                       : kD == Direction::weight_grad ? kPixelRingBytes
                                                                      : 0);
  // 3xTF32 keeps its registers for the second set of accumulators.
  static constexpr bool kPrefetch = kM != Math::f32;

  static_assert(kStepBytes == 64 || kStepBytes == 128);
  static_assert(kTile.wm % 16 == 0 && kTile.wn % 16 == 0);
  static_assert(kTile.warps() * kSlabBytes <= kSharedBytes, "store_tile reuses the stages");
  static_assert(kM != Math::f32 || kTile.bk <= 32, "3xTF32 is promoted each 32 of depth");
};

template <int kRowBytes>
FASTCONV_DEVICE int swizzle(int row, int chunk) {
  return chunk ^ (kRowBytes == 64 ? row >> 1 & 3 : row & 7);
}
// Of rows of depth: a warp reads floats of four rows, two chunks of each.
template <class T, int kRowBytes>
FASTCONV_DEVICE int swizzle_depth(int row, int chunk) {
  return sizeof(T) == 4 ? chunk ^ (row & 3) << 1 : swizzle<kRowBytes>(row, chunk);
}

template <class Config>
struct WarpTile {
  static constexpr Tile kTile = Config::kTile;
  static constexpr int kRows = kTile.wm / 16, kColumns = kTile.wn / 8, kPairs = (kColumns + 1) / 2;
  static constexpr int kBuffers = Config::kPrefetch ? 2 : 1;

  float acc[kRows][kColumns][4];
  float total[Config::kMath == Math::f32 ? kRows : 1][kColumns][4];
  uint32_t a[kBuffers][kRows][4], b[kBuffers][kPairs][4];
  uint32_t a_from, b_from;  // of this lane's row in a stage

  FASTCONV_DEVICE void start() {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    constexpr int kWarpsN = kTile.bn / kTile.wn;
    const int m = warp / kWarpsN * kTile.wm, n = warp % kWarpsN * kTile.wn;
    a_from = start_of<typename Config::A, Config::kDepthRowsA>(m, lane % 16, lane / 16);
    b_from = Config::kBytesA + start_of<typename Config::B, Config::kDepthRowsB>(
                                   n, lane % 8 + lane / 16 * 8, lane / 8 % 2);
    ptx::keep(a_from);
    ptx::keep(b_from);
#pragma unroll
    for (int i = 0; i < kRows; ++i)
#pragma unroll
      for (int j = 0; j < kColumns; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          acc[i][j][e] = 0;
          if constexpr (Config::kMath == Math::f32) total[i][j][e] = 0;
        }
  }

  // Where a lane reads an operand whose first row in the tile is `first`: at row `row` of the 16
  // that ldmatrix reads, chunk `chunk` of a step's two.
  template <class Shape, bool kDepthRows>
  static FASTCONV_DEVICE uint32_t start_of(int first, int row, int chunk) {
    using T = typename Config::T;
    const int lane = threadIdx.x % 32;
    if constexpr (!kDepthRows) {
      row += first;
      return row * Shape::kRowBytes + swizzle<Shape::kRowBytes>(row, chunk) * 16;
    } else if constexpr (sizeof(T) == 2) {
      const int depth = row % 8 + chunk * 8, column = first / 8 + row / 8;
      return depth * Shape::kRowBytes + swizzle_depth<T, Shape::kRowBytes>(depth, column) * 16;
    } else {
      const int depth = lane % 4, column = first / 4 + lane / 16;
      return depth * Shape::kRowBytes + swizzle_depth<T, Shape::kRowBytes>(depth, column) * 16 +
             lane / 4 % 4 * 4;
    }
  }

  // Fragments of 16 rows of an operand, `i`-th of the warp's, in step `step`. Chunks of a step
  // differ from step 0's in bits 5 and 6; those of rows of depth by 16 rows in the same way.
  template <class Shape, bool kDepthRows, bool kIsA>
  static FASTCONV_DEVICE void fragment(uint32_t (&v)[4], uint32_t from, int i, int step) {
    if constexpr (!kDepthRows) {
      ptx::ldmatrix_x4(v, (from ^ step << 5) + i * 16 * Shape::kRowBytes);
    } else if constexpr (sizeof(typename Config::T) == 2) {
      ptx::ldmatrix_x4_trans(v, (from ^ i << 5) + step * 16 * Shape::kRowBytes);
    } else {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int right = kIsA ? e % 2 : e / 2, below = kIsA ? e / 2 : e % 2;  // 8 rows, 4 of depth
        v[e] = ptx::ld_shared<uint32_t>((from ^ (2 * i + right) << 5) +
                                        (step * 8 + below * 4) * Shape::kRowBytes);
      }
    }
  }

  FASTCONV_DEVICE void read(uint32_t stage, int step) {
    const int buffer = step % kBuffers;
#pragma unroll
    for (int i = 0; i < kRows; ++i)
      fragment<typename Config::A, Config::kDepthRowsA, true>(a[buffer][i], stage + a_from, i,
                                                              step);
#pragma unroll
    for (int j = 0; j < kColumns / 2; ++j)
      fragment<typename Config::B, Config::kDepthRowsB, false>(b[buffer][j], stage + b_from, j,
                                                               step);
  }

  FASTCONV_DEVICE void multiply(int step) {
    auto& fa = a[step % kBuffers];
    auto& fb = b[step % kBuffers];
    if constexpr (Config::kMath == Math::f32) {
      multiply_float(fa, fb);
    } else {
      if constexpr (Config::kMath == Math::tf32) {
        round(fa);
        round(fb);
      }
      product(fa, fb);
    }
  }

  template <int N>
  static FASTCONV_DEVICE void round(uint32_t (&v)[N][4]) {
#pragma unroll
    for (int i = 0; i < N; ++i)
#pragma unroll
      for (int e = 0; e < 4; ++e) v[i][e] = ptx::cvt_rna_tf32(ptx::bits_float(v[i][e]));
  }

  FASTCONV_DEVICE void product(const uint32_t (&fa)[kRows][4], const uint32_t (&fb)[kPairs][4]) {
#pragma unroll
    for (int i = 0; i < kRows; ++i)
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        const uint32_t* column = &fb[j / 2][j % 2 * 2];
        if constexpr (sizeof(typename Config::T) == 2)
          ptx::mma_m16n8k16<typename Config::T>(acc[i][j], fa[i], column);
        else
          ptx::mma_m16n8k8_tf32(acc[i][j], fa[i], column);
      }
  }

  // x = big + small, both tf32: big is x rounded, ties away, small the exact rest. NOTE for x not
  // finite small is NaN, and so is the sum; store_tile computes such outputs again.
  template <int N>
  static FASTCONV_DEVICE void split(uint32_t (&v)[N][4], uint32_t (&small)[N][4]) {
#pragma unroll
    for (int i = 0; i < N; ++i)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const uint32_t big = (v[i][e] + 0x1000) & 0xffffe000u;
        small[i][e] = ptx::float_bits(ptx::bits_float(v[i][e]) - ptx::bits_float(big));
        v[i][e] = big;
      }
  }

  // 3xTF32: the smallest terms first; small times small is below float32.
  FASTCONV_DEVICE void multiply_float(uint32_t (&fa)[kRows][4], uint32_t (&fb)[kPairs][4]) {
    uint32_t a_small[kRows][4], b_small[kPairs][4];
    split(fa, a_small);
    split(fb, b_small);
    product(a_small, fb);
    product(fa, b_small);
    product(fa, fb);
  }

  // A tensor core rounds its sums toward zero, so 3xTF32 may add up no more than 32 of depth there.
  FASTCONV_DEVICE void promote() {
    if constexpr (Config::kMath == Math::f32) {
#pragma unroll
      for (int i = 0; i < kRows; ++i)
#pragma unroll
        for (int j = 0; j < kColumns; ++j)
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            total[i][j][e] += acc[i][j][e];
            acc[i][j][e] = 0;
          }
    }
  }

  FASTCONV_DEVICE auto& sums() {
    if constexpr (Config::kMath == Math::f32)
      return total;
    else
      return acc;
  }
};

}  // namespace fastconv::cuda
