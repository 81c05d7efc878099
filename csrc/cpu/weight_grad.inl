// Weight gradient, dense: dw[k, c, r, s] = sum over n, p, q of dy[n, k, p, q] * x[n, c, p', q'].
//
// The register tile of the forward kernel with the roles moved: its six operands are (c, r, s)
// triples of a slab of x, its vectors are dy packed [pixel][kPanel] or where it lies, its runs are
// output rows. What comes next of dy is asked for: a batch of 16 of 3 -> 64 @224 on Zen 4 47 -> 29
// ms in channels_last, 60 -> 43 in NCHW.
// Each block of pixels is summed from zero and then added, and long sums are of sums of kSumBlocks
// blocks, which keeps float32 error small: a 1x1 over 2 million pixels 3.5e-6 -> 3.4e-7. The order
// never depends on the number of threads.
namespace fastconv::FASTCONV_NS {

constexpr int64_t kSumBlocks = 64;

inline int64_t pixel_blocks(const WeightGrad& job, const Blocking& b) {
  return job.N * b.row_blocks * b.col_blocks;
}

struct WeightGradScratch {
  int64_t slab, dy, sums, totals, bias, offsets, runs, total;  // byte offsets
};

template <class T>
inline WeightGradScratch weight_grad_scratch(const WeightGrad& job, const Blocking& b) {
  WeightGradScratch s;
  const int64_t taps = job.rows.count * job.cols.count, entries = taps * b.chunk;
  s.slab = 0;
  s.dy = align64(slab_elements(b.chunk, slab_rows(b.rows, job.stride_h, job.rows),
                               slab_rows(b.cols, job.stride_w, job.cols), sizeof(T)) *
                 sizeof(T));
  const int64_t panels = kPairs ? 2 : 1;  // of a tile
  s.sums = s.dy + align64(panels * b.rows * b.cols * kPanel<T> * sizeof(T));
  const int64_t sums = align64(b.panels * entries * kPanel<T> * sizeof(T));
  s.totals = s.sums + sums;
  s.bias = s.totals + (pixel_blocks(job, b) > kSumBlocks ? sums : 0);
  s.offsets = s.bias + align64(b.panels * kPanel<T> * sizeof(double));
  s.runs = s.offsets + align64(entries * sizeof(int64_t));
  s.total = s.runs + align64(b.rows * sizeof(Run));
  return s;
}

// Slab offset of each (c, r, s) of a chunk, in the order the slab is contiguous in.
template <class T>
inline void entry_offsets(const WeightGrad& job, const Slab<T>& slab, int64_t cn,
                          int64_t* offsets) {
  for (int64_t c = 0; c < cn; ++c)
    for (int64_t r = 0; r < job.rows.count; ++r)
      for (int64_t s = 0; s < job.cols.count; ++s) {
        const int64_t tap = r * job.cols.count + s;
        const int64_t entry =
            slab.c == 1 ? tap * cn + c : c * job.rows.count * job.cols.count + tap;
        offsets[entry] =
            c * slab.c + r * job.rows.offset_step * slab.h + s * job.cols.offset_step * slab.w;
      }
}

// Sums [entry][kPanel] += the block's products; `to` holds dy and the sums of its panels.
template <class T>
inline void add_block(const Slab<T>& slab, const int64_t* offsets, int64_t entries, const Run* runs,
                      int64_t rows, TilePanels<T> to, Ahead& ahead) {
  constexpr int L = kPanel<T>;
  const int64_t tiles = ceil_div(entries, kTile), count = products(runs, rows);
  const T* x[kTile];
  int64_t e = 0;
  uint32_t ran = 0;
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t end = entries * (t + 1) / tiles;
    const int J = (int)(end - e);
    for (int j = 0; j < J; ++j) x[j] = slab.data + offsets[e + j];
    to.ahead = ahead.take(count);
    if (to.step_w)
      fma_tile<T, true>(J, x, runs, rows, to, e * L, true);
    else
      fma_tile<T>(J, x, runs, rows, to, e * L, true);
    ran |= 1u << (J - 1);
    e = end;
  }
  mark_tiles<T>(ran, Tiles::weight_grad, to.vectors);
}

// sums [entry][kPanel] to dw, which is dense KCRS: a row of dw is contiguous over (c, r, s). Rows
// are asked for ahead: 3x3 512->512 @7 on Zen 4 2.5 -> 2.2 ms, 384->1000 @5 3.5 -> 2.5.
template <class S>
inline void write_weight_grad(const WeightGrad& job, int64_t g, int64_t k0, int64_t lanes,
                              int64_t c0, int64_t cn, bool channel_last, const Compute<S>* sums) {
  typedef Compute<S> T;
  constexpr int W = kW<T>, L = kPanel<T>;
  const int64_t taps = job.rows.count * job.cols.count, entries = cn * taps;
  S* dw = (S*)job.dw + ((g * job.K + k0) * job.C + c0) * taps;
  for (int64_t e = 0; e < entries; e += W)
    for (int half = 0; half < L && half < lanes; half += W) {
      Vec<T> rows[W];
      for (int64_t i = 0; i < W; ++i) {
        const int64_t from = min64(e + i, entries - 1);
        const int64_t entry = channel_last ? from % taps * cn + from / taps : from;
        rows[i] = load<T>(sums + entry * L + half);
      }
      transpose<T>(rows);
#pragma GCC unroll 16
      for (int k = 0; k < W; ++k) {
        if (half + k >= lanes) break;
        S* to = dw + (half + k) * job.C * taps + e;
        __builtin_prefetch(to + 4 * W, 1, 2);
        store_lanes<S>(to, rows[k], min64(W, entries - e), 1);
      }
    }
}

template <class S>
inline void weight_grad_run(const WeightGrad& job, const Blocking& b, void* scratch, int64_t begin,
                            int64_t end) {
  typedef Compute<S> T;
  constexpr int L = kPanel<T>;
  const WeightGradScratch at = weight_grad_scratch<T>(job, b);
  T* dy = (T*)((char*)scratch + at.dy);
  T* sums = (T*)((char*)scratch + at.sums);
  double* bias = (double*)((char*)scratch + at.bias);
  int64_t* offsets = (int64_t*)((char*)scratch + at.offsets);
  Run* runs = (Run*)((char*)scratch + at.runs);
  const int64_t dy_size[4] = {job.N, job.G * job.K, job.P, job.Q};
  const S* dy_end = end_of<S>(job.dy, dy_size, job.dys, 4);
  const S* x_end = input_end<S>(job);
  const int64_t panels = ceil_div(job.K, L), taps = job.rows.count * job.cols.count;
  const bool lies = !b.packed && sizeof(S) == sizeof(T) && job.dys[1] == 1;  // or may
  const int64_t blocks = pixel_blocks(job, b);
  T* totals = blocks > kSumBlocks ? (T*)((char*)scratch + at.totals) : sums;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t c0 = task % b.chunk_blocks * b.chunk, above = task / b.chunk_blocks;
    const int64_t first = above % b.panel_blocks * b.panels, g = above / b.panel_blocks;
    const int64_t cn = min64(b.chunk, job.C - c0), last = min64(first + b.panels, panels);
    if (cn <= 0 || first >= last) continue;
    const int64_t entries = cn * taps, sum_count = (last - first) * entries * L;
    const int64_t biases = job.db && c0 == 0 ? min64(job.K, last * L) - first * L : 0;
    zero(totals, sum_count);
    zero(bias, biases);
    for (int64_t block = 0; block < blocks; ++block) {
      if (block % kSumBlocks == 0) zero(sums, sum_count);
      const int64_t q0 = block % b.col_blocks * b.cols;
      const int64_t p0 = block / b.col_blocks % b.row_blocks * b.rows;
      const int64_t n = block / b.col_blocks / b.row_blocks;
      const int64_t rows = min64(b.rows, job.P - p0), cols = min64(b.cols, job.Q - q0);
      const int64_t slab_h = slab_rows(rows, job.stride_h, job.rows);
      const int64_t slab_w = slab_rows(cols, job.stride_w, job.cols);
      const Slab<T> slab = make_slab((T*)scratch, cn, slab_h, slab_w, b.planar);
      fill_slab<S>(slab, (const S*)job.x + n * job.xs[0] + (g * job.C + c0) * job.xs[1], job.xs, cn,
                   job.H, job.W, p0 * job.stride_h + job.rows.offset, slab_h,
                   q0 * job.stride_w + job.cols.offset, slab_w, x_end);
      entry_offsets(job, slab, cn, offsets);
      for (int64_t i = 0; i < rows; ++i)
        runs[i] = {i * job.stride_h * slab.h, job.stride_w * slab.w, cols};
      const S* from = (const S*)job.dy + n * job.dys[0] + g * job.K * job.dys[1] + p0 * job.dys[2] +
                      q0 * job.dys[3];
      const int64_t pixels = rows * cols, dy_panel = pixels * L;
      const bool continuing = rows == 1 || job.dys[2] == cols * job.dys[3];
      Ahead ahead = {};  // the next block's dy
      if (lies && job.dys[3] == job.K)
        ahead.add(from + pixels * job.K, pixels * job.K * (int64_t)sizeof(S));
      ahead.spread(pixels * ceil_div(entries, kTile), tile_vectors<T>(job.K));
      for (int64_t panel = first, next; panel < last; panel = next) {
        const int64_t lanes = min64(job.K, last * L) - panel * L;
        const int vectors = tile_vectors<T>(lanes);
        next = panel + panels_of(vectors);
        // Whole vectors of channels that follow each other are read where they lie.
        const bool in_place = lies && continuing && vectors > 1 && lanes >= vectors * kW<T>;
        for (int64_t i = panel; i < next && !in_place; ++i)
          pack_pixels<S>(dy + (i - panel) * dy_panel, from + i * L * job.dys[1], job.dys, rows,
                         cols, min64(L, job.K - i * L), dy_end, job.dys[3] == 1 ? pixels : 0);
        TilePanels<T> to = {vectors, dy, dy_panel, sums + (panel - first) * entries * L,
                            entries * L};
        if (in_place) to.w = (const T*)from + panel * L, to.next_w = L, to.step_w = job.dys[3];
        add_block<T>(slab, offsets, entries, runs, rows, to, ahead);
      }
      add_bias<S>(from + first * L * job.dys[1], job.dys, rows, cols, biases, bias);
      if (totals != sums && (block % kSumBlocks == kSumBlocks - 1 || block == blocks - 1))
        for (int64_t i = 0; i < sum_count; ++i) totals[i] += sums[i];
    }
    for (int64_t panel = first; panel < last; ++panel)
      write_weight_grad<S>(job, g, panel * L, min64(L, job.K - panel * L), c0, cn, !b.planar,
                           totals + (panel - first) * entries * L);
    write_bias<S>((S*)job.db + g * job.K + first * L, bias, biases);
  }
}

}  // namespace fastconv::FASTCONV_NS
