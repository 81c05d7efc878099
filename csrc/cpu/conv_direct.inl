// Direct convolution (forward, and one stride phase of the input gradient), any TapConv.
//
//   for each block of outputs: slab of x | for each panel of K: for each chunk of C: for each tile
//   of six pixels: all taps of the chunk | epilogue and store
// The one trick: pixels are addresses, so tiles cross rows, and weights of a chunk stay in L1.
// 1x1 convolution is this with one tap, after conv.cpp has folded the image into one row.
namespace fastconv::FASTCONV_NS {

// M: the arithmetic, Couple or that of S; of couples a chunk and its runs count two channels as
// one.
template <class M>
inline int64_t depth(const TapConv& job) {
  return ceil_div(job.C, kNumbers<M>);
}

template <class M>
inline int64_t conv_packed_size(const TapConv& job) {
  constexpr int L = kPanel<Data<M>>;
  return job.G * ceil_div(job.K, L) * L * depth<M>(job) * job.rows.count * job.cols.count;
}

// Packs (group, panel) pairs [begin, end): chunks of C in turn.
template <class S, class M = Compute<S>>
inline void conv_pack(const TapConv& job, const Blocking& b, void* packed, int64_t begin,
                      int64_t end) {
  typedef Compute<S> T;
  const int64_t panels = ceil_div(job.K, kPanel<T>), C = depth<M>(job);
  const int64_t size = conv_packed_size<M>(job) / (job.G * panels);
  const int64_t taps = job.rows.count * job.cols.count;
  for (int64_t i = begin; i < end; ++i)
    for (int64_t c0 = 0; c0 < C; c0 += b.chunk)
      pack_operands<S, M>(job, {i / panels, i % panels, c0, min64(b.chunk, C - c0)},
                          (T*)packed + i * size + c0 * taps * kPanel<T>);
}

struct ConvScratch {
  int64_t slab, acc, runs, weights, total;  // byte offsets
};

inline int64_t align64(int64_t bytes) { return (bytes + 63) / 64 * 64; }

template <class M>
inline ConvScratch conv_scratch(const TapConv& job, const Blocking& b) {
  typedef Data<M> T;
  ConvScratch s;
  const int64_t rows = max64(inside_rows(b.rows, job.stride_h, job.rows, job.H), 1);
  const int64_t cols = max64(inside_rows(b.cols, job.stride_w, job.cols, job.W), 1);
  s.slab = 0;
  s.acc = align64(slab_elements(depth<M>(job), rows, cols, sizeof(T)) * sizeof(T));
  const int64_t panels = kPairs ? 2 : 1;  // of a tile
  s.runs = s.acc + align64(panels * b.rows * b.cols * kPanel<T> * sizeof(T));
  const int64_t taps = job.rows.count * job.cols.count;
  s.weights = s.runs + align64(max64(taps, 1) * sizeof(Run));
  s.total = s.weights + align64(panels * b.chunk * taps * kPanel<T> * sizeof(T));
  return s;
}

// The taps of an axis that some of `count` outputs from `first` on read inside [0, size). A large
// dilation reaches far beyond an image.
struct InsideTaps {
  int64_t first, count;

  static InsideTaps make(const TapAxis& axis, int64_t first, int64_t count, int64_t stride,
                         int64_t size) {
    const int64_t low = first * stride + axis.offset, high = low + (count - 1) * stride;
    int64_t i = 0, end = axis.count;
    while (i < end && high + i * axis.offset_step < 0) ++i;
    while (end > i && low + (end - 1) * axis.offset_step >= size) --end;
    return {i, end - i};
  }
  TapAxis of(const TapAxis& axis) const {
    return {count, axis.index + first * axis.index_step, axis.index_step,
            axis.offset + first * axis.offset_step, axis.offset_step};
  }
};

// The taps of a block, of which the slab holds what they read.
struct BlockTaps {
  InsideTaps rows, cols;

  static BlockTaps make(const TapConv& job, const ConvBlock& at) {
    return {InsideTaps::make(job.rows, at.p0, at.rows, job.stride_h, job.H),
            InsideTaps::make(job.cols, at.q0, at.cols, job.stride_w, job.W)};
  }
  static BlockTaps all(const TapConv& job) { return {{0, job.rows.count}, {0, job.cols.count}}; }
};

// The reduction over one chunk as runs; taps that continue each other in the slab are one run.
template <class T>
inline int64_t make_runs(const TapConv& job, const BlockTaps& taps, const Slab<T>& slab, int64_t c0,
                         int64_t cn, Run* runs) {
  const int64_t tap = cn * kPanel<T>;
  int64_t n = 0, read = 0;  // taps whose weights lie before
  for (int64_t i = 0; i < taps.rows.count; ++i)
    for (int64_t j = 0; j < taps.cols.count; ++j, ++read) {
      const int64_t offset =
          i * job.rows.offset_step * slab.h + j * job.cols.offset_step * slab.w + c0 * slab.c;
      const int64_t at = (taps.rows.first + i) * job.cols.count + taps.cols.first + j;
      if (n && at == read && runs[n - 1].offset + runs[n - 1].count * slab.c == offset)
        runs[n - 1].count += cn;
      else
        runs[n++] = {offset, slab.c, cn, (at - read) * tap};
      read = at;
    }
  return n;
}

inline int64_t products(const Run* runs, int64_t run_count) {
  int64_t n = 0;
  for (int64_t i = 0; i < run_count; ++i) n += runs[i].count;
  return n;
}

// The inputs of the next tile, asked for evenly by the products of this one. By whole lines would
// be too many for L1: 1x1 256->128 @56 with AVX2 on Zen 4 1914 -> 1860 us.
template <class T>
inline Lines next_inputs(const T* at, int64_t elements, int64_t count) {
  return {(const char*)at, elements * (int64_t)sizeof(T) / max64(count, 1)};
}

// Accumulates one chunk into all pixels of a block.
template <class M, class T>
inline void accumulate_block(const TapConv& job, const Slab<T>& slab, int64_t rows, int64_t cols,
                             const Run* runs, int64_t run_count, TilePanels<T> to, bool accumulate,
                             Ahead ahead = {}) {
  const int64_t pixels = rows * cols, tiles = ceil_div(pixels, kTile);
  const int64_t row_step = job.stride_h * slab.h, col_step = job.stride_w * slab.w;
  const int64_t count = products(runs, run_count);
  ahead.spread(tiles * count, to.vectors);
  const T* x[kTile];
  int64_t m = 0, i = 0, j = 0;
  uint32_t ran = 0;
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t end = pixels * (t + 1) / tiles;
    const int J = (int)(end - m);
    for (int k = 0; k < J; ++k) {
      x[k] = slab.data + i * row_step + j * col_step;
      if (++j == cols) j = 0, ++i;
    }
    to.ahead = ahead.take(count);
    if (!to.ahead.step && slab.c == 1)  // the pixels of the next tile
      to.ahead = next_inputs(slab.data + i * row_step + j * col_step, kTile * col_step, count);
    fma_tile<M>(J, x, runs, run_count, to, m * kPanel<T>, accumulate);
    ran |= 1u << (J - 1);
    m = end;
  }
  mark_tiles<T>(ran, kTilesOf<M>, to.vectors);
}

// Whether a tile's outputs may go from registers to y: sums of one chunk, rows of whole vectors.
template <class S>
inline bool stores_tiles(const TapConv& job, const Blocking& b, int64_t lanes, int64_t cols) {
  return b.chunk_blocks == 1 && cols >= 4 * kTile && lanes % kW<Compute<S>> == 0 &&
         job.ys[1] == 1 && !job.residual && job.activation != Activation::sigmoid;
}

template <class S, class M, int V>
inline void store_tiles(const TapConv& job, const Slab<Compute<S>>& slab, int64_t rows,
                        int64_t cols, const Run* runs, int64_t run_count,
                        const TilePanels<Compute<S>>& panels, const PanelStore<S>* to, int64_t p0,
                        int64_t q0, Ahead& outputs) {
  typedef Compute<S> T;
  constexpr int L = kPanel<T>, kLanes = V * kW<T>;
  const int64_t step = job.stride_w * slab.w;
  T bias[kLanes], acc[panels_of(V) * kTile * L];
  const TilePanels<T> rest = {V, panels.w, panels.next_w, acc, kTile * L};
  TilePanels<T> tile = panels;
  for (int k = 0; k < kLanes; ++k) bias[k] = to->bias ? widen(to->bias[k * to->bias_s]) : T(0);
  const int64_t count = products(runs, run_count);
  uint32_t ran = 0;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < cols; j += kTile) {
      const T* x[kTile];
      const int n = (int)min64(kTile, cols - j);
      for (int k = 0; k < n; ++k) x[k] = slab.data + i * job.stride_h * slab.h + (j + k) * step;
      S* y = to->y + (p0 + i) * to->y_p + (q0 + j) * to->y_q;
      ran |= 1u << (n - 1);
      // Else the next tile's outputs, where they are more than its inputs.
      tile.ahead = outputs.take(count);
      if (!tile.ahead.step && is_stem(job))
        tile.ahead = {(const char*)(y + kTile * to->y_q), kLine};
      else if (!tile.ahead.step && slab.c == 1)
        tile.ahead = next_inputs(x[0] + kTile * step, kTile * step, count);
      if (n < kTile) {
        fma_operands<M, V, false>(n, x, runs, run_count, rest, 0, false);
        for (int k = 0; k < panels_of(V); ++k)
          store_panel<S>(to[k], acc + k * kTile * L, p0 + i, q0 + j, 1, n);
      } else if (to->activation == Activation::relu) {
        tile_to_channels<M, V, Activation::relu, S>(x, runs, run_count, tile, bias, y, to->y_q);
      } else {
        tile_to_channels<M, V, Activation::none, S>(x, runs, run_count, tile, bias, y, to->y_q);
      }
    }
  mark_tiles<T>(ran, kTilesOf<M>, V);
}

// What a block reads of x: where it lies if it can be, else a copy in `scratch`.
template <class S, class M = Compute<S>>
inline Slab<Compute<S>> block_slab(const TapConv& job, const Blocking& b, const ConvBlock& at,
                                   const BlockTaps& taps, Compute<S>* scratch, const S* x_end) {
  typedef Compute<S> T;
  const TapAxis down = taps.rows.of(job.rows), across = taps.cols.of(job.cols);
  const int64_t rows = slab_rows(at.rows, job.stride_h, down);
  const int64_t cols = slab_rows(at.cols, job.stride_w, across);
  const int64_t row0 = at.p0 * job.stride_h + down.offset;
  const int64_t col0 = at.q0 * job.stride_w + across.offset;
  const S* x = (const S*)job.x + at.n * job.xs[0] + at.g * job.C * job.xs[1];
  const bool inside = row0 >= 0 && row0 + rows <= job.H && col0 >= 0 && col0 + cols <= job.W;
  constexpr int kEach = kNumbers<M>;
  if (inside && lies_as<S, M>(x, job.C, job.xs))
    return {(T*)(x + row0 * job.xs[2] + col0 * job.xs[3]), 1, job.xs[2] / kEach, job.xs[3] / kEach};
  const Slab<T> slab = make_slab(scratch, depth<M>(job), rows, cols, b.planar);
  // Of taps so far apart that no pixel is another's, only what they read.
  const int64_t each_h = slab_rows(at.rows, job.stride_h, {1}),
                each_w = slab_rows(at.cols, job.stride_w, {1});
  if (down.offset_step < each_h || across.offset_step < each_w) {
    fill_operands<S, M>(slab, x, job.xs, job.C, job.H, job.W, row0, rows, col0, cols, x_end);
    return slab;
  }
  for (int64_t i = 0; i < down.count; ++i)
    for (int64_t j = 0; j < across.count; ++j) {
      const int64_t h = i * down.offset_step, w = j * across.offset_step;
      const Slab<T> part = {slab.data + h * slab.h + w * slab.w, slab.c, slab.h, slab.w};
      fill_operands<S, M>(part, x, job.xs, job.C, job.H, job.W, row0 + h, each_h, col0 + w, each_w,
                          x_end);
    }
  return slab;
}

// What the tiles of a block ask for of the next one's outputs.
template <class S, class M>
inline Ahead next_outputs(const TapConv& job, const Blocking& b, const ConvBlock& at) {
  Ahead ahead = {};
  if (!b.asks_outputs) return ahead;
  const int64_t size = at.rows * at.cols * job.ys[3];
  const S* y = (const S*)job.y + at.n * job.ys[0] + at.p0 * job.ys[2] + at.q0 * job.ys[3];
  ahead.add(y + size, size * (int64_t)sizeof(S));
  const int64_t tiles = at.rows * ceil_div(at.cols, kTile);
  ahead.spread(tiles * ceil_div(job.K, (kPairs ? 2 : 1) * kPanel<Compute<S>>) * depth<M>(job),
               tile_vectors<Compute<S>>(job.K));
  return ahead;
}

// A task: (image, group, row block, column block, range of panels), panels fastest, so that
// consecutive tasks of a thread share a slab.
template <class S, class M = Compute<S>>
inline void conv_run(const TapConv& job, const Blocking& b, const void* packed, void* scratch,
                     int64_t begin, int64_t end) {
  typedef Compute<S> T;
  constexpr int L = kPanel<T>;
  const ConvScratch at = conv_scratch<M>(job, b);
  T* acc = (T*)((char*)scratch + at.acc);
  Run* runs = (Run*)((char*)scratch + at.runs);
  T* weights = (T*)((char*)scratch + at.weights);  // of a chunk, where they were not packed before
  const int64_t panels = ceil_div(job.K, L), taps = job.rows.count * job.cols.count;
  const int64_t C = depth<M>(job);
  const S* x_end = input_end<S>(job);
  Slab<T> slab = {};
  BlockTaps inside = {};
  int64_t filled = -1;
  for (int64_t task = begin; task < end; ++task) {
    const ConvBlock at_block = conv_block(job, b, task);
    const auto [block, first, n, g, p0, q0, rows, cols] = at_block;
    if (rows <= 0 || cols <= 0) continue;
    if (block != filled) {
      inside = BlockTaps::make(job, at_block);
      if (inside.rows.count && inside.cols.count)
        slab = block_slab<S, M>(job, b, at_block, inside, (T*)scratch, x_end);
      filled = block;
    }
    const int64_t last = min64(first + b.panels, panels), panel_size = taps * C * L;
    Ahead outputs = next_outputs<S, M>(job, b, at_block);
    for (int64_t panel = first, next; panel < last; panel = next) {
      const int64_t lanes = min64(job.K, last * L) - panel * L;
      const int vectors = tile_vectors<T>(lanes);
      next = panel + panels_of(vectors);
      const PanelStore<S> to[2] = {panel_store<S>(job, n, g, panel),
                                   panel_store<S>(job, n, g, next - 1)};
      const bool in_tiles = stores_tiles<S>(job, b, min64(lanes, (next - panel) * L), cols);
      TilePanels<T> tile = {vectors, (const T*)packed + (g * panels + panel) * panel_size,
                            panel_size, acc, rows * cols * L};
      for (int64_t c0 = 0; c0 < C; c0 += b.chunk) {
        const int64_t cn = min64(b.chunk, C - c0), size = taps * cn * L;
        const int64_t run_count = make_runs(job, inside, slab, c0, cn, runs);
        if (!packed) {
          tile.w = weights, tile.next_w = size;
          for (int64_t i = panel; i < next; ++i)
            pack_operands<S, M>(job, {g, i, c0, cn}, weights + (i - panel) * size);
        }
        Ahead ahead = {};
        if (packed && c0 + cn < C) {
          const int64_t bytes = min64(b.chunk, C - c0 - cn) * taps * L * (int64_t)sizeof(T);
          for (int64_t i = 0; i < next - panel; ++i)
            ahead.add(tile.w + i * panel_size + size, bytes);
        } else if (packed && next < last) {
          const int64_t bytes = min64(b.chunk, C) * taps * L * (int64_t)sizeof(T);
          for (int64_t i = next; i < min64(next + 2, last); ++i)
            ahead.add((const T*)packed + (g * panels + i) * panel_size, bytes);
        }
        if (!in_tiles)
          accumulate_block<M>(job, slab, rows, cols, runs, run_count, tile, c0 > 0, ahead);
        else if (vectors == 1)
          store_tiles<S, M, 1>(job, slab, rows, cols, runs, run_count, tile, to, p0, q0, outputs);
        else if (vectors == 2)
          store_tiles<S, M, 2>(job, slab, rows, cols, runs, run_count, tile, to, p0, q0, outputs);
        else if (kPairs && vectors == 3)
          store_tiles<S, M, kPairs ? 3 : 2>(job, slab, rows, cols, runs, run_count, tile, to, p0,
                                            q0, outputs);
        else if constexpr (kPairs)
          store_tiles<S, M, 4>(job, slab, rows, cols, runs, run_count, tile, to, p0, q0, outputs);
        tile.w += size;
      }
      if (!in_tiles)
        for (int64_t i = panel; i < next; ++i)
          store_panel<S>(to[i - panel], acc + (i - panel) * tile.next_acc, p0, q0, rows, cols);
    }
  }
}

}  // namespace fastconv::FASTCONV_NS
