// Weight gradient of a single tap, a GEMM: dw[k, c] = sum over pixels of dy[pixel, k] * x[pixel,
// c].
//
//   for each block of pixels: for each panel of c: pack x | for each tile of six k: all pixels
// The register tile once more, its operands dy where it lies, its vectors x packed
// [pixel][kPanel]. A row of dw runs along c, so sums go from registers to where they belong, of the
// first block as they are. Long sums are of sums of kSumBlocks blocks; order and partial sums never
// depend on the number of threads.
namespace fastconv::FASTCONV_NS {

struct Grad1x1Scratch {
  int64_t dy, x, planes, sums, totals, bias, runs, total;  // byte offsets
};

template <class S>
inline Grad1x1Scratch weight_grad_1x1_scratch(const WeightGrad& job, const Blocking& b) {
  typedef Compute<S> T;
  constexpr int64_t L = kPanel<T>, size = sizeof(T);
  constexpr bool widened = sizeof(S) != sizeof(T);
  const int64_t pixels = b.rows * b.cols, channels = min64(b.panels * kTile, job.K);
  Grad1x1Scratch s;
  s.dy = 0;
  s.x = widened ? align64(slab_elements(channels, b.rows, b.cols, size) * size) : 0;
  s.planes = s.x + align64((kPairs ? 2 : 1) * pixels * L * size);
  s.sums = s.planes + align64((L * b.cols + kW<T>)*size);
  const bool levels = pixel_blocks(job, b) > kSumBlocks;
  s.totals = s.sums + (widened || levels ? align64(channels * b.chunk * size) : 0);
  s.bias = s.totals + (widened && levels ? align64(channels * b.chunk * size) : 0);
  s.runs = s.bias + align64(channels * sizeof(double));
  s.total = s.runs + align64(b.rows * sizeof(Run));
  return s;
}

// Rows `row` apart from acc on: J sums of `lanes` input channels each.
template <class M, int J, int V, bool kInPlace>
__attribute__((noinline)) void gradient_tile(const Data<M>* const* dy, const Run* runs,
                                             int64_t run_count, const TilePanels<Data<M>>& to,
                                             int64_t row, int64_t lanes, bool accumulate) {
  typedef Data<M> T;
  constexpr int W = kW<T>;
  Vec<T> sums[V][J];
  sum_tile<M, J, V, kInPlace>(dy, runs, run_count, to, sums);
#pragma GCC unroll 6
  for (int j = 0; j < J; ++j)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      T* acc = to.acc + j * row + v * W;
      const int64_t n = min64(lanes - v * W, W);
      if (n == W)
        store<T>(acc, accumulate ? load<T>(acc) + sums[v][j] : sums[v][j]);
      else if (n > 0)
        store_lanes<T>(acc, accumulate ? load_lanes<T>(acc, n) + sums[v][j] : sums[v][j], n, 1);
    }
}

template <class M, int V, bool kInPlace>
FASTCONV_INLINE void gradient_tile(int J, const Data<M>* const* dy, const Run* runs,
                                   int64_t run_count, const TilePanels<Data<M>>& to, int64_t row,
                                   int64_t lanes, bool accumulate) {
  switch (J) {
    case 1:
      return gradient_tile<M, 1, V, kInPlace>(dy, runs, run_count, to, row, lanes, accumulate);
    case 2:
      return gradient_tile<M, 2, V, kInPlace>(dy, runs, run_count, to, row, lanes, accumulate);
    case 3:
      return gradient_tile<M, 3, V, kInPlace>(dy, runs, run_count, to, row, lanes, accumulate);
    case 4:
      return gradient_tile<M, 4, V, kInPlace>(dy, runs, run_count, to, row, lanes, accumulate);
    case 5:
      return gradient_tile<M, 5, V, kInPlace>(dy, runs, run_count, to, row, lanes, accumulate);
    default:
      return gradient_tile<M, 6, V, kInPlace>(dy, runs, run_count, to, row, lanes, accumulate);
  }
}

// Rows [0, K) of sums, `row` apart, of the input channels that `to` holds packed.
template <class M, class T>
inline void sum_rows(const Slab<T>& dy, int64_t K, const Run* runs, int64_t run_count,
                     TilePanels<T> to, int64_t row, int64_t lanes, bool accumulate, Ahead& ahead) {
  const int64_t tiles = ceil_div(K, kTile), count = products(runs, run_count);
  T* const first = to.acc;
  uint32_t ran = 0;
  for (int64_t t = 0, k = 0, end; t < tiles; ++t, k = end) {
    end = K * (t + 1) / tiles;
    const int J = (int)(end - k);
    const T* rows[kTile];
    for (int j = 0; j < J; ++j) rows[j] = dy.data + (k + j) * dy.c;
    to.acc = first + k * row;
    to.ahead = ahead.take(count);
    constexpr bool kLies = kNumbers<M> == 1;  // or may
    if (kLies && to.step_w && to.vectors == 2)
      gradient_tile<M, 2, kLies>(J, rows, runs, run_count, to, row, lanes, accumulate);
    else if (kLies && kPairs && to.step_w && to.vectors == 3)
      gradient_tile<M, kPairs ? 3 : 2, kLies>(J, rows, runs, run_count, to, row, lanes, accumulate);
    else if (kLies && kPairs && to.step_w)
      gradient_tile<M, kPairs ? 4 : 2, kLies>(J, rows, runs, run_count, to, row, lanes, accumulate);
    else if (to.vectors == 1)
      gradient_tile<M, 1, false>(J, rows, runs, run_count, to, row, lanes, accumulate);
    else if (to.vectors == 2)
      gradient_tile<M, 2, false>(J, rows, runs, run_count, to, row, lanes, accumulate);
    else if (kPairs && to.vectors == 3)
      gradient_tile<M, kPairs ? 3 : 2, false>(J, rows, runs, run_count, to, row, lanes, accumulate);
    else if constexpr (kPairs)
      gradient_tile<M, 4, false>(J, rows, runs, run_count, to, row, lanes, accumulate);
    ran |= 1u << (J - 1);
  }
  mark_tiles<T>(ran, kNumbers<M> == 2 ? Tiles::couples_rows : Tiles::weight_grad_rows, to.vectors);
}

// One panel of x as [pixel][kPanel]; `planes` holds a row of it where neither pixels nor channels
// lie next to each other. Asks for the next panel of planes, or the next block of pixels: 256->64
// @28 of a batch of 16 on Zen 4 6.0 -> 4.4 ms in NCHW.
template <class S>
inline void pack_input(const WeightGrad& job, Compute<S>* dst, const S* from, int64_t rows,
                       int64_t cols, int64_t lanes, Compute<S>* planes, const S* end) {
  typedef Compute<S> T;
  if (job.xs[1] == 1 || job.xs[3] == 1)
    return pack_pixels<S>(dst, from, job.xs, rows, cols, lanes, end,
                          job.xs[3] == 1 ? kPanel<T> * job.xs[1] : rows * cols * job.xs[3]);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t c = 0; c < lanes; ++c)
      widen_row<S>(planes + c * cols, from + i * job.xs[2] + c * job.xs[1], cols, job.xs[3]);
    pack_panel<T>(dst + i * cols * kPanel<T>, planes, cols, 1, cols, lanes, planes + lanes * cols);
  }
}

// What the tiles of a block ask for of the next one: dy, and x where tiles read it in place, where
// these are one piece (null: not). Their pixels are far apart, and a tile reads a little of each.
// Zen 4, a batch of 16: 128->512 @28 19.0 -> 15.8 ms and 256->1024 @14 21.2 -> 16.6 by dy, 256->64
// @56 18.4 -> 15.4 by x; 512->2048 @7, of more dy than L2 holds, 17.5 -> 20.
constexpr int64_t kNextBytes = 1 << 20;

template <class S>
inline Ahead next_pixels(const WeightGrad& job, const S* dy, const S* x, int64_t pixels,
                         int64_t count, int64_t tiles) {
  Ahead ahead = {};
  auto add = [&](const S* from, const int64_t stride[4], int64_t channels) {
    const int64_t size = pixels * channels, bytes = size * (int64_t)sizeof(S);
    if (from && stride[1] == 1 && stride[3] == channels && bytes <= kNextBytes)
      ahead.add(from + size, bytes);
  };
  add(dy, job.dys, job.K);
  add(x, job.xs, job.C);
  ahead.spread(tiles * count, tile_vectors<Compute<S>>(job.C));
  return ahead;
}

// Couples of pixels: dy and x are joined two pixels to one where they have been widened.
template <class S, class M = Compute<S>>
inline void weight_grad_1x1_run(const WeightGrad& job, const Blocking& b, void* scratch,
                                int64_t begin, int64_t end) {
  typedef Compute<S> T;
  constexpr int L = kPanel<T>;
  constexpr bool widened = sizeof(S) != sizeof(T);
  const Grad1x1Scratch at = weight_grad_1x1_scratch<S>(job, b);
  T *packed = (T*)((char*)scratch + at.x), *planes = (T*)((char*)scratch + at.planes);
  double* bias = (double*)((char*)scratch + at.bias);
  Run* runs = (Run*)((char*)scratch + at.runs);
  const int64_t dy_size[4] = {job.N, job.G * job.K, job.P, job.Q};
  const S* dy_end = end_of<S>(job.dy, dy_size, job.dys, 4);
  const S* x_end = input_end<S>(job);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t c0 = task % b.chunk_blocks * b.chunk, above = task / b.chunk_blocks;
    const int64_t k0 = above % b.panel_blocks * b.panels * kTile, g = above / b.panel_blocks;
    const int64_t cn = min64(b.chunk, job.C - c0), kn = min64(b.panels * kTile, job.K - k0);
    if (cn <= 0 || kn <= 0) continue;
    S* const dw = (S*)job.dw + (g * job.K + k0) * job.C + c0;
    const int64_t blocks = pixel_blocks(job, b);
    const bool levels = blocks > kSumBlocks;
    const int64_t row = widened || levels ? cn : job.C, total_row = widened ? cn : job.C;
    T* const sums = widened || levels ? (T*)((char*)scratch + at.sums) : (T*)dw;
    T* const totals = !levels ? sums : widened ? (T*)((char*)scratch + at.totals) : (T*)dw;
    for (int64_t k = 0; (levels || blocks == 0) && k < kn; ++k) zero(totals + k * total_row, cn);
    const int64_t biases = job.db && c0 == 0 ? kn : 0;
    zero(bias, biases);
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t q0 = block % b.col_blocks * b.cols;
      const int64_t p0 = block / b.col_blocks % b.row_blocks * b.rows;
      const int64_t n = block / b.col_blocks / b.row_blocks;
      const int64_t rows = min64(b.rows, job.P - p0), cols = min64(b.cols, job.Q - q0);
      const S* from = (const S*)job.dy + n * job.dys[0] + (g * job.K + k0) * job.dys[1];
      Slab<T> dy = {(T*)from + p0 * job.dys[2] + q0 * job.dys[3], job.dys[1], job.dys[2],
                    job.dys[3]};
      if (widened) {
        dy = make_slab((T*)scratch, kn, rows, cols, job.dys[1] != 1);
        fill_slab<S>(dy, from, job.dys, kn, job.P, job.Q, p0, rows, q0, cols, dy_end);
      }
      const bool whole = dy.h == cols * dy.w;  // rows continue each other
      const int64_t count = ceil_div(rows * cols, kNumbers<M>);
      for (int64_t i = 0; i < rows; ++i) runs[i] = {i * dy.h, dy.w, whole ? count : cols};
      if constexpr (kNumbers<M> == 2) join_pixels(dy, kn, rows * cols);
      const S* x = (const S*)job.x + n * job.xs[0] + (g * job.C + c0) * job.xs[1] + p0 * job.xs[2] +
                   q0 * job.xs[3];
      const int64_t panel_size = rows * cols * L;
      const bool continuing = rows == 1 || job.xs[2] == cols * job.xs[3];
      Ahead ahead =
          next_pixels<S>(job, kn < job.K ? nullptr : from + p0 * job.dys[2] + q0 * job.dys[3],
                         cn < job.C || b.packed ? nullptr : x, rows * cols, count,
                         ceil_div(kn, kTile) * ceil_div(cn, (kPairs ? 2 : 1) * L));
      for (int64_t c = 0, lanes; c < cn; c += lanes) {
        const int vectors = tile_vectors<T>(cn - c);
        lanes = min64(cn - c, panels_of(vectors) * L);
        // Whole vectors of channels that follow each other are read where they lie.
        const bool in_place = !b.packed && !widened && job.xs[1] == 1 && continuing &&
                              vectors > 1 && lanes == vectors * kW<T>;
        for (int64_t i = 0; i < lanes && !in_place; i += L) {
          pack_input<S>(job, packed + i / L * panel_size, x + (c + i) * job.xs[1], rows, cols,
                        min64(L, lanes - i), planes, x_end);
          if constexpr (kNumbers<M> == 2) join_rows(packed + i / L * panel_size, L, rows * cols);
        }
        sum_rows<M>(dy, kn, runs, whole ? 1 : rows,
                    {vectors,
                     in_place ? (const T*)x + c : packed,
                     in_place ? L : panel_size,
                     sums + c,
                     0,
                     {},
                     in_place ? job.xs[3] : 0},
                    row, lanes, block % kSumBlocks > 0, ahead);
      }
      add_bias<S>(from + p0 * job.dys[2] + q0 * job.dys[3], job.dys, rows, cols, biases, bias);
      if (totals != sums && (block % kSumBlocks == kSumBlocks - 1 || block == blocks - 1))
        for (int64_t k = 0; k < kn; ++k)
          for (int64_t c = 0; c < cn; ++c) totals[k * total_row + c] += sums[k * row + c];
    }
    for (int64_t k = 0; widened && k < kn; ++k)
      narrow_row<S>(dw + k * job.C, totals + k * cn, cn, 1);
    write_bias<S>((S*)job.db + g * job.K + k0, bias, biases);
  }
}

}  // namespace fastconv::FASTCONV_NS
