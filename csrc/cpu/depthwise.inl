// Depthwise convolution one plane at a time, of few channels or several outputs per input; others
// run along channels (grouped.inl). A padded copy whose columns are split by phase (column mod
// stride), so that every tap of a row of outputs is one contiguous vector stream.
namespace fastconv::FASTCONV_NS {

// A plane of the input, padded, its columns split by phase. What follows a row holds anything.
template <class S>
struct PhasePlane {
  Compute<S>* data;
  Phases phases;

  static Phases split(int64_t cols, int64_t stride) {
    return {stride, ceil_div(cols, stride) + kW<Compute<S>>};
  }
  static int64_t elements(int64_t rows, int64_t cols, int64_t stride) {
    return rows * split(cols, stride).size() + kW<Compute<S>>;
  }

  void fill(const S* x, int64_t h_s, int64_t w_s, int64_t H, int64_t W, int64_t row0, int64_t rows,
            int64_t col0, int64_t cols) const {
    const int64_t left = min64(max64(-col0, 0), cols), right = max64(min64(cols, W - col0), left);
    for (int64_t i = 0; i < rows; ++i) {
      Compute<S>* row = data + i * phases.size();
      if (row0 + i < 0 || row0 + i >= H) {
        zero(row, phases.size());
        continue;
      }
      for (int64_t j = 0; j < left; ++j) row[phases.at(j)] = 0;
      split_row<S>(phases, row, left, x + (row0 + i) * h_s + (col0 + left) * w_s, right - left,
                   w_s);
      for (int64_t j = right; j < cols; ++j) row[phases.at(j)] = 0;
    }
  }

  // The value read by output 0 of row `i` through the tap at column offset `j`.
  Compute<S>* at(int64_t i, int64_t j) const { return data + i * phases.size() + phases.at(j); }
};

template <class S>
inline int64_t depthwise_plane_elements(int64_t P, int64_t Q, int64_t stride_h, int64_t stride_w,
                                        const TapAxis& rows, const TapAxis& cols) {
  return PhasePlane<S>::elements(max64(slab_rows(P, stride_h, rows), 1),
                                 max64(slab_rows(Q, stride_w, cols), 1), stride_w);
}

template <class S>
inline int64_t depthwise_scratch(const TapConv& job) {
  typedef Compute<S> T;
  const int64_t taps = job.rows.count * job.cols.count;
  const int64_t plane =
      depthwise_plane_elements<S>(job.P, job.Q, job.stride_h, job.stride_w, job.rows, job.cols);
  return align64(plane * sizeof(T)) + align64(taps * sizeof(int64_t)) + align64(taps * sizeof(T));
}

// Rows [p, p + kRows) of a plane of outputs, columns [q, q + V W): as many sums as hide the latency
// of an FMA (5x5 of 64 channels @28 with AVX2 on Zen 4, one vector of four rows -> two: 201 -> 105
// us). kTaps: rows of taps, where they are neighbours and so are those of outputs: every vector of
// x is read once for all of them (3x3 of 32 channels @56 with AVX-512 78 -> 62, 7x7 of 96 713 ->
// 484); else 0.
template <int kRows, int V, int kTaps, class S>
inline void depthwise_block(const TapConv& job, const PhasePlane<S>& plane, const int64_t* offsets,
                            const Compute<S>* weights, Vec<Compute<S>> bias, int64_t n, int64_t k,
                            int64_t p, int64_t q) {
  typedef Compute<S> T;
  constexpr int W = kW<T>;
  const int64_t taps = job.rows.count * job.cols.count;
  const int64_t down = job.stride_h * plane.phases.size();
  const T* x = plane.data + p * down + q;
  Vec<T> sums[kRows][V];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) sums[i][v] = bias;
  if constexpr (kTaps > 0) {
    for (int64_t j = 0; j < job.cols.count; ++j) {
      Vec<T> tap[kTaps];
#pragma GCC unroll 8
      for (int i = 0; i < kTaps; ++i) tap[i] = broadcast<T>(weights[i * job.cols.count + j]);
#pragma GCC unroll 16
      for (int h = 0; h < kRows + kTaps - 1; ++h)
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) {
          const Vec<T> in = load<T>(x + h * down + offsets[j] + v * W);
#pragma GCC unroll 8
          for (int i = 0; i < kTaps; ++i)
            if (h - i >= 0 && h - i < kRows) fma<T>(sums[h - i][v], in, tap[i]);
        }
    }
  }
  for (int64_t t = 0; kTaps == 0 && t < taps; ++t) {
    const Vec<T> tap = broadcast<T>(weights[t]);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v)
        fma<T>(sums[i][v], load<T>(x + i * down + offsets[t] + v * W), tap);
  }
  const S* residual = (const S*)job.residual;
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      const int64_t column = q + v * W, lanes = min64(W, job.Q - column);
      if (residual) {
        T add[W] = {};
        widen_row<S>(
            add,
            residual + n * job.rs[0] + k * job.rs[1] + (p + i) * job.rs[2] + column * job.rs[3],
            lanes, job.rs[3]);
        sums[i][v] += load<T>(add);
      }
      S* y = (S*)job.y + n * job.ys[0] + k * job.ys[1] + (p + i) * job.ys[2] + column * job.ys[3];
      store_lanes<S>(y, activate<T>(sums[i][v], job.activation), lanes, job.ys[3]);
    }
}

// Up to four rows of pairs of vectors; where a row is one vector, up to eight.
template <int kRows, int kTaps, class S>
inline void depthwise_rows(const TapConv& job, const PhasePlane<S>& plane, const int64_t* offsets,
                           const Compute<S>* weights, Vec<Compute<S>> bias, int64_t n, int64_t k,
                           int64_t p) {
  constexpr int W = kW<Compute<S>>;
  int64_t q = 0;
  if constexpr (kRows <= 4)
    for (; job.Q - q > W; q += 2 * W)
      depthwise_block<kRows, 2, kTaps, S>(job, plane, offsets, weights, bias, n, k, p, q);
  if (q < job.Q)
    depthwise_block<kRows, 1, kTaps, S>(job, plane, offsets, weights, bias, n, k, p, q);
}

template <class S>
inline void depthwise_rows(int64_t rows, const TapConv& job, const PhasePlane<S>& plane,
                           const int64_t* offsets, const Compute<S>* weights, Vec<Compute<S>> bias,
                           int64_t n, int64_t k, int64_t p) {
  if (rows == 4 && job.stride_h == 1 && job.rows.offset_step == 1) switch (job.rows.count) {
      case 3: return depthwise_rows<4, 3, S>(job, plane, offsets, weights, bias, n, k, p);
      case 5: return depthwise_rows<4, 5, S>(job, plane, offsets, weights, bias, n, k, p);
      case 7: return depthwise_rows<4, 7, S>(job, plane, offsets, weights, bias, n, k, p);
    }
  switch (rows) {
    case 1: return depthwise_rows<1, 0, S>(job, plane, offsets, weights, bias, n, k, p);
    case 2: return depthwise_rows<2, 0, S>(job, plane, offsets, weights, bias, n, k, p);
    case 3: return depthwise_rows<3, 0, S>(job, plane, offsets, weights, bias, n, k, p);
    case 4: return depthwise_rows<4, 0, S>(job, plane, offsets, weights, bias, n, k, p);
    case 5: return depthwise_rows<5, 0, S>(job, plane, offsets, weights, bias, n, k, p);
    case 6: return depthwise_rows<6, 0, S>(job, plane, offsets, weights, bias, n, k, p);
    case 7: return depthwise_rows<7, 0, S>(job, plane, offsets, weights, bias, n, k, p);
    default: return depthwise_rows<8, 0, S>(job, plane, offsets, weights, bias, n, k, p);
  }
}

template <class S>
inline void depthwise_plane(const TapConv& job, const PhasePlane<S>& plane, const int64_t* offsets,
                            Compute<S>* weights, int64_t n, int64_t k) {
  typedef Compute<S> T;
  const int64_t g = k / job.K;
  if (job.rows.count > 0 && job.cols.count > 0)
    plane.fill((const S*)job.x + n * job.xs[0] + g * job.xs[1], job.xs[2], job.xs[3], job.H, job.W,
               job.rows.offset, slab_rows(job.P, job.stride_h, job.rows), job.cols.offset,
               slab_rows(job.Q, job.stride_w, job.cols));
  const S* w = (const S*)job.w + g * job.ws[0] + k % job.K * job.ws[1];
  for (int64_t i = 0; i < job.rows.count; ++i)
    widen_row<S>(
        weights + i * job.cols.count,
        w + (job.rows.index + i * job.rows.index_step) * job.ws[3] + job.cols.index * job.ws[4],
        job.cols.count, job.cols.index_step * job.ws[4]);
  const Vec<T> bias = broadcast<T>(job.bias ? widen(((const S*)job.bias)[k * job.bias_s]) : T(0));
  const int64_t most = even_share(job.P, job.Q > kW<T> ? 4 : 8);
  for (int64_t p = 0; p < job.P; p += most)
    depthwise_rows<S>(min64(most, job.P - p), job, plane, offsets, weights, bias, n, k, p);
}

// Tasks: (image, output channel).
template <class S>
inline void depthwise_run(const TapConv& job, void* scratch, int64_t begin, int64_t end) {
  typedef Compute<S> T;
  const int64_t elements =
      depthwise_plane_elements<S>(job.P, job.Q, job.stride_h, job.stride_w, job.rows, job.cols);
  const int64_t columns = slab_rows(job.Q, job.stride_w, job.cols);
  const PhasePlane<S> plane = {(T*)scratch, PhasePlane<S>::split(columns, job.stride_w)};
  int64_t* offsets = (int64_t*)((char*)scratch + align64(elements * sizeof(T)));
  T* weights = (T*)((char*)offsets + align64(job.rows.count * job.cols.count * sizeof(int64_t)));
  for (int64_t i = 0; i < job.rows.count; ++i)
    for (int64_t j = 0; j < job.cols.count; ++j)
      offsets[i * job.cols.count + j] =
          plane.at(i * job.rows.offset_step, j * job.cols.offset_step) - plane.data;
  const int64_t channels = job.G * job.K;
  for (int64_t task = begin; task < end; ++task)
    depthwise_plane<S>(job, plane, offsets, weights, task / channels, task % channels);
}

}  // namespace fastconv::FASTCONV_NS
