// How the CPU kernels cut a problem: pure functions of sizes, panel width and thread count.
// The numbers: L1 32 KB holds a chunk of weights (16 KB) and the input lines of a tile; half an L2
// of 512 KB holds the slab; 192 pixels amortise streaming the weights from L3.
#pragma once
#include "jobs.h"

namespace fastconv {

static constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static constexpr int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static constexpr int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
// The largest even share of n in pieces of at most `most`.
static inline int64_t even_share(int64_t n, int64_t most) {
  return n <= 0 ? 1 : ceil_div(n, ceil_div(n, max64(most, 1)));
}

// An image of a job, and where it lies.
struct Image {
  int64_t n, i, j;  // of the tensor, and its phase
  int64_t H, W, P, Q;
};

template <class Job>
static inline Image image_of(const Job& job, int64_t n) {
  const Lattice& l = job.lattice;
  if (!l.h) return {n, 0, 0, job.H, job.W, job.P, job.Q};
  const int64_t i = n / l.w % l.h, j = n % l.w;
  auto rows = [&](int64_t all) { return ceil_div(all - i, l.h); };
  auto cols = [&](int64_t all) { return ceil_div(all - j, l.w); };
  return {n / (l.h * l.w), i, j, rows(l.H), cols(l.W), rows(l.P), cols(l.Q)};
}

// Elements from a tensor's beginning to an image's; `s`: the job's strides of it.
static inline int64_t image_at(const Lattice& l, const Image& m, const int64_t s[4]) {
  return m.n * s[0] + (l.h ? m.i * (s[2] / l.h) + m.j * (s[3] / l.w) : 0);
}

template <class Job>
static inline int64_t image_at(const Job& job, int64_t n, const int64_t s[4]) {
  return job.lattice.h ? image_at(job.lattice, image_of(job, n), s) : n * s[0];
}

constexpr int64_t kChunkBytes = 16 * 1024, kSlabBytes = 256 * 1024, kBlockPixels = 192,
                  kPlanePixels = 1024;
constexpr int64_t kBandBytes =
    16 * 1024;  // rows of a plane that a max pooling splits at once, in L1
constexpr int64_t kGradSumBytes = 512 * 1024;  // of a task of the weight gradient of a 1x1
constexpr int64_t kNearBytes = 2 << 20;        // weights that packing finds in L2, or nearly
constexpr int64_t kInPlaceTiles = 8;           // for each line of a tile's inputs
// Of a partial sum of the weight gradient: bounds its error. A batch of 16 of 7x7/2 3 -> 64 @224 on
// Zen 4: with 56 37.6 ms, 112 38.0, 224 36.5.
constexpr int64_t kSumPixels = 224;

// Few inputs beside what is written: an image's first layer.
static inline bool is_stem(const TapConv& job) { return job.C <= 4; }

static inline int64_t slab_rows(int64_t out_rows, int64_t stride, const TapAxis& taps) {
  return (out_rows - 1) * stride + (taps.count - 1) * taps.offset_step + 1;
}

// Of taps that are inside the input for some output.
static inline int64_t inside_rows(int64_t out_rows, int64_t stride, const TapAxis& taps,
                                  int64_t size) {
  return min64(slab_rows(out_rows, stride, taps), size + 2 * (out_rows - 1) * stride);
}

// Channel-last slabs where the source is channel-last, and for few channels, so that the taps of a
// row are one contiguous run; planes otherwise.
static inline bool planar_slab(int64_t channels, const int64_t strides[4]) {
  return strides[1] != 1 && channels > 8;
}

// Output rectangle of about `pixels` whose slab of all channels stays under kSlabBytes.
static inline void choose_rectangle(Blocking& b, int64_t P, int64_t Q, int64_t channels,
                                    int64_t stride_h, int64_t stride_w, const TapAxis& rows,
                                    const TapAxis& cols, int64_t element, int64_t pixels) {
  b.cols = even_share(Q, Q > 2 * pixels ? pixels : Q);
  b.rows = min64(max64(pixels / max64(b.cols, 1), 1), max64(P, 1));
  auto slab = [&](int64_t r) {
    return slab_rows(r, stride_h, rows) * slab_rows(b.cols, stride_w, cols) * channels * element;
  };
  while (b.rows > 1 && slab(b.rows) > kSlabBytes) --b.rows;
  b.rows = even_share(P, b.rows);
  b.row_blocks = ceil_div(P, b.rows);
  b.col_blocks = ceil_div(Q, b.cols);
}

// Panels of a register tile: a pair where vectors have 64 bytes (kPairs in tile.inl).
static inline int64_t tile_panels(int64_t panel, int64_t element) {
  return panel * element == 128 ? 2 : 1;
}

// Panels of a task: all of them, unless the `blocks` are too few to keep every thread busy. Those
// of a tile, `width`, stay together.
static inline int64_t task_panels(int64_t panels, int64_t blocks, int64_t threads, int64_t width) {
  if (threads == 1 || blocks >= 4 * threads) return panels;
  const int64_t wanted = ceil_div(4 * threads, max64(blocks, 1)), tiles = ceil_div(panels, width);
  return min64(even_share(tiles, ceil_div(tiles, min64(wanted, tiles))) * width, panels);
}

// Whether a tile's vectors run along a row of pixels: in any layout where output channels would
// fill half a vector; where y is planar, if transposing counts: of outputs beside a short sum, of
// inputs beside few outputs. Not where the last vector of a row would be mostly empty. A 1x1 in
// NCHW on Emerald Rapids, panels -> rows: 512 -> 144 @14 217 -> 205 us, 512 -> 128 @28 794 -> 726;
// 528 -> 256 @14 372 -> 386, 1024 -> 256 @14 732 -> 814, 1024 -> 512 @14 1418 -> 1790.
constexpr int64_t kRowInputs = 256, kRowOutputs = 160;

static inline bool along_rows(const TapConv& job, int64_t lanes, int64_t element) {
  if (job.Q == 0) return false;
  auto share = [&](int64_t of) { return (double)job.Q / (double)(ceil_div(job.Q, of) * of); };
  // A stem's inputs may be split by column phase. On Zen 4, panels -> rows: 7x7/2 3 -> 64 @224 2540
  // -> 2180 us; 11x11/4, whose rows of 55 outputs do not fill lines, 1370 -> 1470.
  if (job.stride_w != 1) return is_stem(job) && job.ys[1] != 1 && share(64 / element) > 0.87;
  const double filled = share(lanes);
  const int64_t taps = job.rows.count * job.cols.count;
  if (2 * job.K <= lanes && filled > (double)job.K / (double)lanes) return true;
  return job.ys[1] != 1 && filled > 0.85 &&
         (is_stem(job) ||
          (taps <= 1 && (job.C <= kRowInputs || job.K <= kRowOutputs) && filled > 0.9));
}

// Terms of a partial sum: with all in one, random 7x7 problems erred up to 1.5 times what is
// allowed.
constexpr int64_t kRowDepth = 256;

// Whether the weights of a 1x1 are read once where they lie (conv_dots.inl), rather than transposed
// into panels for this call, which pays for more pixels: the shorter the sums, the fewer, as the
// lanes of each are added at its end. Zen 4, panels -> dots in us: 64 -> 256 of 12 pixels 11.5 ->
// 12.7, of 16 12.1 -> 18.3; 512 -> 512 of 16 128 -> 106, of 24 165 -> 145; 9216 -> 4096 of 24
// 120000 -> 66000.
constexpr int64_t kFewPixels = 24;
constexpr int64_t kDotDepth = 1024;        // of a partial sum, over all lanes of a vector
constexpr int64_t kAxpyBytes = 16 * 1024;  // of sums along output channels, in L1

static inline bool few_pixels(const TapConv& job) {
  if (job.rows.count != 1 || job.cols.count != 1) return false;
  if (job.ws[1] != 1 && job.ws[2] != 1) return false;
  return job.N * job.P * job.Q <= (job.C <= 512 ? kFewPixels / 2 : kFewPixels);
}

// Whether weights hold couples of channels where they lie.
static inline bool couples_lie(const TapConv& job) {
  const int64_t size[5] = {job.G, job.K, 1, job.R, job.S};
  bool even = job.C % 2 == 0 && job.ws[2] == 1 && (uintptr_t)job.w % 4 == 0;
  for (int i = 0; i < 5; ++i) even &= size[i] == 1 || job.ws[i] % 2 == 0;
  return even;
}

static inline Blocking few_blocking(const TapConv& job, int64_t panel, int64_t element,
                                    int64_t threads, bool dots) {
  Blocking b = {};
  b.few = true;
  b.couples = dots && job.dtype == DType::bf16 && couples_lie(job);
  b.rows = job.P, b.cols = job.Q;
  b.row_blocks = b.col_blocks = 1;
  b.chunk = job.ws[2] == 1 ? kDotDepth : kRowDepth;
  b.chunk_blocks = ceil_div(b.couples ? job.C / 2 : job.C, b.chunk);
  const int64_t panels = ceil_div(job.K, panel);
  b.panels = task_panels(panels, job.N * job.G, threads, 1);
  if (job.ws[2] != 1)
    b.panels =
        even_share(panels, min64(b.panels, kAxpyBytes / (b.rows * b.cols * panel * element)));
  b.panel_blocks = ceil_div(panels, b.panels);
  b.tasks = job.N * job.G * b.panel_blocks;
  return b;
}

constexpr int64_t kFarEdge = 6;                // outputs of a block's row and column
constexpr int64_t kRowBytes = 384 * 1024;      // of a block's inputs and sums, in L2
constexpr int64_t kRowChunkBytes = 32 * 1024;  // inputs of a tile of one chunk

static inline Blocking row_blocking(const TapConv& job, int64_t lanes, int64_t element,
                                    int64_t threads) {
  Blocking b = {};
  b.along_rows = b.planar = true;
  const int64_t vector = lanes * element, vectors = ceil_div(job.Q, lanes);
  const int64_t most = max64(kRowBytes / ((job.C + job.K) * vector), 4);
  const int64_t width = 2 * tile_panels(2 * lanes, element);  // vectors of a tile
  b.cols = min64(even_share(ceil_div(vectors, width), most / width) * width * lanes, job.Q);
  const int64_t slab = job.C * slab_rows(b.cols, job.stride_w, job.cols) * element;
  const int64_t row = slab * job.stride_h + job.K * b.cols * element;
  const int64_t halo = slab * max64(job.rows.count - 1, 0) * job.rows.offset_step;
  b.rows = even_share(job.P, max64((kRowBytes - halo) / row, 1));
  b.row_blocks = ceil_div(job.P, b.rows), b.col_blocks = ceil_div(job.Q, b.cols);
  const int64_t window = max64(job.rows.count, 1) * min64(b.cols, 4 * lanes) * element;
  const int64_t taps = max64(job.rows.count * job.cols.count, 1);
  b.chunk = even_share(job.C, min64(max64(kRowChunkBytes / window, 8), max64(kRowDepth / taps, 4)));
  b.chunk_blocks = ceil_div(job.C, b.chunk);
  const int64_t blocks = job.N * job.G * b.row_blocks * b.col_blocks;
  b.panels = task_panels(ceil_div(job.K, kTileOperands), blocks, threads, 1);
  b.panel_blocks = ceil_div(ceil_div(job.K, kTileOperands), b.panels);
  b.tasks = blocks * b.panel_blocks;
  b.packed = job.dtype == DType::f16 || job.dtype == DType::bf16;  // widened; else read in place
  return b;
}

// A 1x1 whose sums are of one chunk goes from registers to channel-last outputs, and where they are
// not in the cache its stores hold up the sums: so each block asks for the outputs of the next, and
// is as large as L2 holds well. Zen 4, batch of 16, without -> with: 192 -> 64 @28 2.90 -> 2.76 ms,
// 128 -> 512 @28 16.8 -> 15.2, the input gradient of 192 -> 32 @28 2.40 -> 1.57, of 256 -> 64 @28
// 4.99 -> 3.90. Geometric mean of 16 such layers by size: 24 KB 1.083, 48 KB 1.097, 96 KB 1.060.
// Not with weights that small blocks would read again and again from far away: 256 -> 1024 @14, one
// image, 920 -> 953 us.
constexpr int64_t kOutputBytes = 48 * 1024, kOutputPixels = 24, kOutputWeights = 512 * 1024;

static inline bool asks_outputs(const TapConv& job, int64_t chunk, int64_t element) {
  return job.rows.count * job.cols.count == 1 && job.C <= chunk && job.ys[1] == 1 &&
         job.ys[3] == job.K && job.C * job.K * element <= kOutputWeights;
}

// Whether a bfloat16 job multiplies two channels at once, given an instruction for it: not the
// few of a stem, nor large kernels, whose weights would not be packed on the stack.
constexpr int64_t kCoupleTaps = 128;

static inline bool in_couples(const TapConv& job, bool dots) {
  return dots && job.dtype == DType::bf16 && job.C > 2 &&
         job.rows.count * job.cols.count <= kCoupleTaps;
}

// `packed`: its weights have been packed before. `dots`: there are dot products of bfloat16.
static inline Blocking conv_blocking(TapConv job, int64_t panel, int64_t element, int64_t threads,
                                     bool packed, bool dots) {
  if (!packed && few_pixels(job)) return few_blocking(job, panel, element, threads, dots);
  const bool couples = in_couples(job, dots) && 4 * job.K > panel;
  if (!couples && along_rows(job, panel / 2, element))
    return row_blocking(job, panel / 2, element, threads);
  Blocking b = {};
  const int64_t taps = max64(job.rows.count * job.cols.count, 1);
  b.planar = planar_slab(job.C, job.xs);
  b.couples = couples;
  if (b.couples) job.C = ceil_div(job.C, 2);
  // Longer chunks store sums less often: twice as long for one panel of few outputs (192 -> 32 @28
  // on Emerald Rapids 74 -> 67 us), and where a pair of panels is read from L2 anyway (1024 -> 256
  // @14 on Zen 4 955 -> 914 us).
  const bool longer = job.K <= panel || tile_panels(panel, element) == 2;
  const int64_t chunk_bytes = longer ? 2 * kChunkBytes : kChunkBytes;
  b.chunk = even_share(job.C, max64(chunk_bytes / (taps * panel * element), 4));
  // About a vector of channels or longer: whole vectors, since transposes pack them.
  const int64_t vector = panel / 2;
  if (4 * b.chunk >= 3 * vector) b.chunk = ceil_div(b.chunk, vector) * vector;
  // Stems write much beside what they compute: longer pieces of planes of y.
  int64_t pixels = is_stem(job) ? kPlanePixels : kBlockPixels;
  b.asks_outputs = asks_outputs(job, b.chunk, element);
  if (b.asks_outputs)
    pixels = max64(min64(kOutputBytes / (job.K * element), kBlockPixels), kOutputPixels);
  choose_rectangle(b, job.P, job.Q, job.C, job.stride_h, job.stride_w, job.rows, job.cols, element,
                   pixels);
  // Taps that reach far beyond the image are left out by block (BlockTaps in conv_direct.inl).
  auto far = [](const TapAxis& a, int64_t size) { return (a.count - 1) * a.offset_step >= size; };
  if (far(job.rows, job.H) || far(job.cols, job.W)) {
    b.rows = even_share(job.P, kFarEdge), b.cols = even_share(job.Q, kFarEdge);
    b.row_blocks = ceil_div(job.P, b.rows), b.col_blocks = ceil_div(job.Q, b.cols);
  }
  const int64_t blocks = job.N * job.G * b.row_blocks * b.col_blocks;
  b.panels = task_panels(ceil_div(job.K, panel), blocks, threads, tile_panels(panel, element));
  b.panel_blocks = ceil_div(ceil_div(job.K, panel), b.panels);
  b.chunk_blocks = ceil_div(job.C, b.chunk);
  b.tasks = blocks * b.panel_blocks;
  b.asks_outputs = b.asks_outputs && b.panel_blocks == 1;
  // Weights that are read once or twice are packed as they are used, and never leave the cache.
  b.packed = blocks > 2 * job.G;
  return b;
}

// A task of a TapConv: a block of outputs of an image and group, and its first panel.
struct ConvBlock {
  int64_t block, panel, n, g, p0, q0, rows, cols;
};

static inline ConvBlock conv_block(const TapConv& job, const Blocking& b, int64_t task) {
  ConvBlock t;
  t.block = task / b.panel_blocks, t.panel = task % b.panel_blocks * b.panels;
  const int64_t above = t.block / b.col_blocks, image = above / b.row_blocks;
  t.q0 = t.block % b.col_blocks * b.cols, t.p0 = above % b.row_blocks * b.rows;
  t.n = image / job.G, t.g = image % job.G;
  t.rows = min64(b.rows, job.P - t.p0), t.cols = min64(b.cols, job.Q - t.q0);
  return t;
}

// A task of the weight gradient owns (group, chunk of C, range of panels) and loops over all
// pixels in a fixed order: bitwise repeatable for any number of threads.

// Whether the weight gradient is better made with x and dy exchanged, as that of dy's channels for
// x's: its vectors run along dy's, which may be few. Zen 4, us: 5x5 32->1 @96 3370 -> 270, 9x9
// 64->3
// @96 20700 -> 2900.
static inline bool exchanges(const WeightGrad& job, int64_t lanes) {
  auto filled = [&](int64_t channels) {
    return (double)channels / (double)(ceil_div(channels, lanes) * lanes);
  };
  return job.stride_h == 1 && job.stride_w == 1 && job.rows.count * job.cols.count > 1 &&
         filled(job.C) > 2 * filled(job.K);
}

// The same gradient with x and dy exchanged: [G * C, K, R, S], its taps in reverse.
static inline WeightGrad exchanged(const WeightGrad& job) {
  WeightGrad t = job;
  auto taps = [](const TapAxis& a) -> TapAxis {
    return {a.count, 0, 1, -a.offset - (a.count - 1) * a.offset_step, a.offset_step};
  };
  t.C = job.K, t.K = job.C;
  t.H = job.P, t.W = job.Q, t.P = job.H, t.Q = job.W;
  t.rows = taps(job.rows), t.cols = taps(job.cols);
  t.x = job.dy, t.dy = job.x;
  for (int i = 0; i < 4; ++i) t.xs[i] = job.dys[i], t.dys[i] = job.xs[i];
  return t;
}

// Of one tap: a task owns a chunk of C and a range of K, whose sums stay in L2 from one block of
// pixels to the next. `width`: input channels of a tile, which a chunk keeps together.
static inline Blocking weight_grad_1x1_blocking(const WeightGrad& job, int64_t width,
                                                int64_t element, int64_t threads, bool dots) {
  Blocking b = {};
  b.along_inputs = true;
  b.couples = dots && job.dtype == DType::bf16;
  b.cols = even_share(job.Q, kSumPixels);
  b.rows = even_share(job.P, max64(kSumPixels / b.cols, 1));
  b.row_blocks = ceil_div(job.P, b.rows), b.col_blocks = ceil_div(job.Q, b.cols);
  const int64_t fitting = kGradSumBytes / (max64(job.K, 1) * element * width);
  b.chunk = even_share(ceil_div(job.C, width), fitting) * width;
  b.chunk_blocks = ceil_div(job.C, b.chunk);
  const int64_t tiles = ceil_div(job.K, kTileOperands);
  b.panels = task_panels(tiles, job.G * b.chunk_blocks, threads, 1);
  b.panel_blocks = ceil_div(tiles, b.panels);
  b.tasks = job.G * b.chunk_blocks * b.panel_blocks;
  // x is packed where that is little beside the products; else it is read where it lies, if it can
  // be. Emerald Rapids, packed -> in place: 192 -> 16 @28 51 -> 37 us, 192 -> 64 @28 139 -> 128,
  // 512 -> 144 @14 190 -> 188, 832 -> 384 @7 224 -> 232. The pixels of x lie far apart, in few sets
  // of L1, and AVX2's tiles take one line of each: in place -> packed on Zen 4 192 -> 96 @28 306 ->
  // 320, 256 -> 64 @56 1168 -> 1073, 256 -> 128 @56 2376 -> 2030.
  b.packed = tiles * 64 > kInPlaceTiles * width * element;
  return b;
}

static inline Blocking weight_grad_blocking(const WeightGrad& job, int64_t panel, int64_t element,
                                            int64_t threads, bool dots) {
  const int64_t taps = job.rows.count * job.cols.count;
  const bool inside = job.rows.offset == 0 && job.cols.offset == 0 && job.stride_h == 1 &&
                      job.stride_w == 1 && job.P <= job.H && job.Q <= job.W;
  if (taps == 1 && inside && 2 * job.C >= panel)
    return weight_grad_1x1_blocking(job, panel * tile_panels(panel, element), element, threads,
                                    dots);
  Blocking b = {};
  b.planar = planar_slab(job.C, job.xs);
  // Enough (c, r, s) that packing a panel of dy for them is small beside their products.
  b.chunk = even_share(job.C, taps == 1 ? 256 : max64(64 / max64(taps / 9, 1), 8));
  choose_rectangle(b, job.P, job.Q, b.chunk, job.stride_h, job.stride_w, job.rows, job.cols,
                   element, kSumPixels);
  b.chunk_blocks = ceil_div(job.C, b.chunk);
  const int64_t width = panel * tile_panels(panel, element);
  const int64_t tiles = ceil_div(b.chunk * taps, kTileOperands);
  b.panels = task_panels(ceil_div(job.K, panel), job.G * b.chunk_blocks, threads,
                         tile_panels(panel, element));
  b.panel_blocks = ceil_div(ceil_div(job.K, panel), b.panels);
  b.tasks = job.G * b.panel_blocks * b.chunk_blocks;
  // As beside x of a 1x1; one tile of all channels is as good as packed.
  b.packed = job.dys[3] != width && tiles * 64 > kInPlaceTiles * width * element;
  return b;
}

}  // namespace fastconv
