// Depthwise and other narrow groups of as many outputs as inputs, vectors along channels: a vector
// holds whole groups. Input channel c of every group is spread over the lanes of its outputs by one
// permutation, which every tap of a row then shares.
//
// Channel-last tensors are read and written where they lie, taps clipped at the edges. Of others a
// band of rows is transposed to pixels of a panel of channels first and its sums transposed back,
// which costs a depthwise 3x3 about as much as its products, on maps of any width.
namespace fastconv::FASTCONV_NS {

// The job as one group of all channels, as packing and storing see it.
inline TapConv as_one_group(const TapConv& job) {
  TapConv one = job;
  one.G = 1, one.K = job.G * job.K;
  one.ws[0] = job.G * job.ws[0];
  if (job.C == 1) one.ws[1] = job.ws[0];
  return one;
}

// The input gradient's lanes are not evenly apart in the weights: W of them side by side, by
// transposes where the taps of each are contiguous, for one input channel of the groups.
template <class S>
inline void spread_weights(const TapConv& job, const S* from, const int64_t* lane_at, int64_t lanes,
                           const S* end, Compute<S>* w) {
  typedef Compute<S> T;
  constexpr int W = kW<T>, L = kPanel<T>;
  const int64_t taps = job.R * job.S;
  const bool dense = job.ws[4] == 1 && job.ws[3] == job.S && taps <= W && lanes == W &&
                     from + lane_at[W - 1] + W <= end;
  Vec<T> rows[W];
  if (dense) {
#pragma GCC unroll 16
    for (int l = 0; l < W; ++l) rows[l] = load_widened<S>(from + lane_at[l]);
    transpose<T>(rows);
  }
  T in_order[W * W];  // [tap][lane]
  for (int t = 0; dense && t < W; ++t) store<T>(in_order + t * W, rows[t]);
  for (int64_t i = 0; i < job.rows.count; ++i)
    for (int64_t j = 0; j < job.cols.count; ++j, w += job.C * L) {
      const int64_t r = job.rows.index + i * job.rows.index_step;
      const int64_t s = job.cols.index + j * job.cols.index_step;
      if (dense)
        store<T>(w, load<T>(in_order + (r * job.S + s) * W));
      else
        for (int l = 0; l < W; ++l)
          w[l] = l < lanes ? widen(from[lane_at[l] + r * job.ws[3] + s * job.ws[4]]) : T(0);
    }
}

// Weights of a panel of channels from k0 on, [tap][c][kPanel], and its bias.
template <class S>
inline void grouped_weights(const TapConv& job, int64_t k0, Compute<S>* w, Compute<S>* bias) {
  typedef Compute<S> T;
  constexpr int W = kW<T>, L = kPanel<T>;
  TapConv one = as_one_group(job);
  const int64_t lanes = min64(L, one.K - k0);
  zero(bias, L);
  if (job.bias) widen_row<S>(bias, (const S*)job.bias + k0 * job.bias_s, lanes, job.bias_s);
  if (one.ws[0] == one.K * one.ws[1]) {
    one.w = (const S*)one.w + k0 * one.ws[1];
    one.K -= k0, one.ws[0] -= k0 * one.ws[1];
    return pack_weights<S>(one, PackedPart{0, 0, 0, job.C}, w);
  }
  const int64_t size[5] = {job.G, job.K, job.C, job.R, job.S};
  const S* end = end_of<S>(job.w, size, job.ws, 5);
  for (int64_t half = 0; half < L; half += W) {
    int64_t lane_at[W];
    for (int64_t l = 0; l < W; ++l) {
      const int64_t k = k0 + half + l;
      lane_at[l] = k / job.K * job.ws[0] + k % job.K * job.ws[1];
    }
    for (int64_t c = 0; c < job.C; ++c)
      spread_weights<S>(job, (const S*)job.w + c * job.ws[2], lane_at,
                        max64(min64(lanes - half, W), 0), end, w + c * L + half);
  }
}

// Where the panel of channels at k begins: the last one overlaps the one before.
inline int64_t panel_start(const TapConv& job, int64_t k, int64_t panel) {
  return min64(k, max64(job.G * job.K - panel, 0));
}

struct GroupedScratch {
  int64_t weights, bias, inputs, total;  // bytes before each but the first
};

// Rows [top, bottom) of the input that rows [p0, p0 + rows) of the outputs of all phases read.
struct InputRows {
  int64_t top, bottom;

  static InputRows make(const GroupedJob& job, int64_t p0, int64_t rows) {
    InputRows all = {job.whole.H, 0};
    for (int64_t i = 0; i < job.count(); ++i) {
      const TapConv& phase = job.phases[i];
      const int64_t first = p0 / job.step_h;
      const int64_t count = min64(ceil_div(rows, job.step_h), phase.P - first);
      if (count <= 0 || phase.Q <= 0 || phase.rows.count * phase.cols.count == 0) continue;
      const int64_t origin = first * phase.stride_h + phase.rows.offset;
      all.top = min64(all.top, max64(origin, 0));
      all.bottom = max64(all.bottom, origin + slab_rows(count, phase.stride_h, phase.rows));
    }
    all.bottom = max64(min64(all.bottom, job.whole.H), all.top);
    return all;
  }
};

template <class T>
inline GroupedScratch grouped_scratch(const GroupedJob& job, const GroupedBlocking& b) {
  constexpr int L = kPanel<T>;
  const TapConv& whole = job.whole;
  const int64_t panels = ceil_div(b.channels, L), taps = whole.rows.count * whole.cols.count;
  GroupedScratch s = {};
  s.weights = align64(panels * taps * whole.C * L * sizeof(T));
  s.bias = s.weights + align64(panels * L * sizeof(T));
  int64_t rows = 0;  // of inputs
  for (int64_t band = 0; !b.in_place && band < b.bands; ++band) {
    const InputRows in = InputRows::make(job, band * b.rows, b.rows);
    rows = max64(rows, in.bottom - in.top);
  }
  s.inputs = s.bias + align64(rows * whole.W * L * sizeof(T));
  s.total = s.inputs + (b.in_place ? 0 : align64(b.rows * whole.Q * L * sizeof(T)));
  return s;
}

// Row p of an image's outputs, the channels of a task, where they lie.
template <class T>
inline void grouped_in_place(const TapConv& job, const GroupedBlocking& b,
                             const GroupedPlan<T>& plan, const T* w, const T* bias, int64_t k0,
                             int64_t n, int64_t p) {
  constexpr int W = kW<T>, L = kPanel<T>;
  const int64_t origin = p * job.stride_h + job.rows.offset;
  const int64_t all = job.G * job.K, past = min64(k0 + b.channels, all);
  const int64_t panel = job.rows.count * job.cols.count * job.C * L;
  GroupedRow<T> r = {};
  r.row = job.rows.offset_step * job.xs[2], r.col = job.xs[3];
  r.rows = InsideTaps::make(job.rows, p, 1, job.stride_h, job.H);
  r.y_col = job.ys[3], r.residual_col = job.rs[3];
  const T* x = (const T*)job.x + n * job.xs[0] + origin * job.xs[2] + job.cols.offset * job.xs[3];
  T* y = (T*)job.y + n * job.ys[0] + p * job.ys[2];
  const T* residual = (const T*)job.residual;
  if (residual) residual += n * job.rs[0] + p * job.rs[2];
  for (int64_t q = 0; q < job.Q; q += plan.pixels) {
    const int64_t count = min64(plan.pixels, job.Q - q);
    for (int64_t i = 0, done = k0; done < past; ++i) {
      const int64_t first = panel_start(job, k0 + i * L, L), lanes = min64(all - first, L);
      // The last vector ends with the panel, and may share channels with the one before.
      for (int64_t at = 0; at + W <= lanes; at += max64(min64(W, lanes - W - at), 1)) {
        const int64_t k = first + at;
        if (k + W <= done) continue;
        r.x = x + k, r.y = y + k, r.residual = residual ? residual + k : nullptr;
        r.w = w + i * panel + at, r.bias = bias + i * L + at;
        plan.kernel(job, r, q, count);
        done = k + W;
      }
    }
  }
}

// Rows [p0, p0 + rows) of a phase, a panel of channels: transposed inputs from row `top` on to sums
// of rows `y_row` and pixels `y_col` apart.
template <class T>
inline void grouped_panel(const TapConv& job, const GroupedPlan<T>& plan, const T* w,
                          const T* inputs, int64_t top, T* sums, int64_t y_row, int64_t y_col,
                          int64_t lanes, int64_t p0, int64_t rows) {
  constexpr int W = kW<T>, L = kPanel<T>;
  GroupedRow<T> r = {};
  r.row = job.rows.offset_step * job.W * L, r.col = L, r.y_col = y_col;
  for (int64_t p = 0; p < rows; ++p) {
    const int64_t h = (p0 + p) * job.stride_h + job.rows.offset;
    r.rows = InsideTaps::make(job.rows, p0 + p, 1, job.stride_h, job.H);
    for (int64_t half = 0; half < lanes; half += W) {
      r.x = inputs + ((h - top) * job.W + job.cols.offset) * L + half;
      r.y = sums + p * y_row + half, r.w = w + half;
      for (int64_t q = 0; q < job.Q; q += plan.pixels)
        plan.kernel(job, r, q, min64(plan.pixels, job.Q - q));
    }
  }
}

// Tasks: (part of the channels, image, band of rows).
template <class S>
inline void grouped_run(const GroupedJob& job, const GroupedBlocking& b, void* scratch,
                        int64_t begin, int64_t end) {
  typedef Compute<S> T;
  constexpr int L = kPanel<T>;
  const TapConv& whole = job.whole;
  const GroupedScratch s = grouped_scratch<T>(job, b);
  T* bias = (T*)((char*)scratch + s.weights);
  T *inputs = (T*)((char*)scratch + s.bias), *sums = (T*)((char*)scratch + s.inputs);
  GroupedPlan<T> plans[kMostPhases];
  T* weights[kMostPhases];
  T* next = (T*)scratch;
  for (int64_t i = 0; i < job.count(); ++i) {
    const TapConv& phase = job.phases[i];
    plans[i] = GroupedPlan<T>::make(phase), weights[i] = next;
    next += b.channels / L * phase.rows.count * phase.cols.count * phase.C * L;
  }
  int64_t packed = -1;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t part = task / (whole.N * b.bands), n = task / b.bands % whole.N;
    const int64_t p0 = task % b.bands * b.rows, rows = min64(b.rows, whole.P - p0);
    const int64_t k0 = part * b.channels, lanes = min64(b.channels, whole.G * whole.K - k0);
    for (int64_t i = 0; part != packed && i < job.count(); ++i) {
      const int64_t panel =
          job.phases[i].rows.count * job.phases[i].cols.count * job.phases[i].C * L;
      for (int64_t j = 0; j * L < lanes; ++j) {
        const int64_t k = b.in_place ? panel_start(whole, k0 + j * L, L) : k0 + j * L;
        grouped_weights<S>(job.phases[i], k, weights[i] + j * panel, bias + j * L);
      }
    }
    packed = part;
    if (!b.in_place) {
      const InputRows in = InputRows::make(job, p0, rows);
      const S* x = (const S*)whole.x + n * whole.xs[0] + k0 * whole.xs[1] + in.top * whole.xs[2];
      pack_pixels<S>(inputs, x, whole.xs, in.bottom - in.top, whole.W, lanes, input_end<S>(whole));
      for (int64_t i = 0; i < job.count(); ++i) {
        const int64_t a = i / job.step_w, column = i % job.step_w;
        grouped_panel<T>(job.phases[i], plans[i], weights[i], inputs, in.top,
                         sums + (a * whole.Q + column) * L, job.step_h * whole.Q * L,
                         job.step_w * L, lanes, p0 / job.step_h, ceil_div(rows - a, job.step_h));
      }
      store_panel<S>(channel_store<S>(as_one_group(whole), n, 0, k0, lanes), sums, p0, 0, rows,
                     whole.Q);
      continue;
    }
    if constexpr (sizeof(S) == sizeof(T))
      for (int64_t i = 0; i < job.count(); ++i)
        if (i / job.step_w < rows)
          grouped_in_place<T>(job.phases[i], b, plans[i], weights[i], bias, k0, n, p0 / job.step_h);
  }
}

}  // namespace fastconv::FASTCONV_NS
