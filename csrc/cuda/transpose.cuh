// Transposes the matrices of a batch (channels by pixels, or pixels by channels) through shared
// memory: both sides are read and written along their rows, without bank conflicts.
//
// Images of up to four channels have a tile of their own, 4 x 256; elements of 16 bits go in pairs,
// 128 bytes of a row a warp, where both sides' rows hold whole pairs.
#pragma once
#include "storage.cuh"
#include "transpose.h"

namespace fastconv::cuda {

constexpr int kTransposeThreads = 256;

struct TransposeTiles {
  Axis columns, rows;
};

// The long side of a tile lies along a row of shared memory, whose pitch puts what a warp
// reads across the rows into different banks.
template <class Word, int kRows, int kColumns>
struct TransposeTile {
  static constexpr int kShort = kRows < kColumns ? kRows : kColumns;
  static constexpr int kLong = kRows < kColumns ? kColumns : kRows;
  static constexpr int kLanes = sizeof(Word) == 8 ? 16 : 32;  // that are served together
  static constexpr int kPitch = kLong + (kShort == 4 ? kLanes / 4 : sizeof(Word) == 2 ? 2 : 1);
  static constexpr int kSharedBytes = kShort * kPitch * int(sizeof(Word));

  static FASTCONV_DEVICE uint32_t at(int row, int column) {
    const int place = kColumns >= kRows ? row * kPitch + column : column * kPitch + row;
    return place * uint32_t(sizeof(Word));
  }
};

template <class Word, int kRows, int kColumns>
__global__ void __launch_bounds__(kTransposeThreads)
    transpose(const TransposeParams __grid_constant__ p,
              const TransposeTiles __grid_constant__ tiles) {
  using Tile = TransposeTile<Word, kRows, kColumns>;
  constexpr int kEach = kRows * kColumns / kTransposeThreads;
  const uint32_t shared = ptx::shared_address(shared_memory());
  int64_t image = blockIdx.x;
  const int64_t column0 = take_remainder(image, tiles.columns) * kColumns;
  const int64_t row0 = take_remainder(image, tiles.rows) * kRows;
  const int64_t rows = p.rows - row0, columns = p.columns - column0;
  const int t = threadIdx.x;
  {
    const int column = t % kColumns, row = t / kColumns;
    const Word* from = static_cast<const Word*>(p.from) + image * p.from_image +
                       (row0 + row) * p.from_row + column0 + column;
    Word values[kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int next = i * (kTransposeThreads / kColumns);
      if (row + next < rows && column < columns)
        values[i] = ptx::ld_global(from + next * p.from_row);
    }
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int next = row + i * (kTransposeThreads / kColumns);
      if (next < rows && column < columns)
        ptx::st_shared(shared + Tile::at(next, column), values[i]);
    }
  }
  __syncthreads();
  const int row = t % kRows, column = t / kRows;
  Word* to =
      static_cast<Word*>(p.to) + image * p.to_image + (column0 + column) * p.to_row + row0 + row;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int next = i * (kTransposeThreads / kRows);
    if (column + next < columns && row < rows)
      ptx::st_global(to + next * p.to_row,
                     ptx::ld_shared<Word>(shared + Tile::at(row, column + next)));
  }
}

// 64 x 64 elements of 16 bits. A thread reads two rows of a pair of columns and exchanges them.
constexpr int kPairsPitch = 33;  // words; what a warp writes and reads lies in different banks

template <int kTile>
__global__ void __launch_bounds__(kTransposeThreads)
    transpose_pairs(const TransposeParams __grid_constant__ p,
                    const TransposeTiles __grid_constant__ tiles) {
  constexpr int kWarps = kTransposeThreads / 32, kEach = kTile / 2 / kWarps;
  static_assert(kTile == 64, "a lane is a pair of a row");
  const uint32_t shared = ptx::shared_address(shared_memory());
  int64_t image = blockIdx.x;
  const int64_t column0 = take_remainder(image, tiles.columns) * kTile;
  const int64_t row0 = take_remainder(image, tiles.rows) * kTile;
  const int64_t rows = p.rows - row0, columns = p.columns - column0;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const uint16_t* from = static_cast<const uint16_t*>(p.from) + image * p.from_image +
                         row0 * p.from_row + column0 + 2 * lane;
  uint32_t upper[kEach], lower[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int row = 2 * (warp + i * kWarps);
    if (row >= rows || 2 * lane >= columns) continue;
    const uint16_t* at = from + row * p.from_row;
    upper[i] = ptx::ld_global(reinterpret_cast<const uint32_t*>(at));
    lower[i] = ptx::ld_global(reinterpret_cast<const uint32_t*>(at + p.from_row));
  }
  // Column c of the tile is row c / 2 of words of the first half, or the second where c is odd.
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int pair = warp + i * kWarps;
    if (2 * pair >= rows || 2 * lane >= columns) continue;
    const uint32_t to = shared + 4 * (lane * kPairsPitch + pair);
    ptx::st_shared(to, (upper[i] & 0xffffu) | lower[i] << 16);
    ptx::st_shared(to + 4 * 32 * kPairsPitch, upper[i] >> 16 | (lower[i] & 0xffff0000u));
  }
  __syncthreads();
  uint16_t* to =
      static_cast<uint16_t*>(p.to) + image * p.to_image + column0 * p.to_row + row0 + 2 * lane;
#pragma unroll
  for (int i = 0; i < 2 * kEach; ++i) {
    const int column = warp + i * kWarps;
    if (column >= columns || 2 * lane >= rows) continue;
    const uint32_t word = (column % 2 * 32 + column / 2) * kPairsPitch + lane;
    ptx::st_global(reinterpret_cast<uint32_t*>(to + column * p.to_row),
                   ptx::ld_shared<uint32_t>(shared + 4 * word));
  }
}

// ---- Launches ----

inline bool whole_pairs(const TransposeParams& p) {
  const int64_t together = p.rows | p.columns | p.from_row | p.to_row | p.from_image | p.to_image;
  const uintptr_t places = reinterpret_cast<uintptr_t>(p.from) | reinterpret_cast<uintptr_t>(p.to);
  return p.element_bytes == 2 && together % 2 == 0 && places % 4 == 0;
}

inline Status launch_transpose_pairs(const TransposeParams& p, Stream stream) {
  static const KernelLabel label("transpose_pairs_%dx%d", 64, 64);
  const int64_t tiles_r = (p.rows + 63) / 64, tiles_c = (p.columns + 63) / 64;
  return launch_line(label.text, transpose_pairs<64>, p.images * tiles_r * tiles_c, 1,
                     kTransposeThreads, 64 * kPairsPitch * 4, stream, p,
                     TransposeTiles{make_axis(tiles_c), make_axis(tiles_r)});
}

template <class Word, int kRows, int kColumns>
Status launch_transpose(const TransposeParams& p, Stream stream) {
  static const KernelLabel label("transpose_%dx%d_%d", kRows, kColumns, 8 * int(sizeof(Word)));
  const int64_t tiles_r = (p.rows + kRows - 1) / kRows;
  const int64_t tiles_c = (p.columns + kColumns - 1) / kColumns;
  return launch_line(label.text, transpose<Word, kRows, kColumns>, p.images * tiles_r * tiles_c, 1,
                     kTransposeThreads, TransposeTile<Word, kRows, kColumns>::kSharedBytes, stream,
                     p, TransposeTiles{make_axis(tiles_c), make_axis(tiles_r)});
}

template <class Word>
Status launch_transpose(const TransposeParams& p, Stream stream) {
  if (p.rows <= 4) return launch_transpose<Word, 4, 256>(p, stream);
  if (p.columns <= 4) return launch_transpose<Word, 256, 4>(p, stream);
  if (whole_pairs(p)) return launch_transpose_pairs(p, stream);
  return launch_transpose<Word, 32, 32>(p, stream);
}

}  // namespace fastconv::cuda
