// Winograd on the CPU: forms, tiles and blocks, as pure functions of sizes.
//
// F(m, r) makes m outputs of r taps from m + r - 1 products instead of m * r: polynomials are
// evaluated at as many points, multiplied there, and interpolated (Winograd 1980; Lavin and Gray,
// arXiv 1509.09308). In two axes, for a tile of m x m outputs: transform the inputs to points
// (V), multiply by the transformed weights (U) and sum over channels at each point (M, a GEMM),
// transform back.
//
// Points 0, +-5/8, +-3/2 and infinity: exact in binary and close to the best conditioned. With
// 0, +-1, +-2 the error is twice as large. Four points (0, +-1, infinity) are as exact as direct.
// Eight, 0, +-1/2, +-1, +-2 and infinity, err four times as much: tiles of 6 x 6 are made only
// where the caller asks for them.
//
// Only the last output of a tile uses the last point (infinity, with stride 1). So a tile of m - 1
// outputs shares weights and transforms with the others and skips that point: 14 = 4 + 4 + 3 + 3, 7
// = 4 + 3.
#pragma once
#include "blocking.h"

// NOTE every ISA file has these members: one compiled for a wide ISA must not be the copy that the
// linker keeps, so none is ever emitted.
#define FASTCONV_MEMBER __attribute__((always_inline))

namespace fastconv {

// An axis of F(m x m', taps x taps). Of stride 2 it is split by phase: even inputs meet two taps,
// which is F(m, 2) with finite points only, and odd ones a single tap, whose m products are the
// outputs' own. These m points share one transformed weight: in two axes 81 points of 36 weights
// for 4 x 4 outputs, 25 of 16 for 2 x 2, where a direct sum takes 144 and 36 products.
//
// Its input gradient is the transposed form: m + 1 inputs make 2 m outputs of an axis, those of two
// taps by F(m, 2) and between them those of one, whose m points are inputs as they are. It has as
// many points, and the same weights: m = 2 makes 4 x 4 outputs of 25 products, directly 36. Sizes
// of tiles count pairs of outputs.
struct WinogradAxis {
  int m, taps, stride;
  bool transposed;

  FASTCONV_MEMBER int points() const { return (m - 1) * stride + taps; }
  FASTCONV_MEMBER int weights() const { return stride == 1 ? points() : m + 2; }
  FASTCONV_MEMBER int weight_of(int point) const {
    return point < weights() ? point : weights() - 1;
  }
  // Inputs of a tile, how far the next tile's are for each output, outputs of a pair.
  FASTCONV_MEMBER int inputs() const { return transposed ? m + 1 : points(); }
  FASTCONV_MEMBER int step() const { return transposed ? 1 : stride; }
  FASTCONV_MEMBER int outputs() const { return transposed ? 2 : 1; }
};

struct WinogradForm {
  WinogradAxis rows, cols;

  FASTCONV_MEMBER int points() const { return rows.points() * cols.points(); }
  FASTCONV_MEMBER int weights() const { return rows.weights() * cols.weights(); }
  FASTCONV_MEMBER int weight_of(int point) const {
    const int i = point / cols.points(), j = point % cols.points();
    return rows.weight_of(i) * cols.weights() + cols.weight_of(j);
  }
  // Whether a point is the last of its rows, of its columns.
  FASTCONV_MEMBER bool last_row(int point) const {
    return point / cols.points() == rows.points() - 1;
  }
  FASTCONV_MEMBER bool last_col(int point) const {
    return point % cols.points() == cols.points() - 1;
  }
};

// Tiles along an axis: `full` ones of m outputs, then `brief` ones of m - 1.
struct TileAxis {
  int64_t m, full, brief, outputs;

  FASTCONV_MEMBER int64_t count() const { return full + brief; }
  FASTCONV_MEMBER int64_t start(int64_t i) const { return i * m - max64(i - full, 0); }
  FASTCONV_MEMBER int64_t size(int64_t i) const {
    return min64(m - (i >= full), outputs - start(i));
  }
  // Tiles [first, first + n), from its own start on.
  FASTCONV_MEMBER TileAxis part(int64_t first, int64_t n) const {
    const int64_t whole = min64(max64(full - first, 0), n);
    const int64_t at = start(first);
    return {m, whole, n - whole, min64(start(first + n), outputs) - at};
  }
};

static inline TileAxis tile_axis(int64_t outputs, int64_t m) {
  const int64_t count = ceil_div(outputs, m), brief = min64(count * m - outputs, count);
  return {m, count - brief, brief, outputs};
}

// A block: the same rectangle of tiles of some images. Its tiles are ordered by kind, (rows,
// columns) = (full, brief), (full, full), (brief, full), (brief, brief): those that use a point
// are one range.
struct TileBlock {
  int64_t n0, images, g, p0, q0;
  TileAxis rows, cols;

  FASTCONV_MEMBER int64_t tiles() const { return images * rows.count() * cols.count(); }
  FASTCONV_MEMBER int64_t index(int64_t n, int64_t i, int64_t j) const {
    const bool brief_row = i >= rows.full, brief_col = j >= cols.full;
    int64_t first = brief_row ? images * rows.full * cols.count() : 0;
    if (brief_row && brief_col) first += images * rows.brief * cols.full;
    if (!brief_row && !brief_col) first += images * rows.full * cols.brief;
    const int64_t across = brief_col ? cols.brief : cols.full;
    const int64_t down = brief_row ? rows.brief : rows.full;
    return first + (n * down + i - (brief_row ? rows.full : 0)) * across + j -
           (brief_col ? cols.full : 0);
  }
  // The tiles that use a point: an axis' last along rows, along columns.
  FASTCONV_MEMBER int64_t begin(bool, bool last_w) const {
    return last_w ? images * rows.full * cols.brief : 0;
  }
  FASTCONV_MEMBER int64_t end(bool last_h, bool last_w) const {
    if (last_h) return images * rows.full * cols.count();
    return last_w ? tiles() - images * rows.brief * cols.brief : tiles();
  }
};

struct WinogradBlocking {
  WinogradForm form;
  TileAxis rows, cols;                   // of an image
  int64_t images, tile_rows, tile_cols;  // of a block
  int64_t image_blocks, row_blocks, col_blocks, blocks;
  int64_t chunk;                         // input channels of a sum
  int64_t chunks, panels, panel_blocks;  // panels of output channels of a task
  int64_t tasks;
  bool packed;  // weights are transformed before, else in the loop
  bool past;    // outputs are stored past the caches where they can be
  // Floats: of a vector, between points, and of the whole.
  int64_t lanes, u_point, u_chunk, v_point, m_point, a_point;
  int64_t segment, segments;  // weight gradient: blocks whose transformed operands exist at once

  FASTCONV_MEMBER int64_t most_tiles() const { return images * tile_rows * tile_cols; }
};

// Floats that fill an odd number of cache lines: the points of a tile must not share one L1 set.
static inline int64_t odd_lines(int64_t floats) { return (ceil_div(floats, 16) | 1) * 16; }

// Panels of output channels multiplied at each point before the next: a point of V, which is read
// from L2 or further away, serves both. One tile's with AVX-512, else tile after tile: of 3x3 and
// 5x5 with AVX2 on Zen 4 1.03 times as fast as one panel; four would be 1.04, but their M is 0.5
// MB.
constexpr int64_t kWinogradPanels = 2;
// Input channels of a sum. Pairs of panels of 128 are in L1, of 256 in L2: with AVX-512 on Zen 4
// all 3x3 of 128 channels and more are 1.03 times as fast with 256, 512->512 @7 1.10 times.
constexpr int64_t kWinogradChunk = 256;
constexpr int64_t kGradChannels = 64;  // of a task of the weight gradient: its sums fit L2
// Transformed operands of a segment of the weight gradient: twice the sums, which a segment reads
// and writes, but at least as many as L3 has at hand and at most as many as it has. Zen 4, 3x3
// 64->64 @56 of a batch of 16 in ms: 4 MB 12.5, 8 MB 13.3, 24 MB 15.0; 64->128 @112 5.5, -, 7.2.
constexpr int64_t kNearFloats = 1 << 20, kSegmentFloats = 6 << 20;
// Tiles of a block: of 36 points 18 to 72 are within 3 %.
constexpr int64_t kBlockTiles = 56, kBlockPoints = kBlockTiles * 36;
// Of the weight gradient, whose register tiles sum over them: in channels_last on Zen 4, a batch of
// 16, 56 and 112 against 56 and kBlockPoints: 3x3/2 64->128 @56 1.18 and 1.24, 128->256 @28 1.21
// and 1.24, 3x3 64->64 @56 0.98 and 1.04, 512->512 @7 0.99 and 1.11; 168 as 112. The longer sums
// cost a quarter more error, which 5x5 has not to spare: up to 7.3 times torch's, of 8.
constexpr int64_t kGradTiles = 112;
// What becomes of a convolution's weights: transformed on every call; transformed before, and kept;
// or it is their gradient that is summed.
enum class WinogradWeights { fresh, kept, summed };

// Below so many outputs a smaller tile, which has fewer weights: 24 or 16, not 36. Kept ones cost
// their memory only, as long as they stay in L3. Measured by bench/thresholds.py,
// bench/results/thresholds_*.json. 3x3 512->512 @7 on Zen 4, kept, in us: 2 x 2 1170, 4 x 2 980,
// 4 x 4 1360.
constexpr int64_t kWinogradPixels = 81;      // rule "winograd tile"
constexpr int64_t kMixedPixels = 49;         // rule "mixed winograd tile"
constexpr int64_t kGradPixels = 144;         // rule "winograd tile, weight gradient"
constexpr int64_t kKeptMegabytes = 14;       // rule "winograd tile, kept weights"
constexpr int64_t kMixedMegabytes = 50;      // rule "mixed winograd tile, kept weights"
constexpr int64_t kStridedPixels = 256;      // rule "strided winograd tile"
constexpr int64_t kStridedGradPixels = 400;  // rule "strided winograd tile, weight gradient"

// Outputs of a tile, down and across.
struct TileSize {
  int rows, cols;
};
constexpr TileSize kSmallTile = {2, 2}, kMixedTile = {4, 2}, kLargeTile = {4, 4},
                   kLargestTile = {6, 6};

static inline TileSize tile_size(int64_t stride, int64_t pixels, int64_t channels,
                                 WinogradWeights weights) {
  const bool summed = weights == WinogradWeights::summed, kept = weights == WinogradWeights::kept;
  const int64_t strided = summed ? kStridedGradPixels : kStridedPixels;
  if (stride == 2) return pixels < strided ? kSmallTile : kLargeTile;
  if (pixels >= (summed ? kGradPixels : kWinogradPixels)) return kLargeTile;
  const int64_t bytes = kept ? channels * 36 * 4 : 0;
  if (kept && bytes < kKeptMegabytes << 20) return kLargeTile;
  const bool mixed = !summed && pixels >= kMixedPixels && bytes < kMixedMegabytes << 20;
  return mixed ? kMixedTile : kSmallTile;
}

// Whether tiles of 6 x 6 outputs take enough fewer products than those of 4 x 4 on a map of P x Q.
// Zen 4, channel-last 3x3, times as fast by % of the products: 64->64 @224 1.12 (80 %), 128->128
// @28 1.16 (82), 256->256 @28 1.15 (82), @14 0.97 (91). That is with weights in L3; in a whole
// network 64 matrices of them come from memory, and with 400 outputs as the least ResNet-18 and
// GoogLeNet were 0.97 times as fast, VGG 16 1.00; with 3,000 they were 0.99, 0.97 and 1.02, in
// training 1.0, 1.03 and 1.01 to 1.12.
constexpr int64_t kLargestPercent = 87, kLargestPixels = 3000;

static inline bool pays_largest(int64_t images, int64_t P, int64_t Q) {
  auto products = [](int64_t outputs, int64_t m) {
    const TileAxis tiles = tile_axis(outputs, m);
    return tiles.full * (m + 2) + tiles.brief * (m + 1);
  };
  return images * P * Q >= kLargestPixels &&
         100 * products(P, 6) * products(Q, 6) <= kLargestPercent * products(P, 4) * products(Q, 4);
}

// What was asked for: a tile (of no rows: by the rules above), and whether 6 x 6 outputs may be.
struct TileWish {
  TileSize tile;
  bool largest;
};

// `channels`: of inputs times those of outputs. `tile`: where several would do; of no rows: by
// those rules.
static inline WinogradForm winograd_form(int64_t taps, int64_t stride, int64_t pixels,
                                         int64_t channels, WinogradWeights weights, bool transposed,
                                         TileSize tile) {
  // With m = 4 it was 0.83 as fast at 256 -> 512 @14, 0.85 at 128 -> 256 @28 (batch 16), 1.05 at
  // 64 -> 128 @56, where its blocks were twice as large.
  if (transposed) return {{2, 3, 2, true}, {2, 3, 2, true}};
  if (taps == 5) return {{2, 5, 1, false}, {2, 5, 1, false}};
  if (taps == 4) return {{3, 4, 1, false}, {3, 4, 1, false}};
  const bool given = tile.rows && (stride == 1 || (tile.rows == tile.cols && tile.rows < 6));
  const TileSize size = given ? tile : tile_size(stride, pixels, channels, weights);
  return {{size.rows, 3, (int)stride, false}, {size.cols, 3, (int)stride, false}};
}

// Outputs beyond which whole vectors are stored past the caches: a line of each pixel at a time,
// they wait for lines that nobody has asked for. But what L3 has at hand the next layer reads from
// there. Zen 4, channels_last: 64->64 @224 12.8 -> 11.9 ms, 64->128 @112 of a batch of 16 95.8
// -> 92.5, VGG 16 of it 1480 -> 1420; with results of 12.8 MB too ResNet-18 of it 253 -> 261.
constexpr int64_t kPastFloats = 4 << 20;

// What forward and weight gradient cut alike.
template <class Job>
static inline WinogradBlocking tile_blocking(const Job& job, int64_t taps, bool transposed,
                                             int64_t panel, WinogradWeights weights,
                                             TileWish wish) {
  const int64_t P = transposed ? ceil_div(job.P, 2) : job.P;
  const int64_t Q = transposed ? ceil_div(job.Q, 2) : job.Q;
  WinogradBlocking b = {};
  const bool largest = wish.largest && job.stride_h == 1 && pays_largest(job.N, P, Q);
  b.form = winograd_form(taps, job.stride_h, job.N * P * Q, job.G * job.K * job.C, weights,
                         transposed, largest ? kLargestTile : wish.tile);
  b.rows = tile_axis(P, b.form.rows.m), b.cols = tile_axis(Q, b.form.cols.m);
  const bool summed = weights == WinogradWeights::summed;
  const int64_t tiles =
      summed && taps == 3 ? kGradTiles : min64(kBlockTiles, kBlockPoints / b.form.points());
  b.tile_cols = even_share(b.cols.count(), tiles);
  b.tile_rows = even_share(b.rows.count(), tiles / b.tile_cols);
  const int64_t image = b.rows.count() * b.cols.count();
  b.images = even_share(job.N, tiles / min64(image, tiles));
  b.image_blocks = ceil_div(job.N, b.images);
  b.row_blocks = ceil_div(b.rows.count(), b.tile_rows);
  b.col_blocks = ceil_div(b.cols.count(), b.tile_cols);
  b.blocks = b.image_blocks * job.G * b.row_blocks * b.col_blocks;
  b.lanes = panel / 2;
  b.v_point = odd_lines(ceil_div(job.C, b.lanes) * b.lanes * b.most_tiles());
  return b;
}

static inline WinogradBlocking winograd_blocking(const TapConv& job, int64_t panel, int64_t threads,
                                                 bool kept, TileWish wish) {
  WinogradBlocking b = tile_blocking(job, job.R, job.transposed, panel,
                                     kept ? WinogradWeights::kept : WinogradWeights::fresh, wish);
  b.chunk = even_share(job.C, kWinogradChunk);
  b.chunk = min64(ceil_div(b.chunk, b.lanes) * b.lanes, ceil_div(job.C, b.lanes) * b.lanes);
  b.chunks = ceil_div(job.C, b.chunk);
  b.panels = task_panels(ceil_div(job.K, panel), b.blocks, threads, tile_panels(panel, 4));
  b.panel_blocks = ceil_div(ceil_div(job.K, panel), b.panels);
  b.tasks = b.blocks * b.panel_blocks;
  b.packed = b.blocks > 2 * job.G;
  b.past = job.N * job.G * job.K * job.P * job.Q > kPastFloats;
  b.u_point = odd_lines(b.chunk * panel);
  b.u_chunk = b.form.weights() * b.u_point;
  b.m_point = odd_lines(panel * b.most_tiles());
  return b;
}

static inline WinogradBlocking winograd_grad_blocking(const WeightGrad& job, int64_t panel,
                                                      int64_t threads, TileWish wish) {
  WinogradBlocking b =
      tile_blocking(job, job.rows.count, false, panel, WinogradWeights::summed, wish);
  b.chunk = even_share(job.C, kGradChannels);
  b.chunks = ceil_div(job.C, b.chunk);
  b.a_point = odd_lines(panel * b.most_tiles());
  b.m_point = odd_lines(panel * b.chunk);
  const int64_t panels = ceil_div(job.K, panel);
  const int64_t block = b.form.points() * (b.v_point + panels * b.a_point);
  // Of at most thrice the sums all are one segment, which writes none.
  const int64_t sums = b.form.weights() * job.G * job.K * job.C, all = b.blocks * block;
  const int64_t most = max64(all <= 3 * sums ? all : 2 * sums, kNearFloats);
  b.segment = even_share(b.blocks, max64(min64(most, kSegmentFloats) / block, 1));
  b.segments = ceil_div(b.blocks, b.segment);
  b.panels =
      min64(task_panels(panels, job.G * b.chunks, threads, tile_panels(panel, 4)), kWinogradPanels);
  b.panel_blocks = ceil_div(panels, b.panels);
  b.tasks = job.G * b.panel_blocks * b.chunks;
  return b;
}

// Pixels of the slab of inputs of a block.
static inline int64_t winograd_slab(const WinogradBlocking& b) {
  auto pixels = [](int64_t tiles, const WinogradAxis& axis) {
    return tiles * axis.m * axis.step() + axis.taps;
  };
  return pixels(b.tile_rows, b.form.rows) * pixels(b.tile_cols, b.form.cols);
}

template <class Job>
static inline TileBlock tile_block(const Job& job, const WinogradBlocking& b, int64_t block) {
  const int64_t col = block % b.col_blocks, above = block / b.col_blocks;
  const int64_t row = above % b.row_blocks, image = above / b.row_blocks;
  // Of a size, or one less: threads get as much, where a last one of what is left would be small.
  auto from = [](int64_t at, int64_t blocks, const TileAxis& axis) {
    return axis.count() * at / blocks;
  };
  const int64_t i = from(row, b.row_blocks, b.rows), j = from(col, b.col_blocks, b.cols);
  TileBlock t = {};
  t.g = image % job.G;
  t.n0 = image / job.G * b.images, t.images = min64(b.images, job.N - t.n0);
  t.p0 = b.rows.start(i), t.q0 = b.cols.start(j);
  t.rows = b.rows.part(i, from(row + 1, b.row_blocks, b.rows) - i);
  t.cols = b.cols.part(j, from(col + 1, b.col_blocks, b.cols) - j);
  return t;
}

}  // namespace fastconv
