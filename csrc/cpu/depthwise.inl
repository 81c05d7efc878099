// Depthwise convolution (one input channel per group): bound by memory, no register tile.
//
// Channel-last, one output per input channel: vectors along channels, taps clipped at the edges,
// nothing copied. Otherwise one plane at a time: a padded copy whose columns are split by phase
// (column mod stride), so that every tap of a row of outputs is one contiguous vector stream.
namespace fastconv::FASTCONV_NS {

struct Taps {
  int64_t first, last;  // the taps [first, last) that fall inside the input
};

// Taps of one axis inside [0, size) for the output whose tap 0 lies at `origin`.
inline Taps taps_inside(const TapAxis& axis, int64_t origin, int64_t size) {
  Taps t = {0, axis.count};
  while (t.first < axis.count && origin + t.first * axis.offset_step < 0) ++t.first;
  while (t.last > t.first && origin + (t.last - 1) * axis.offset_step >= size) --t.last;
  return t;
}

// v[k] += x[k * kStride + j] * w[j] for three neighbouring taps; each x is read once.
template <int kPixels, int kStride, class S>
FASTCONV_INLINE void add_three_taps(Vec<Compute<S>> (&v)[kPixels], const S* x, int64_t x_step,
                                    const Compute<S>* w, int64_t w_step) {
  typedef Compute<S> T;
  const Vec<T> tap[3] = {load<T>(w), load<T>(w + w_step), load<T>(w + 2 * w_step)};
#pragma GCC unroll 16
  for (int m = 0; m < (kPixels - 1) * kStride + 3; ++m) {
    const Vec<T> value = load_widened<S>(x + m * x_step);
#pragma GCC unroll 3
    for (int j = 0; j < 3; ++j)
      if (m >= j && (m - j) % kStride == 0 && (m - j) / kStride < kPixels)
        fma<T>(v[(m - j) / kStride], value, tap[j]);
  }
}

// kPixels neighbours of a row, which have the same taps inside, every channel; w is [tap][G], bias
// [G], both with room for a vector after them.
template <int kPixels, class S>
inline void depthwise_pixels(const TapConv& job, const Compute<S>* w, const Compute<S>* bias,
                             const Taps& rows, const Taps& cols, int64_t n, int64_t p, int64_t q) {
  typedef Compute<S> T;
  constexpr int W = kW<T>;
  const int64_t step = job.stride_w * job.xs[3];
  const S* x = (const S*)job.x + n * job.xs[0] + (p * job.stride_h + job.rows.offset) * job.xs[2] +
               (q * job.stride_w + job.cols.offset) * job.xs[3];
  S* y = (S*)job.y + n * job.ys[0] + p * job.ys[2] + q * job.ys[3];
  const S* residual = job.residual
                          ? (const S*)job.residual + n * job.rs[0] + p * job.rs[2] + q * job.rs[3]
                          : nullptr;
  for (int64_t c = 0; c < job.G; c += W) {
    const int64_t lanes = min64(W, job.G - c);
    Vec<T> v[kPixels];
#pragma GCC unroll 6
    for (int k = 0; k < kPixels; ++k) v[k] = load<T>(bias + c);
    const bool three = kPixels > 1 && lanes == W && cols.last - cols.first == 3 &&
                       job.cols.offset_step == 1 && job.stride_w <= 2;
    for (int64_t i = rows.first; i < rows.last; ++i) {
      const S* row = x + c + i * job.rows.offset_step * job.xs[2];
      const T* tap_row = w + i * job.cols.count * job.G + c;
      if (three) {
        if (job.stride_w == 1)
          add_three_taps<kPixels, 1, S>(v, row, job.xs[3], tap_row, job.G);
        else
          add_three_taps<kPixels, 2, S>(v, row, job.xs[3], tap_row, job.G);
        continue;
      }
      for (int64_t j = cols.first; j < cols.last; ++j) {
        const S* from = row + j * job.cols.offset_step * job.xs[3];
        const Vec<T> tap = load<T>(tap_row + j * job.G);
#pragma GCC unroll 6
        for (int k = 0; k < kPixels; ++k) fma<T>(v[k], load_lanes<S>(from + k * step, lanes), tap);
      }
    }
#pragma GCC unroll 6
    for (int k = 0; k < kPixels; ++k) {
      if (residual) {
        T add[W] = {};
        widen_row<S>(add, residual + k * job.rs[3] + c * job.rs[1], lanes, job.rs[1]);
        v[k] += load<T>(add);
      }
      store_lanes<S>(y + k * job.ys[3] + c, activate<T>(v[k], job.activation), lanes, 1);
    }
  }
}

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
  const int64_t channels = (taps * job.G + job.G + 2 * kW<T>)*sizeof(T);
  const int64_t plane =
      depthwise_plane_elements<S>(job.P, job.Q, job.stride_h, job.stride_w, job.rows, job.cols);
  return align64(channels) + align64(plane * sizeof(T)) + align64(taps * sizeof(int64_t)) +
         align64(taps * sizeof(T));
}

template <class S>
inline void depthwise_channel_rows(const TapConv& job, void* scratch, int64_t begin, int64_t end) {
  typedef Compute<S> T;
  T* w = (T*)scratch;
  T* bias = w + job.rows.count * job.cols.count * job.G + kW<T>;
  for (int64_t i = 0; i < job.rows.count; ++i)
    for (int64_t j = 0; j < job.cols.count; ++j)
      widen_row<S>(w + (i * job.cols.count + j) * job.G,
                   (const S*)job.w + (job.rows.index + i * job.rows.index_step) * job.ws[3] +
                       (job.cols.index + j * job.cols.index_step) * job.ws[4],
                   job.G, job.ws[0]);
  if (job.bias)
    widen_row<S>(bias, (const S*)job.bias, job.G, job.bias_s);
  else
    zero(bias, job.G);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t n = task / job.P, p = task % job.P;
    const Taps rows = taps_inside(job.rows, p * job.stride_h + job.rows.offset, job.H);
    auto cols_of = [&](int64_t q) {
      return taps_inside(job.cols, q * job.stride_w + job.cols.offset, job.W);
    };
    for (int64_t q = 0; q < job.Q;) {
      constexpr int kPixels = 6;
      const Taps cols = cols_of(q);
      const bool whole = cols.first == 0 && cols.last == job.cols.count;
      if (whole && q + kPixels <= job.Q && cols_of(q + kPixels - 1).last == job.cols.count) {
        depthwise_pixels<kPixels, S>(job, w, bias, rows, cols, n, p, q);
        q += kPixels;
      } else {
        depthwise_pixels<1, S>(job, w, bias, rows, cols, n, p, q);
        ++q;
      }
    }
  }
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

// Tasks: (image, output row) channel-last, (image, output channel) otherwise.
template <class S>
inline void depthwise_run(const TapConv& job, void* scratch, int64_t begin, int64_t end) {
  typedef Compute<S> T;
  if (depthwise_channels(job)) return depthwise_channel_rows<S>(job, scratch, begin, end);
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
