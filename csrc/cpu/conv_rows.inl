// Direct convolution with vectors along a row of pixels (forward, and one stride phase of the input
// gradient), columns of stride 1: where y is planar, nothing is transposed, and few output channels
// waste no lanes.
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

constexpr int kRowVectors = kPairs ? 4 : 2;  // of a tile: 24 or 12 accumulators

constexpr int64_t kRowPanelTiles = 16;  // that read a panel, for its copy to pay

// Which tiles ran, in float and double: bit J - 1, 8 higher for each further vector.
static uint32_t row_tiles_ran[2];

// Products of a filter's taps or channels, one after the other in both operands.
struct RowRun {
  int64_t x, x_step, w, w_step, count;
};

// Where the sums of a tile go: element (j, v W) at y + j * plane + v * W.
template <class T>
struct RowTarget {
  T* y;
  int64_t plane;
  const T* before;  // partial sums to add, as y with their own plane; may be null
  int64_t before_plane;
  const T* residual;  // may be null
  int64_t residual_plane;
  const T* bias;  // of the tile's channels; may be null
  bool relu;
  int64_t last;  // lanes of the last vector
};

template <class T, int J, int V>
__attribute__((noinline)) void row_tile(const T* x, const T* const* w, const RowRun* runs,
                                        int64_t run_count, const RowTarget<T>& to, Lines next) {
  constexpr int W = kW<T>;
  const T* base[J];
  Vec<T> sums[J][V];
#pragma GCC unroll 6
  for (int j = 0; j < J; ++j) {
    base[j] = w[j];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sums[j][v] = Vec<T>{};
  }
  for (const RowRun* run = runs; run < runs + run_count; ++run) {
    const T* from = x + run->x;
    const int64_t x_step = run->x_step, w_step = run->w_step;
    int64_t o = run->w;
    for (int64_t i = run->count; i > 0; --i) {
      Vec<T> xv[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) xv[v] = load<T>(from + v * W);
#pragma GCC unroll 6
      for (int j = 0; j < J; ++j) {
        const Vec<T> b = broadcast<T>(base[j][o]);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) fma<T>(sums[j][v], xv[v], b);
      }
      __builtin_prefetch(next.at, 0, 2);
      next.at += next.step, from += x_step, o += w_step;
    }
  }
#pragma GCC unroll 6
  for (int j = 0; j < J; ++j)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const int64_t lanes = v < V - 1 ? W : to.last;
      Vec<T>& sum = sums[j][v];
      if (to.before) sum += load<T>(to.before + j * to.before_plane + v * W);
      if (to.bias) sum += broadcast<T>(to.bias[j]);
      if (to.residual) sum += load_lanes<T>(to.residual + j * to.residual_plane + v * W, lanes);
      if (to.relu) sum = activate<T>(sum, Activation::relu);
      store_lanes<T>(to.y + j * to.plane + v * W, sum, lanes, 1);
    }
}

template <class T, int V>
FASTCONV_INLINE void row_tile(int J, const T* x, const T* const* w, const RowRun* runs,
                              int64_t run_count, const RowTarget<T>& to, Lines next) {
  switch (J) {
    case 1: return row_tile<T, 1, V>(x, w, runs, run_count, to, next);
    case 2: return row_tile<T, 2, V>(x, w, runs, run_count, to, next);
    case 3: return row_tile<T, 3, V>(x, w, runs, run_count, to, next);
    case 4: return row_tile<T, 4, V>(x, w, runs, run_count, to, next);
    case 5: return row_tile<T, 5, V>(x, w, runs, run_count, to, next);
    default: return row_tile<T, 6, V>(x, w, runs, run_count, to, next);
  }
}

template <class T>
FASTCONV_INLINE void row_tile(int J, int V, const T* x, const T* const* w, const RowRun* runs,
                              int64_t run_count, const RowTarget<T>& to, Lines next) {
  if constexpr (kRowVectors == 4) {
    if (V == 4) return row_tile<T, 4>(J, x, w, runs, run_count, to, next);
    if (V == 3) return row_tile<T, 3>(J, x, w, runs, run_count, to, next);
  }
  if (V == 1) return row_tile<T, 1>(J, x, w, runs, run_count, to, next);
  return row_tile<T, 2>(J, x, w, runs, run_count, to, next);
}

struct RowScratch {
  int64_t slab, acc, bias, panel, runs, total;  // byte offsets
};

template <class T>
inline RowScratch row_scratch(const TapConv& job, const Blocking& b) {
  constexpr int W = kW<T>;
  const int64_t rows = max64(slab_rows(b.rows, job.stride_h, job.rows), 1);
  const int64_t cols = max64(slab_rows(b.cols, 1, job.cols), 1);
  RowScratch s;
  s.slab = 0;
  // A tile reads and writes whole vectors.
  s.acc = align64((slab_elements(job.C, rows, cols, sizeof(T)) + kRowVectors * W) * sizeof(T));
  s.bias = s.acc + align64(b.panels * kTile * b.rows * ceil_div(b.cols, W) * W * sizeof(T));
  s.panel = s.bias + align64(b.panels * kTile * sizeof(T));
  s.runs = s.panel + b.chunk * kRowVectors * W * sizeof(T);
  s.total =
      s.runs + max64(job.rows.count * max64(job.cols.count, b.chunk), 2) * (int64_t)sizeof(RowRun);
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

// Of a block of the image x: a copy, or where no tap reads padding one row where it lies.
template <class S>
inline RowSource<Compute<S>> row_source(const TapConv& job, const S* x, int64_t row0, int64_t rows,
                                        int64_t col0, int64_t cols, Compute<S>* scratch,
                                        const S* end) {
  typedef Compute<S> T;
  constexpr int W = kW<T>;
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
                        int64_t c0, int64_t cn, RowRun* runs) {
  const Slab<T>& slab = from.slab;
  const TapAxis &rows = job.rows, &cols = job.cols;
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
  // Sums go straight to y where it is planar and needs no narrowing.
  const bool direct = sizeof(S) == sizeof(T) && job.ys[3] == 1 &&
                      (!job.residual || job.rs[3] == 1) && job.activation != Activation::sigmoid;
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
      const int64_t slab_w = slab_rows(cols, 1, job.cols);
      source = row_source<S>(job, (const S*)job.x + n * job.xs[0] + g * job.C * job.xs[1],
                             p0 * job.stride_h + job.rows.offset, slab_h, q0 + job.cols.offset,
                             slab_w, (T*)scratch, x_end);
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
    const bool in_panels =
        !kPairs && job.rows.count * job.cols.count == 1 && last - first >= kRowPanelTiles;
    for (int64_t c0 = 0; c0 < job.C; c0 += b.chunk) {
      const int64_t cn = min64(b.chunk, job.C - c0);
      int64_t run_count = in_panels ? 0 : row_runs(job, ws, source, c0, cn, runs);
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t segment = 0; segment < segments; ++segment) {
          const bool more = segment + 1 < segments;
          const int64_t low = vectors * segment / segments;
          const int V = (int)(vectors * (segment + 1) / segments - low);
          const T* x = slab.data + i * job.stride_h * slab.h + low * W;
          const T* next = more ? x + c0 * slab.c + V * W : nullptr;
          if (in_panels) {
            RowSource<T> row = source;
            row.slab.data += i * job.stride_h * slab.h;
            row = row_panel(row, c0, cn, job.C, low * W, V, panel);
            run_count = row_runs(job, ws, row, c0, cn, runs);
            x = row.slab.data;
          }
          for (int64_t group = first; group < last; ++group) {
            const int64_t k = job.K * group / groups;
            const int J = (int)(job.K * (group + 1) / groups - k);
            const T* w[kTile];
            for (int j = 0; j < J; ++j) w[j] = weights + (k + j) * ws[1];
            const int64_t from = k - k0, column = low * W;
            T* sums = acc + from * plane + i * pitch + column;
            RowTarget<T> target = {sums, plane, c0 > 0 ? sums : nullptr, plane};
            target.last = W;
            if (direct && c0 + b.chunk >= job.C) {
              const int64_t p = p0 + i, q = q0 + column;
              target.y = (T*)to.y + from * to.y_k + p * to.y_p + q, target.plane = to.y_k;
              if (to.residual)
                target.residual = (const T*)to.residual + from * to.r_k + p * to.r_p + q;
              target.residual_plane = to.r_k;
              if (to.bias) target.bias = bias + from;
              target.relu = to.activation == Activation::relu;
              if (!more) target.last = cols - (vectors - 1) * W;
              // The next tile's outputs: a core does not ask ahead for so many planes (3x3 3->64
              // @224 on Zen 4: 3.1 -> 2.1 ms).
              if (group + 1 < last)
                for (int j = 0; j < J; ++j)
                  for (int v = 0; v < V; ++v)
                    __builtin_prefetch(target.y + (J + j) * to.y_k + v * W, 1, 3);
            }
            const int64_t line = (group - first) * kLine / (int64_t)sizeof(T);
            Lines lines = {(const char*)weights, 0};
            if (next && line < V * W)
              lines = {(const char*)(next + line), slab.c * (int64_t)sizeof(T)};
            row_tile<T>(J, V, x, w, runs, run_count, target, lines);
            ran |= 1u << (8 * (V - 1) + J - 1);
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
