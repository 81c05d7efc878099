// Direct convolution with vectors along a row of pixels (forward, and one stride phase of the input
// gradient), columns of stride 1, or a stem's, split by phase: where y is planar, nothing is
// transposed, and few output channels waste no lanes.
//
//   acc[k][q .. q + V W) (+)= sum over runs, over i < count of w[k][...] * x[... + q .. q + V W)
//
// The roles of the other register tile are exchanged: six output channels are broadcast, vectors
// are loaded from a planar slab of x, or of one tap from x itself. Weights are read where they lie.
// The planes of a 1x1 lie far apart: lines of a segment of a row share few sets of L1, and without
// the latency that four vectors hide, every tile waits for L2. So AVX2 copies them to a panel where
// many tiles read it (on Zen 4 256->256 @26 970 -> 860 us, 256->128 @56 2135 -> 1985; with pairs of
// 64 bytes 0.97 times as fast).
namespace fastconv::FASTCONV_NS {

constexpr int64_t kRowPanelTiles = 16;  // that read a panel, for its copy to pay

// A row of the slab of so many outputs, its columns split where they are strided.
inline Phases row_phases(const TapConv& job, int64_t outputs) {
  const int64_t columns = max64(slab_rows(outputs, job.stride_w, job.cols), 1);
  return {job.stride_w, ceil_div(columns, job.stride_w)};
}

struct RowScratch {
  int64_t slab, acc, bias, panel, runs, total;  // byte offsets
};

template <class T>
inline RowScratch row_scratch(const TapConv& job, const Blocking& b) {
  constexpr int W = kW<T>;
  const int64_t rows = max64(slab_rows(b.rows, job.stride_h, job.rows), 1);
  const int64_t cols = row_phases(job, b.cols).size();
  RowScratch s;
  s.slab = 0;
  // A tile reads and writes whole vectors.
  s.acc = align64((slab_elements(job.C, rows, cols, sizeof(T)) + kRowVectors * W) * sizeof(T));
  s.bias = s.acc + align64(b.panels * kTile * b.rows * ceil_div(b.cols, W) * W * sizeof(T));
  s.panel = s.bias + align64(b.panels * kTile * sizeof(T));
  s.runs = s.panel + b.chunk * kRowVectors * W * sizeof(T);
  const int64_t across = is_stem(job) ? job.cols.count * b.chunk : max64(job.cols.count, b.chunk);
  s.total = s.runs + max64(job.rows.count * across, 2) * (int64_t)sizeof(RowRun);
  return s;
}

inline int64_t row_packed_size(const TapConv& job) { return job.G * job.K * job.C * job.R * job.S; }

// Weights widened to the arithmetic's type, [group][k][c][r][s]: where they are not read in place.
template <class S>
inline void row_pack(const TapConv& job, void* packed, int64_t begin, int64_t end) {
  typedef Compute<S> T;
  const int64_t taps = job.R * job.S;
  for (int64_t i = begin; i < end; ++i) {
    const S* from = (const S*)job.w + i / job.K * job.ws[0] + i % job.K * job.ws[1];
    T* to = (T*)packed + i * job.C * taps;
    for (int64_t c = 0; c < job.C; ++c)
      for (int64_t r = 0; r < job.R; ++r)
        for (int64_t s = 0; s < job.S; ++s)
          *to++ = widen(from[c * job.ws[2] + r * job.ws[3] + s * job.ws[4]]);
  }
}

// Planes of x as tiles read them, in whole vectors; `tail`: the last channel where that would read
// past the end of x, else null.
template <class T>
struct RowSource {
  Slab<T> slab;
  const T* tail;
};

// A slab whose rows are split by column phase; `cols` are columns of x.
template <class S>
inline Slab<Compute<S>> split_slab(const TapConv& job, const S* x, int64_t row0, int64_t rows,
                                   int64_t col0, int64_t cols, Compute<S>* scratch) {
  typedef Compute<S> T;
  const Phases phases = {job.stride_w, ceil_div(cols, job.stride_w)};
  const Slab<T> slab = {scratch, rows * phases.size(), phases.size(), 1};
  const int64_t left = min64(max64(-col0, 0), cols);
  const int64_t body = max64(min64(job.W - max64(col0, 0), cols - left), 0);
  for (int64_t c = 0; c < job.C; ++c)
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t h = row0 + i;
      const bool inside = h >= 0 && h < job.H;
      T* row = scratch + c * slab.c + i * slab.h;
      if (!inside || body < slab.h) zero(row, slab.h);
      if (inside)
        split_row<S>(phases, row, left,
                     x + c * job.xs[1] + h * job.xs[2] + (col0 + left) * job.xs[3], body,
                     job.xs[3]);
    }
  return slab;
}

// Of a block of the image x: a copy, or where no tap reads padding one row where it lies.
template <class S>
inline RowSource<Compute<S>> row_source(const TapConv& job, const S* x, int64_t row0, int64_t rows,
                                        int64_t col0, int64_t cols, Compute<S>* scratch,
                                        const S* end) {
  typedef Compute<S> T;
  constexpr int W = kW<T>;
  if (job.stride_w > 1) return {split_slab<S>(job, x, row0, rows, col0, cols, scratch), nullptr};
  const bool inside = row0 >= 0 && row0 < job.H && col0 >= 0 && col0 + cols <= job.W;
  const int64_t read = ceil_div(cols, W) * W;
  const bool aligned = (intptr_t)x % sizeof(T) == 0;  // offsets from x to the tail are whole
  if (sizeof(S) == sizeof(T) && aligned && rows == 1 && job.cols.count == 1 && inside &&
      job.xs[3] == 1 && job.C > 1 && job.xs[1] >= W) {
    const Slab<T> slab = {(T*)x + row0 * job.xs[2] + col0, job.xs[1], job.xs[2], 1};
    const T* last = slab.data + (job.C - 1) * slab.c;
    if (last + read <= (const T*)end) return {slab, nullptr};
    zero(scratch, read);
    widen_row<T>(scratch, last, cols, 1);
    return {slab, scratch};
  }
  const Slab<T> slab = make_slab(scratch, job.C, rows, cols, true);
  fill_slab<S>(slab, x, job.xs, job.C, job.H, job.W, row0, rows, col0, cols, end);
  return {slab, nullptr};
}

// The reduction over channels [c0, c0 + cn), in runs along channels or, if those are few, columns.
template <class T>
inline int64_t row_runs(const TapConv& job, const int64_t ws[5], const RowSource<T>& from,
                        const Phases& phases, int64_t c0, int64_t cn, RowRun* runs) {
  const Slab<T>& slab = from.slab;
  const TapAxis &rows = job.rows, &cols = job.cols;
  // Every product a run of its own: the sums of a stem are too short for loops in them (3x3 3->64
  // @224 on Zen 4 2.35 -> 1.96 ms, with AVX2 3.0 -> 2.3).
  if (is_stem(job)) {
    int64_t n = 0;
    for (int64_t c = c0; c < c0 + cn; ++c)
      for (int64_t i = 0; i < rows.count; ++i)
        for (int64_t j = 0; j < cols.count; ++j) {
          const bool tail = from.tail && c == job.C - 1;
          const int64_t x = tail ? from.tail - slab.data : c * slab.c;
          runs[n++] = {x + i * rows.offset_step * slab.h + phases.at(j * cols.offset_step), 0,
                       c * ws[2] + (rows.index + i * rows.index_step) * ws[3] +
                           (cols.index + j * cols.index_step) * ws[4],
                       0, 1};
        }
    return n;
  }
  const bool along_cols = cn < cols.count;
  const int64_t outer = along_cols ? cn : cols.count;
  int64_t n = 0;
  for (int64_t i = 0; i < rows.count; ++i)
    for (int64_t k = 0; k < outer; ++k) {
      const int64_t c = c0 + (along_cols ? k : 0), j = along_cols ? 0 : k;
      const int64_t x = c * slab.c + i * rows.offset_step * slab.h + j * cols.offset_step;
      const int64_t w = c * ws[2] + (rows.index + i * rows.index_step) * ws[3] +
                        (cols.index + j * cols.index_step) * ws[4];
      if (along_cols)
        runs[n++] = {x, cols.offset_step, w, cols.index_step * ws[4], cols.count};
      else
        runs[n++] = {x, slab.c, w, ws[2], cn};
    }
  if (from.tail && c0 + cn == job.C) {  // of one tap: its last channel apart
    const RowRun& all = runs[0];
    runs[1] = {from.tail - slab.data, 0, all.w + (cn - 1) * all.w_step, 0, 1};
    runs[0].count = cn - 1;
    n = 2;
  }
  return n;
}

// V vectors of each of the channels [c0, c0 + cn) from column `low` on, one after the other.
template <class T>
inline RowSource<T> row_panel(const RowSource<T>& from, int64_t c0, int64_t cn, int64_t channels,
                              int64_t low, int V, T* panel) {
  constexpr int W = kW<T>;
  for (int64_t c = c0; c < c0 + cn; ++c) {
    const bool tail = from.tail && c == channels - 1;
    const T* x = (tail ? from.tail : from.slab.data + c * from.slab.c) + low;
    for (int v = 0; v < V; ++v) store<T>(panel + ((c - c0) * V + v) * W, load<T>(x + v * W));
  }
  return {{panel - c0 * V * W, V * W, 0, 1}, nullptr};
}

// The lanes of `to` of a block, from acc [k][row][pitch].
template <Activation kActivation, class S>
inline void store_rows(const PanelStore<S>& to, const Compute<S>* acc, int64_t pitch, int64_t p0,
                       int64_t q0, int64_t rows, int64_t cols) {
  typedef Compute<S> T;
  constexpr int W = kW<T>;
  for (int64_t k = 0; k < to.lanes; ++k) {
    const Vec<T> bias = broadcast<T>(to.bias ? widen(to.bias[k * to.bias_s]) : T(0));
    for (int64_t i = 0; i < rows; ++i) {
      const T* from = acc + (k * rows + i) * pitch;
      S* y = to.y + k * to.y_k + (p0 + i) * to.y_p + q0 * to.y_q;
      const S* residual =
          to.residual ? to.residual + k * to.r_k + (p0 + i) * to.r_p + q0 * to.r_q : nullptr;
      for (int64_t j = 0; j < cols; j += W) {
        const int64_t lanes = min64(W, cols - j);
        Vec<T> v = load<T>(from + j) + bias;
        if (residual) {
          T add[W] = {};
          widen_row<S>(add, residual + j * to.r_q, lanes, to.r_q);
          v += load<T>(add);
        }
        store_lanes<S>(y + j * to.y_q, activate<T>(v, kActivation), lanes, to.y_q);
      }
    }
  }
}

// Tasks as in conv_run, panels being tiles of six output channels. Null `packed`: weights are read
// where they lie, which are then of the arithmetic's type.
template <class S>
inline void row_run(const TapConv& job, const Blocking& b, const void* packed, void* scratch,
                    int64_t begin, int64_t end) {
  typedef Compute<S> T;
  constexpr int W = kW<T>;
  const RowScratch at = row_scratch<T>(job, b);
  T* acc = (T*)((char*)scratch + at.acc);
  T* bias = (T*)((char*)scratch + at.bias);
  T* panel = (T*)((char*)scratch + at.panel);
  RowRun* runs = (RowRun*)((char*)scratch + at.runs);
  // Sums go straight to y where it is planar; those that are narrowed by way of `narrowed`, in L1.
  constexpr bool kNarrow = sizeof(S) != sizeof(T);
  const bool direct = job.ys[3] == 1 && (!job.residual || (!kNarrow && job.rs[3] == 1)) &&
                      job.activation != Activation::sigmoid;
  T narrowed[kNarrow ? kTile * kRowVectors * W : 1];
  const int64_t kernel = job.R * job.S;
  const int64_t dense[5] = {job.K * job.C * kernel, job.C * kernel, kernel, job.S, 1};
  const int64_t* ws = packed ? dense : job.ws;
  const int64_t groups = ceil_div(job.K, kTile);
  const S* x_end = input_end<S>(job);
  RowSource<T> source = {};
  const Slab<T>& slab = source.slab;
  int64_t filled = -1;
  uint32_t ran = 0;
  for (int64_t task = begin; task < end; ++task) {
    const auto [block, first, n, g, p0, q0, rows, cols] = conv_block(job, b, task);
    if (rows <= 0 || cols <= 0) continue;
    if (block != filled && job.rows.count && job.cols.count) {
      const int64_t slab_h = slab_rows(rows, job.stride_h, job.rows);
      const int64_t slab_w = slab_rows(cols, job.stride_w, job.cols);
      source = row_source<S>(job, (const S*)job.x + n * job.xs[0] + g * job.C * job.xs[1],
                             p0 * job.stride_h + job.rows.offset, slab_h,
                             q0 * job.stride_w + job.cols.offset, slab_w, (T*)scratch, x_end);
      filled = block;
    }
    const int64_t last = min64(first + b.panels, groups);
    const int64_t k0 = job.K * first / groups, k1 = job.K * last / groups;
    const int64_t vectors = ceil_div(cols, W), pitch = vectors * W, plane = rows * pitch;
    const int64_t segments = ceil_div(vectors, kRowVectors);
    const T* weights = (packed ? (const T*)packed : (const T*)job.w) + g * ws[0];
    const PanelStore<S> to = channel_store<S>(job, n, g, k0, k1 - k0);
    for (int64_t k = 0; direct && to.bias && k < to.lanes; ++k)
      bias[k] = widen(to.bias[k * to.bias_s]);
    // A stem reads few inputs: one plane of outputs after the other is written.
    const bool planes = is_stem(job);
    const Phases phases = row_phases(job, cols);
    const bool in_panels = !planes && !kPairs && job.rows.count * job.cols.count == 1 &&
                           last - first >= kRowPanelTiles;
    for (int64_t c0 = 0; c0 < job.C; c0 += b.chunk) {
      const int64_t cn = min64(b.chunk, job.C - c0);
      int64_t run_count = in_panels ? 0 : row_runs(job, ws, source, phases, c0, cn, runs);
      int64_t i = 0, segment = 0, group = first, low = 0, k = 0;
      int V = 0, J = 0;
      const T *x = nullptr, *next = nullptr, *w[kTile];
      for (int64_t tiles = rows * segments * (last - first); tiles > 0; --tiles) {
        const bool more = segment + 1 < segments;
        if (planes || group == first) {
          low = vectors * segment / segments;
          V = (int)(vectors * (segment + 1) / segments - low);
          x = slab.data + i * job.stride_h * slab.h + low * W;
          next = more ? x + c0 * slab.c + V * W : nullptr;
          if (in_panels) {
            RowSource<T> row = source;
            row.slab.data += i * job.stride_h * slab.h;
            row = row_panel(row, c0, cn, job.C, low * W, V, panel);
            run_count = row_runs(job, ws, row, phases, c0, cn, runs);
            x = row.slab.data;
          }
        }
        if (!planes || (i == 0 && segment == 0)) {
          k = job.K * group / groups;
          J = (int)(job.K * (group + 1) / groups - k);
          for (int j = 0; j < J; ++j) w[j] = weights + (k + j) * ws[1];
        }
        const int64_t from = k - k0, column = low * W;
        T* sums = acc + from * plane + i * pitch + column;
        RowTarget<T> target = {sums, plane, c0 > 0 ? sums : nullptr, plane};
        target.last = W;
        const int64_t last_lanes = more ? W : cols - (vectors - 1) * W;
        S* y = nullptr;
        if (direct && c0 + b.chunk >= job.C) {
          const int64_t p = p0 + i, q = q0 + column;
          y = to.y + from * to.y_k + p * to.y_p + q;
          target.y = kNarrow ? narrowed : (T*)y, target.plane = kNarrow ? V * W : to.y_k;
          if (to.residual) target.residual = (const T*)to.residual + from * to.r_k + p * to.r_p + q;
          target.residual_plane = to.r_k;
          if (to.bias) target.bias = bias + from;
          target.relu = to.activation == Activation::relu;
          if (!kNarrow) target.last = last_lanes;
          // The next tile's outputs, where a core does not look so far ahead.
          if (planes ? kPairs : group + 1 < last) {
            const S* after = y + (planes ? V * W : J * to.y_k);
            for (int j = 0; j < J; ++j)
              for (int v = 0; v < V; v += kLine / (W * (int)sizeof(S)))
                __builtin_prefetch(after + j * to.y_k + v * W, 1, 3);
          }
        }
        const int64_t line = (group - first) * kLine / (int64_t)sizeof(T);
        Lines lines = {(const char*)weights, 0};
        if (!planes && next && line < V * W)
          lines = {(const char*)(next + line), slab.c * (int64_t)sizeof(T)};
        row_tile<T>(J, V, x, w, runs, run_count, target, lines);
        ran |= 1u << (8 * (V - 1) + J - 1);
        for (int j = 0; kNarrow && y && j < J; ++j)
          for (int v = 0; v < V; ++v)
            store_lanes<S>(y + j * to.y_k + v * W, load<T>(narrowed + (j * V + v) * W),
                           v < V - 1 ? W : last_lanes, 1);
        if (planes) {
          if (++segment == segments) segment = 0, ++i;
          if (i == rows) i = 0, ++group;
        } else {
          if (++group == last) group = first, ++segment;
          if (segment == segments) segment = 0, ++i;
        }
      }
    }
    if (direct) continue;
    switch (job.activation) {
      case Activation::relu:
        store_rows<Activation::relu, S>(to, acc, pitch, p0, q0, rows, cols);
        break;
      case Activation::sigmoid:
        store_rows<Activation::sigmoid, S>(to, acc, pitch, p0, q0, rows, cols);
        break;
      default: store_rows<Activation::none, S>(to, acc, pitch, p0, q0, rows, cols);
    }
  }
  __atomic_fetch_or(&row_tiles_ran[sizeof(T) == 8], ran, __ATOMIC_RELAXED);
}

}  // namespace fastconv::FASTCONV_NS
