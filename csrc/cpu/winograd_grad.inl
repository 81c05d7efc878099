// Winograd's weight gradient, the transpose of the forward kernel:
//
//   for each segment of blocks: V = transformed x, A = transformed dy
//     for each panel of K and chunk of C: for each point: Z += A * V, by register tiles
//   Z to taps | not finite? once more, directly | to dw
//
//   A [block][panel][point][tile][kPanel]   Z [point][c][kPanel]
// Each block is summed from zero and then added; the order does not depend on the threads.
namespace fastconv::FASTCONV_NS {

struct WinogradGradScratch {
  int64_t z, taps, slab, again, total;  // byte offsets
};

// A job by images of a lattice as the dilated one it was.
inline WeightGrad whole(WeightGrad job) {
  const Lattice l = job.lattice;
  if (!l.h) return job;
  job.lattice = {};
  job.N /= l.h * l.w;
  job.H = l.H, job.W = l.W, job.P = l.P, job.Q = l.Q;
  job.rows.offset *= l.h, job.cols.offset *= l.w;
  job.rows.offset_step = l.h, job.cols.offset_step = l.w;
  job.xs[2] /= l.h, job.dys[2] /= l.h, job.xs[3] /= l.w, job.dys[3] /= l.w;
  return job;
}

// The direct kernel's tasks where they are those of `b`.
inline Blocking direct_tasks(const WeightGrad& job, const WinogradBlocking& b) {
  Blocking direct = weight_grad_blocking(whole(job), kPanel<float>, sizeof(float), 1, false);
  direct.panels = b.panels;
  direct.panel_blocks = b.panel_blocks;
  direct.chunk = b.chunk;
  direct.chunk_blocks = b.chunks;
  return direct;
}

inline WinogradGradScratch winograd_grad_scratch(const WeightGrad& job, const WinogradBlocking& b) {
  constexpr int W = kW<float>, L = kPanel<float>;
  const int64_t f = sizeof(float), kernel = b.form.rows.taps * b.form.cols.taps;
  const int64_t slab = winograd_slab(b);
  WinogradGradScratch s = {};
  s.taps = s.z + b.panels * b.form.points() * b.m_point * f;
  s.slab = s.taps + align64(kernel * b.chunk * L * f);
  s.again = s.slab + align64(slab_elements(W, slab, 1, f) * f);
  s.total = s.again + weight_grad_scratch<float>(whole(job), direct_tasks(job, b)).total;
  return s;
}

// Items [begin, end) of a segment, (block, vector of channels of x, then of dy): V and A.
template <class S>
inline void winograd_grad_inputs(const WeightGrad& job, const WinogradBlocking& b, int64_t segment,
                                 float* v, float* a, void* scratch, int64_t begin, int64_t end) {
  constexpr int W = kW<float>, L = kPanel<float>;
  float* slab_data = (float*)((char*)scratch + winograd_grad_scratch(job, b).slab);
  const int64_t vectors = ceil_div(job.C, W), panels = ceil_div(job.K, L);
  const int64_t each = vectors + 2 * panels, points = b.form.points();
  const S* dy_end = images_end<S>(job, job.dy, job.G * job.K, job.dys, {job.P, job.Q},
                                  {job.lattice.P, job.lattice.Q});
  for (int64_t item = begin; item < end; ++item) {
    const int64_t at = item / each, vector = item % each;
    const TileBlock t = tile_block(job, b, segment * b.segment + at);
    if (vector < vectors) {
      winograd_input<S>(job, b, t, slab_data, v + at * points * b.v_point, vector, vector + 1);
      continue;
    }
    const int64_t k0 = (vector - vectors) * W, panel = k0 / L;
    if (k0 >= job.K) continue;  // the other half of the last panel: its products are not used
    float* to = a + (at * panels + panel) * points * b.a_point + k0 % L;
    const int64_t kn = min64(W, job.K - k0);
    for (int64_t n = 0; n < t.images; ++n) {
      const Image image = image_of(job, t.n0 + n);
      const S* dy = (const S*)job.dy + image_at(job.lattice, image, job.dys) +
                    (t.g * job.K + k0) * job.dys[1];
      const bool in_place = sizeof(S) == sizeof(float) && job.dys[1] == 1 && kn == W &&
                            image.P == job.P && image.Q == job.Q;
      Slab<float> slab = {slab_data, 1, t.cols.outputs * W, W};
      if (in_place)
        slab = {(float*)dy + t.p0 * job.dys[2] + t.q0 * job.dys[3], 1, job.dys[2], job.dys[3]};
      else
        fill_slab<S>(slab, dy, job.dys, kn, image.P, image.Q, t.p0, t.rows.outputs, t.q0,
                     t.cols.outputs, dy_end);
      for (int64_t i = 0; i < t.rows.count(); ++i)
        for (int64_t j = 0; j < t.cols.count(); ++j) {
          const float* from = slab.data + t.rows.start(i) * slab.h + t.cols.start(j) * slab.w;
          if (in_place)
            ask_pixels(from, slab.h, slab.w, b.form.rows.m, b.form.cols.m, b.form.rows.m,
                       vector - vectors, job.K);
          float* tile = to + t.index(n, i, j) * L;
          const int64_t rows = t.rows.size(i), cols = t.cols.size(j);
          by_form(b.form, [&](auto f) {
            grad_tile<decltype(f)>(from, slab.h, slab.w, rows, cols, tile, b.a_point);
          });
        }
    }
  }
}

// Z += A * V over the blocks of a segment that are of group g, for the panels [panel, end), whose
// tiles are of so many vectors, and a chunk.
inline void winograd_grad_multiply(const WeightGrad& job, const WinogradBlocking& b,
                                   int64_t segment, int64_t g, int64_t panel, int64_t end,
                                   int vectors, int64_t c0, const float* v, const float* a,
                                   float* z) {
  constexpr int W = kW<float>, L = kPanel<float>;
  const int64_t panels = ceil_div(job.K, L), cn = min64(b.chunk, job.C - c0);
  const int64_t points = b.form.points(), first = segment * b.segment;
  uint32_t ran = 0;
  for (int64_t at = 0; at < min64(b.segment, b.blocks - first); ++at) {
    const TileBlock t = tile_block(job, b, first + at);
    if (t.g != g) continue;
    const bool first_of_group = t.n0 == 0 && t.p0 == 0 && t.q0 == 0;
    for (int xi = 0, seen = 0; xi < points; ++xi) {
      const bool last_h = b.form.last_row(xi);
      const bool last_w = b.form.last_col(xi);
      // Points that share a weight share its sum; the first one of all starts it.
      const int weight = b.form.weight_of(xi);
      const bool starts = first_of_group && weight == seen;
      if (weight == seen) ++seen;
      const int64_t begin = t.begin(last_h, last_w);
      const Run run = {begin * W, W, t.end(last_h, last_w) - begin};
      if (run.count <= 0) {
        for (int64_t i = 0; starts && i < end - panel; ++i)
          zero(z + (i * points + weight) * b.m_point, cn * L);
        continue;
      }
      const float* w = a + ((at * panels + panel) * points + xi) * b.a_point + begin * L;
      const float* from = v + (at * points + xi) * b.v_point;
      TilePanels<float> to = {vectors, w, points * b.a_point, z + weight * b.m_point,
                              points * b.m_point};
      Ahead ahead = {};
      if (xi + 1 < points) {
        const int64_t f = sizeof(float);
        for (int64_t i = 0; i < end - panel; ++i)
          ahead.add(w + (i * points + 1) * b.a_point, t.tiles() * L * f);
        ahead.add(from + b.v_point + c0 * t.tiles(), cn * t.tiles() * f);
      }
      const int64_t groups = ceil_div(cn, kTile), tiles = (end - panel) / panels_of(vectors);
      ahead.spread(tiles * groups * run.count, vectors);
      for (int64_t i = 0; i < tiles; ++i, to.w += to.next_w, to.acc += to.next_acc)
        for (int64_t group = 0; group < groups; ++group) {
          const int64_t low = cn * group / groups, high = cn * (group + 1) / groups;
          const float* x[kTile];
          for (int64_t c = low; c < high; ++c)
            x[c - low] = from + (c0 + c) / W * t.tiles() * W + (c0 + c) % W;
          to.ahead = ahead.take(run.count);
          fma_tile<float>((int)(high - low), x, &run, 1, to, low * L, !starts);
          ran |= 1u << (high - low - 1);
        }
    }
  }
  mark_tiles<float>(ran, Tiles::weight_grad, vectors);
}

// Z of a panel and chunk to dw; false, with nothing written, where a gradient is not finite.
template <class S>
inline bool winograd_grad_taps(const WeightGrad& job, const WinogradBlocking& b, int64_t g,
                               int64_t panel, int64_t c0, int64_t cn, const float* z, float* taps) {
  constexpr int W = kW<float>, L = kPanel<float>;
  const int64_t kernel = b.form.rows.taps * b.form.cols.taps, lanes = min64(L, job.K - panel * L);
  Lane sum = {};
  for (int64_t c = 0; c < cn; ++c)
    for (int half = 0; half < lanes; half += W) {
      const float* from = z + c * L + half;
      float* to = taps + c * kernel * L + half;
      sum += by_form(b.form, [&](auto f) { return tap_tile<decltype(f)>(from, b.m_point, to, L); });
    }
  // Lanes that the panel has beyond K hold anything, but none of it is stored.
  if (lanes < L || !__builtin_isfinite(FASTCONV_NS::sum<float>(sum)))
    for (int64_t i = 0; i < cn * kernel; ++i)
      for (int64_t k = 0; k < lanes; ++k)
        if (!__builtin_isfinite(taps[i * L + k])) return false;
  if (job.folded)
    write_weight_grad<float>(job, g, panel * L, lanes, c0, cn, false, taps);
  else
    write_weight_grad<S>(job, g, panel * L, lanes, c0, cn, false, taps);
  return true;
}

// Tasks [begin, end) of (group, panels of a tile, chunk), for one segment. Null `sums`: there is
// only one; else Z of every task, kept between segments.
template <class S>
inline void winograd_grad_run(const WeightGrad& job, const WinogradBlocking& b, int64_t segment,
                              const float* v, const float* a, float* sums, void* scratch,
                              int64_t begin, int64_t end) {
  constexpr int L = kPanel<float>;
  const WinogradGradScratch at = winograd_grad_scratch(job, b);
  float* taps = (float*)((char*)scratch + at.taps);
  const int64_t panels = ceil_div(job.K, L);
  const int64_t z_size = b.form.points() * b.m_point;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t c0 = task % b.chunks * b.chunk, above = task / b.chunks;
    const int64_t first = above % b.panel_blocks * b.panels, g = above / b.panel_blocks;
    const int64_t last = min64(first + b.panels, panels), cn = min64(b.chunk, job.C - c0);
    float* z = sums ? sums + task * b.panels * z_size : (float*)scratch;
    for (int64_t panel = first, next; panel < last; panel = next) {
      const int vectors = tile_vectors<float>(min64(job.K, last * L) - panel * L);
      next = same_tiles(panel, last, job.K);
      winograd_grad_multiply(job, b, segment, g, panel, next, vectors, c0, v, a,
                             z + (panel - first) * z_size);
    }
    if (segment < b.segments - 1) continue;
    bool finite = true;
    for (int64_t panel = first; finite && panel < last; ++panel)
      finite = winograd_grad_taps<S>(job, b, g, panel, c0, cn, z + (panel - first) * z_size, taps);
    if (!finite && job.not_finite)
      __atomic_store_n(job.not_finite, 1, __ATOMIC_RELAXED);
    else if (!finite)
      weight_grad_run<S>(whole(job), direct_tasks(job, b), (char*)scratch + at.again, task,
                         task + 1);
  }
}

}  // namespace fastconv::FASTCONV_NS
