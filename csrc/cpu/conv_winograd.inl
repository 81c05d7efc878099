// Winograd convolution (forward and input gradient), float arithmetic.
//
//   for each block of tiles: V = transformed x, all channels
//     for each panel of K: for each chunk of C: for each point: M += V * U, by register tiles
//       tiles of M to outputs | not finite? once more, directly | epilogue and store
//
//   U [group][panel][chunk][point][c][kPanel]   V [point][c / W][tile][W]   M [point][tile][kPanel]
namespace fastconv::FASTCONV_NS {

struct WinogradScratch {
  int64_t v, m, u, outputs, again, slab, weights, runs, bad, total;  // byte offsets
};

inline WinogradScratch winograd_scratch(const TapConv& job, const WinogradBlocking& b) {
  constexpr int W = kW<float>, L = kPanel<float>;
  const int64_t f = sizeof(float), tiles = b.most_tiles(), taps = job.R * job.S;
  const WinogradAxis &rows = b.form.rows, &cols = b.form.cols;
  const int64_t tile = rows.m * rows.outputs() * cols.m * cols.outputs();
  const int64_t outputs = tiles * tile * L * f;
  const int64_t slab = winograd_slab(b);
  WinogradScratch s = {};
  s.m = s.v + b.form.points() * b.v_point * f;
  s.u = s.m + kWinogradPanels * b.form.points() * b.m_point * f;
  s.outputs = s.u + kWinogradPanels * b.u_chunk * f;
  s.again = s.outputs + align64(outputs);
  s.slab = s.again + align64(outputs);
  s.weights = s.slab + align64(slab_elements(W, slab, 1, f) * f);
  s.runs = s.weights + align64(taps * W * L * f);
  s.bad = s.runs + align64(max64(taps, b.chunk / W) * (int64_t)sizeof(Run));
  s.total = s.bad + align64(tiles);
  return s;
}

// U of chunk `chunk` of a panel; `packed` is room for the weights of W channels.
template <class S>
inline void winograd_weights(const TapConv& job, const WinogradBlocking& b, int64_t g,
                             int64_t panel, int64_t chunk, float* packed, float* u) {
  constexpr int W = kW<float>, L = kPanel<float>;
  const int64_t first = chunk * b.chunk, last = min64(first + b.chunk, job.C);
  for (int64_t c0 = first; c0 < last; c0 += W) {
    const int64_t cn = min64(W, last - c0);
    pack_weights<S>(job, {g, panel, c0, cn}, packed);
    for (int64_t c = 0; c < cn; ++c)
      for (int half = 0; half < L; half += W) {
        const float* from = packed + c * L + half;
        float* to = u + (c0 - first + c) * L + half;
        by_form(b.form, [&](auto f) { weight_tile<decltype(f)>(from, cn * L, to, b.u_point); });
      }
  }
}

// (group, panel) pairs [begin, end) of U.
template <class S>
inline void winograd_pack(const TapConv& job, const WinogradBlocking& b, float* u, void* scratch,
                          int64_t begin, int64_t end) {
  float* packed = (float*)((char*)scratch + winograd_scratch(job, b).weights);
  const int64_t panels = ceil_div(job.K, kPanel<float>);
  for (int64_t i = begin; i < end; ++i)
    for (int64_t chunk = 0; chunk < b.chunks; ++chunk)
      winograd_weights<S>(job, b, i / panels, i % panels, chunk, packed,
                          u + (i * b.chunks + chunk) * b.u_chunk);
}

// Items [begin, end) of (block, vector of channels): V of every block.
template <class S>
inline void winograd_inputs(const TapConv& job, const WinogradBlocking& b, float* inputs,
                            void* scratch, int64_t begin, int64_t end) {
  const int64_t vectors = ceil_div(job.C, b.lanes);
  float* slab = (float*)((char*)scratch + winograd_scratch(job, b).slab);
  for (int64_t i = begin; i < end; ++i)
    winograd_input<S>(job, b, tile_block(job, b, i / vectors), slab,
                      inputs + i / vectors * b.form.points() * b.v_point, i % vectors,
                      i % vectors + 1);
}

// The end of the panels from `panel` on that are multiplied at each point before the next: of
// [panel, last), those whose tiles have as many vectors.
inline int64_t same_tiles(int64_t panel, int64_t last, int64_t K) {
  auto vectors_at = [&](int64_t i) {
    return tile_vectors<float>(min64(K, last * kPanel<float>) - i * kPanel<float>);
  };
  int64_t next = panel + panels_of(vectors_at(panel));
  while (next < min64(last, panel + kWinogradPanels) && vectors_at(next) == vectors_at(panel))
    ++next;
  return next;
}

// M (+)= V * U at every point, of one chunk; `to` are the panels at the first point, of which
// `panels` follow. `next_u`: the weights that are multiplied after those, may be null.
inline void winograd_multiply(const TapConv& job, const WinogradBlocking& b, const TileBlock& t,
                              const float* v, int64_t c0, const TilePanels<float>& to,
                              int64_t panels, const float* next_u, Run* runs) {
  constexpr int W = kW<float>, L = kPanel<float>;
  const int64_t tiles = t.tiles(), last = min64(c0 + b.chunk, job.C);
  int64_t run_count = 0;
  for (int64_t c = c0; c < last; c += W) runs[run_count++] = {c * tiles, 1, min64(W, last - c)};
  uint32_t ran = 0;
  TilePanels<float> at = to;
  for (int xi = 0; xi < b.form.points(); ++xi) {
    const bool last_h = b.form.last_row(xi);
    const bool last_w = b.form.last_col(xi);
    const int64_t begin = t.begin(last_h, last_w), n = t.end(last_h, last_w) - begin;
    const int64_t groups = ceil_div(n, kTile);
    at.w = to.w + b.form.weight_of(xi) * b.u_point, at.acc = to.acc + xi * b.m_point;
    Ahead ahead = {};
    const int64_t f = sizeof(float);
    const bool more = xi + 1 < b.form.points();
    const float* w = more ? to.w + b.form.weight_of(xi + 1) * b.u_point : next_u;
    for (int64_t i = 0; w && w != at.w && i < panels; ++i)
      ahead.add(w + i * to.next_w, (last - c0) * L * f);
    if (more) ahead.add(v + (xi + 1) * b.v_point + c0 * tiles, (last - c0) * tiles * f);
    const int64_t tiles_across = panels / panels_of(to.vectors);
    ahead.spread(tiles_across * groups * (last - c0), to.vectors);
    for (int64_t i = 0; i < tiles_across; ++i, at.w += to.next_w, at.acc += to.next_acc)
      for (int64_t group = 0; group < groups; ++group) {
        const int64_t low = begin + n * group / groups, high = begin + n * (group + 1) / groups;
        const float* x = v + xi * b.v_point + low * W;
        at.ahead = ahead.take(last - c0);
        fma_tile<float, false, W>((int)(high - low), &x, runs, run_count, at, low * L, c0 > 0);
        ran |= 1u << (high - low - 1);
      }
  }
  mark_tiles<float>(ran, Tiles::forward, to.vectors);
}

// Every second output of a transposed job, from (row, col) on.
template <class S>
inline TapConv output_phase(TapConv job, int row, int col) {
  auto taps = [](const TapAxis& all, int odd) -> TapAxis {
    const int64_t step = all.index_step;
    if (odd) return {2, all.index, 2 * step, all.offset, 1};
    return {1, all.index + step, step, all.offset, 1};
  };
  job.y = (S*)job.y + row * job.ys[2] + col * job.ys[3];
  job.P = ceil_div(job.P - row, 2), job.Q = ceil_div(job.Q - col, 2);
  job.ys[2] *= 2, job.ys[3] *= 2;
  job.rows = taps(job.rows, row), job.cols = taps(job.cols, col);
  job.stride_h = job.stride_w = 1;
  job.transposed = false;
  return job;
}

// The outputs of a block once more by the direct kernel, to y where its tiles are bad.
template <class S>
inline void winograd_again(const TapConv& job, const WinogradBlocking& b, const TileBlock& t,
                           int64_t panel, void* scratch, const WinogradScratch& at) {
  if (job.transposed) {
    for (int i = 0; i < 4; ++i)
      winograd_again<S>(output_phase<S>(job, i / 2, i % 2), b, t, panel, scratch, at);
    return;
  }
  constexpr int W = kW<float>, L = kPanel<float>;
  float* again = (float*)((char*)scratch + at.again);
  float* weights = (float*)((char*)scratch + at.weights);
  Run* runs = (Run*)((char*)scratch + at.runs);
  const char* bad = (const char*)scratch + at.bad;
  const int64_t P = t.rows.outputs, Q = t.cols.outputs;
  const int64_t rows = (P - 1) * job.stride_h + job.R, cols = (Q - 1) * job.stride_w + job.S;
  const S* x_end = input_end<S>(job);
  for (int64_t n = 0; n < t.images; ++n) {
    const Image image = image_of(job, t.n0 + n);
    for (int64_t c0 = 0; c0 < job.C; c0 += W) {
      const int64_t cn = min64(W, job.C - c0);
      const Slab<float> slab = make_slab((float*)((char*)scratch + at.slab), cn, rows, cols, false);
      const S* x =
          (const S*)job.x + image_at(job.lattice, image, job.xs) + (t.g * job.C + c0) * job.xs[1];
      fill_slab<S>(slab, x, job.xs, cn, image.H, image.W, t.p0 * job.stride_h + job.rows.offset,
                   rows, t.q0 * job.stride_w + job.cols.offset, cols, x_end);
      pack_weights<S>(job, {t.g, panel, c0, cn}, weights);
      const int64_t run_count = make_runs(job, BlockTaps::all(job), slab, 0, cn, runs);
      const int vectors = tile_vectors<float>(min64(L, job.K - panel * L));
      accumulate_block<float>(job, slab, P, Q, runs, run_count, {vectors, weights, 0, again, 0},
                              c0 > 0);
    }
    const PanelStore<S> to = panel_store<S>(job, t.n0 + n, t.g, panel);
    for (int64_t i = 0; i < t.rows.count(); ++i)
      for (int64_t j = 0; j < t.cols.count(); ++j) {
        if (!bad[t.index(n, i, j)]) continue;
        // Of an odd size the last pair of a transposed job has one output only.
        const int64_t q = t.cols.start(j), cols = min64(t.cols.size(j), image.Q - t.q0 - q);
        for (int64_t row = 0; row < t.rows.size(i); ++row) {
          const int64_t p = t.rows.start(i) + row;
          if (t.p0 + p < image.P && cols > 0)
            store_panel<S>(to, again + (p * Q + q) * L, t.p0 + p, t.q0 + q, 1, cols);
        }
      }
  }
}

// An output of a tile to [pixel][kPanel].
struct PutPixel {
  float* y;
  int64_t row, col;

  FASTCONV_INLINE void operator()(int i, int j, Lane v) const {
    store<float>(y + i * row + j * col, v);
  }
};

// To a channel-last y, with the epilogue.
struct PutChannels {
  float* y;
  const float* residual;  // may be null
  int64_t y_row, y_col, r_row, r_col;
  Lane bias;
  Activation activation;
  bool past;  // the caches

  FASTCONV_INLINE void operator()(int i, int j, Lane v) const {
    v += bias;
    if (residual) v += load<float>(residual + i * r_row + j * r_col);
    v = activate<float>(v, activation);
    float* const to = y + i * y_row + j * y_col;
    past ? store_past(to, v) : store<float>(to, v);
  }
};

// Outputs of an image in a block.
struct Size {
  int64_t rows, cols;
};

// M to the size_of(n) outputs of a block's images, by put_of(n, p, q, half), image and pixel
// counted from the block's first. True where one is not finite.
template <class SizeOf, class PutOf>
inline bool tile_outputs(const WinogradBlocking& b, const TileBlock& t, const SizeOf& size_of,
                         const float* m, char* bad, int64_t lanes, const PutOf& put_of) {
  constexpr int W = kW<float>, L = kPanel<float>;
  bool any = false;
  for (int64_t n = 0; n < t.images; ++n) {
    const Size size = size_of(n);
    for (int64_t i = 0; i < t.rows.count(); ++i)
      for (int64_t j = 0; j < t.cols.count(); ++j) {
        const int64_t tile = t.index(n, i, j), each = b.form.rows.outputs();
        const int64_t p = t.rows.start(i) * each,
                      rows = min64(t.rows.size(i) * each, size.rows - p);
        const int64_t q = t.cols.start(j) * each,
                      cols = min64(t.cols.size(j) * each, size.cols - q);
        Lane sum = {};
        for (int half = 0; half < lanes; half += W) {
          const float* from = m + tile * L + half;
          const auto put = put_of(n, p, q, half);
          sum += by_tile_form(b.form, [&](auto f) {
            return output_tile<decltype(f)>(from, b.m_point, rows, cols, put);
          });
        }
        bad[tile] = !__builtin_isfinite(FASTCONV_NS::sum<float>(sum));
        any |= bad[tile];
      }
  }
  return any;
}

// Whether a channel-last y is stored past the caches: every vector is a line of it.
template <class S>
inline bool stores_past(const TapConv& job, const WinogradBlocking& b, const PanelStore<S>& to) {
  return kWholeLines && b.past &&
         ((int64_t)((uint64_t)to.y / sizeof(float)) | to.y_p | to.y_q | job.ys[0]) % 16 == 0;
}

// M of a panel to y. Whole vectors of a channel-last y are stored from registers.
template <class S>
inline void winograd_outputs(const TapConv& job, const WinogradBlocking& b, const TileBlock& t,
                             int64_t panel, const float* m, void* scratch,
                             const WinogradScratch& at) {
  constexpr int W = kW<float>, L = kPanel<float>;
  const PanelStore<S> to = panel_store<S>(job, t.n0, t.g, panel);
  const int64_t lanes = to.lanes, each = b.form.rows.outputs(), p0 = t.p0 * each, q0 = t.q0 * each;
  auto size_of = [&](int64_t n) {
    const Image image = image_of(job, t.n0 + n);
    return Size{min64(t.rows.outputs * each, image.P - p0),
                min64(t.cols.outputs * each, image.Q - q0)};
  };
  char* bad = (char*)scratch + at.bad;
  bool again;
  if (sizeof(S) == sizeof(float) && lanes % W == 0 && to.y_k == 1 &&
      (!to.residual || to.r_k == 1) && to.activation != Activation::sigmoid) {
    const Activation activation =
        to.activation == Activation::relu ? Activation::relu : Activation::none;
    float bias[L] = {};
    for (int64_t k = 0; to.bias && k < lanes; ++k) bias[k] = widen(to.bias[k * to.bias_s]);
    const int64_t y0 = image_at(job, t.n0, job.ys), r0 = image_at(job, t.n0, job.rs);
    const PutChannels first = {
        (float*)to.y, (const float*)to.residual, to.y_p, to.y_q, to.r_p, to.r_q, {},
        activation,   stores_past(job, b, to)};
    again =
        tile_outputs(b, t, size_of, m, bad, lanes, [&](int64_t n, int64_t p, int64_t q, int half) {
          p += p0, q += q0;
          PutChannels put = first;
          put.y += image_at(job, t.n0 + n, job.ys) - y0 + p * to.y_p + q * to.y_q + half;
          if (put.residual)
            put.residual += image_at(job, t.n0 + n, job.rs) - r0 + p * to.r_p + q * to.r_q + half;
          put.bias = load<float>(bias + half);
          return put;
        });
  } else {
    float* y = (float*)((char*)scratch + at.outputs);
    const int64_t pixels = t.rows.outputs * t.cols.outputs * each * each;
    again =
        tile_outputs(b, t, size_of, m, bad, lanes, [&](int64_t n, int64_t p, int64_t q, int half) {
          const int64_t Q = size_of(n).cols;
          return PutPixel{y + (n * pixels + p * Q + q) * L + half, Q * L, L};
        });
    for (int64_t n = 0; n < t.images; ++n) {
      const Size size = size_of(n);
      store_panel<S>(panel_store<S>(job, t.n0 + n, t.g, panel), y + n * pixels * L, p0, q0,
                     size.rows, size.cols);
    }
  }
  if (again && job.not_finite)
    __atomic_store_n(job.not_finite, 1, __ATOMIC_RELAXED);
  else if (again)
    winograd_again<S>(job, b, t, panel, scratch, at);
}

// A task: (block, range of panels), panels fastest. Null `packed`: weights are transformed here.
// `inputs` holds V of every block, or is null: V is made here.
template <class S>
inline void winograd_run(const TapConv& job, const WinogradBlocking& b, const float* packed,
                         const float* inputs, void* scratch, int64_t begin, int64_t end) {
  constexpr int L = kPanel<float>;
  const WinogradScratch at = winograd_scratch(job, b);
  char* own = (char*)scratch;
  float *m = (float*)(own + at.m), *u = (float*)(own + at.u);
  const int64_t panels = ceil_div(job.K, L);
  int64_t filled = -1;
  TileBlock t = {};
  for (int64_t task = begin; task < end; ++task) {
    const int64_t block = task / b.panel_blocks, first = task % b.panel_blocks * b.panels;
    if (block != filled) {
      t = tile_block(job, b, block);
      if (!inputs)
        winograd_input<S>(job, b, t, (float*)(own + at.slab), (float*)own, 0,
                          ceil_div(job.C, b.lanes));
      filled = block;
    }
    const float* v = inputs ? inputs + block * b.form.points() * b.v_point : (float*)own;
    const int64_t last = min64(first + b.panels, panels);
    for (int64_t panel = first, next; panel < last; panel = next) {
      const int vectors = tile_vectors<float>(min64(job.K, last * L) - panel * L);
      next = same_tiles(panel, last, job.K);
      const int64_t m_panel = b.form.points() * b.m_point, u_panel = b.chunks * b.u_chunk;
      for (int64_t chunk = 0; chunk < b.chunks; ++chunk) {
        TilePanels<float> to = {vectors, u, b.u_chunk, m, m_panel};
        if (packed)
          to.w = packed + (t.g * panels + panel) * u_panel + chunk * b.u_chunk, to.next_w = u_panel;
        else
          for (int64_t i = panel; i < next; ++i)
            winograd_weights<S>(job, b, t.g, i, chunk, (float*)(own + at.weights),
                                u + (i - panel) * b.u_chunk);
        // Of the next chunk, or of the next panels' first.
        const float* next_u = nullptr;
        if (packed && chunk + 1 < b.chunks)
          next_u = to.w + b.u_chunk;
        else if (packed && next < last)
          next_u = packed + (t.g * panels + next) * u_panel;
        winograd_multiply(job, b, t, v, chunk * b.chunk, to, next - panel, next_u,
                          (Run*)(own + at.runs));
      }
      for (int64_t i = panel; i < next; ++i)
        winograd_outputs<S>(job, b, t, i, m + (i - panel) * m_panel, own, at);
    }
  }
  fence_stores();
}

}  // namespace fastconv::FASTCONV_NS
