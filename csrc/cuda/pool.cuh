// Max and average pooling, bound by memory: a thread reads its window through the caches and writes
// V channels of one output, 16 bytes where the layout has whole chunks of channels.
//
// Averages of large windows (global ones, say) share a window among the lanes of a block, whose
// sums are added in a fixed order.
#pragma once
#include <math.h>

#include <type_traits>

#include "pool_args.cuh"
#include "storage.cuh"

namespace fastconv::cuda {

// Budget: 64 registers for 4 blocks on an SM; no spills.
constexpr int kPoolThreads = 256, kPoolBlocks = 4;

struct NoIndex {};
template <class I>
constexpr const char* kIndexName = "";
template <>
inline constexpr const char* kIndexName<uint8_t> = "_u8";
template <>
inline constexpr const char* kIndexName<int32_t> = "_i32";
template <>
inline constexpr const char* kIndexName<int64_t> = "_i64";

// Whether every operand has the channels of a pixel next to each other.
inline bool pool_channels(const PoolJob& c) {
  return c.x.stride[1] == 1 && c.y.stride[1] == 1 && c.p.C > 1 &&
         (c.index_type == IndexType::none || c.index.stride[1] == 1);
}
// And whole chunks of 16 bytes of them, whose places in the index are whole chunks too.
template <class T>
bool whole_pool_chunks(const PoolJob& c) {
  constexpr int V = 16 / sizeof(T);
  return pool_channels(c) && whole_chunks(c.x, V, sizeof(T)) && whole_chunks(c.y, V, sizeof(T)) &&
         (c.index_type == IndexType::none || whole_chunks(c.index, V, 1));
}

// What is written, in the order of memory: channels innermost, V at a time, or columns.
struct PoolOrder {
  Axis chunks, channels, cols, rows;
  bool last;  // channels are
};
template <int V>
PoolOrder pool_order(const View& written, bool last) {
  return {make_axis(written.size[1] / V), make_axis(written.size[1]), make_axis(written.size[3]),
          make_axis(written.size[2]), last};
}
inline int64_t elements(const View& v) { return v.size[0] * v.size[1] * v.size[2] * v.size[3]; }

template <class Int>
struct PoolPlace {
  Int n, c, p, q;
};
template <int V, class Int>
FASTCONV_DEVICE PoolPlace<Int> pool_place(const PoolOrder& order, int each, int thread) {
  Int i = Int(blockIdx.x) * each + thread;
  PoolPlace<Int> at;
  const bool last = V > 1 || order.last;
  at.c = last ? take_remainder(i, order.chunks) * V : 0;
  at.q = take_remainder(i, order.cols);
  at.p = take_remainder(i, order.rows);
  if (!last) at.c = take_remainder(i, order.channels);
  at.n = i;
  return at;
}

template <class Int>
struct Taps {
  Int origin;
  int first, last;  // those of the window that lie inside the input: [first, last)
};
template <class Int>
FASTCONV_DEVICE Taps<Int> taps_inside(const PoolWindows<Int>& a, Int p) {
  Taps<Int> t;
  t.origin = p * a.stride - a.pad;
  const Int before = t.origin < 0 ? -t.origin : 0;
  const Int end = t.origin < a.in ? a.in - t.origin : 0;
  t.first = int(a.dil == 1 ? before : ceil_quotient(before, a.dil));
  const Int last = a.dil == 1 ? end : ceil_quotient(end, a.dil);
  t.last = int(last < a.k ? last : a.k);
  return t;
}

// I is the index's storage; int64_t holds h * W + w, smaller ones r * S + s.
template <class T, int V, class I, class Int>
__global__ void __launch_bounds__(kPoolThreads, kPoolBlocks)
    max_pool(const PoolArgs<Int> __grid_constant__ params,
             const PoolOrder __grid_constant__ order) {
  constexpr bool kIndex = !std::is_same<I, NoIndex>::value;
  constexpr int kAtOnce = 3;  // columns whose loads are under way together
  using Vector = Chunk<T, V>;
  const PoolWindows<Int>&rows = params.rows, &cols = params.cols;
  const PoolPlace<Int> at = pool_place<V, Int>(order, kPoolThreads, threadIdx.x);
  if (at.n >= params.N) return;
  const Taps<Int> r = taps_inside(rows, at.p), s = taps_inside(cols, at.q);
  const bool empty = r.first >= r.last || s.first >= s.last;
  const int S = int(cols.k);
  Compute<T> best[V];
  int place[V];
#pragma unroll
  for (int v = 0; v < V; ++v) {
    best[v] = -Compute<T>(INFINITY);
    place[v] = empty ? 0 : r.first * S + s.first;
  }
  const Int step_r = rows.dil * params.x.stride[2], step_s = cols.dil * params.x.stride[3];
  const T* row = element<T>(params.x, at.n, at.c, r.origin + r.first * rows.dil,
                            s.origin + s.first * cols.dil);
#pragma unroll 1
  for (int i = r.first; i < r.last; ++i, row += step_r) {
    const T* from = row;
#pragma unroll 1
    for (int j = s.first; j < s.last; j += kAtOnce) {
      Vector values[kAtOnce];
#pragma unroll
      for (int e = 0; e < kAtOnce; ++e, from += step_s)
        if (j + e < s.last) values[e] = ptx::ld_global(reinterpret_cast<const Vector*>(from));
#pragma unroll
      for (int e = 0; e < kAtOnce; ++e) {
        if (j + e >= s.last) break;
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const Compute<T> value = widen(values[e].at[v]);
          const bool wins = value > best[v] || value != value;
          best[v] = wins ? value : best[v];
          if constexpr (kIndex) place[v] = wins ? i * S + j + e : place[v];
        }
      }
    }
  }
  T out[V];
#pragma unroll
  for (int v = 0; v < V; ++v) out[v] = narrow<T>(best[v]);
  store_all(const_cast<T*>(element<T>(params.y, at.n, at.c, at.p, at.q)), out);
  if constexpr (kIndex) {
    I index[V];
#pragma unroll
    for (int v = 0; v < V; ++v) {
      if constexpr (sizeof(I) == 8) {
        const int tap_r = place[v] / S, tap_s = place[v] - tap_r * S;
        index[v] =
            empty ? 0 : (r.origin + tap_r * rows.dil) * cols.in + s.origin + tap_s * cols.dil;
      } else {
        index[v] = I(place[v]);
      }
    }
    store_all(const_cast<I*>(element<I>(params.index, at.n, at.c, at.p, at.q)), index);
  }
}

template <class Int>
struct Window {
  Int first, last;  // places inside the input: [first, last)
  Int counted;      // the axis' factor of the divisor
};
template <class Int>
FASTCONV_DEVICE Window<Int> window_of(const PoolWindows<Int>& a, Int p, bool count_include_pad) {
  Window<Int> w;
  if (a.adaptive) {
    w.first = quotient(p * a.in, a.out), w.last = ceil_quotient((p + 1) * a.in, a.out);
    w.counted = w.last - w.first;
    return w;
  }
  const Int origin = p * a.stride - a.pad, end = origin + a.k;
  w.first = origin < 0 ? 0 : origin < a.in ? origin : a.in;
  w.last = end < w.first ? w.first : end < a.in ? end : a.in;
  const Int padded = end < a.in + a.pad ? end : a.in + a.pad;
  w.counted = count_include_pad ? padded - origin : w.last - w.first;
  return w;
}

// `lanes` threads, a power of two, share an output: neighbours in a block are neighbours in memory.
template <class T, int V, class Int>
__global__ void __launch_bounds__(kPoolThreads, kPoolBlocks)
    avg_pool(const PoolArgs<Int> __grid_constant__ params, const PoolOrder __grid_constant__ order,
             int lanes) {
  using Sum = Compute<T>;
  const int t = threadIdx.x, outputs = kPoolThreads / lanes;
  const int lane = order.last ? t / outputs : t % lanes,
            output = order.last ? t % outputs : t / lanes;
  const PoolPlace<Int> at = pool_place<V, Int>(order, outputs, output);
  const bool exists = at.n < params.N;
  const Window<Int> h = window_of(params.rows, at.p, params.count_include_pad);
  const Window<Int> w = window_of(params.cols, at.q, params.count_include_pad);
  const int width = int(w.last - w.first);
  const int height = exists && width > 0 ? int(h.last - h.first) : 0;

  // A lane takes every lanes-th place; row and column advance without a division.
  const int rows_on = width > 0 ? lanes / width : 0, columns_on = lanes - rows_on * width;
  int row = width > 0 ? lane / width : 0, column = lane - row * width;
  const T* from = element<T>(params.x, at.n, at.c, h.first, w.first);
  Sum total[V] = {};
#pragma unroll 1
  while (row < height) {
    Sum part[V] = {};  // of few terms, for the sake of float's error
#pragma unroll 4
    for (int i = 0; i < 16 && row < height; ++i) {
      const auto values = ptx::ld_global(reinterpret_cast<const Chunk<T, V>*>(
          from + row * params.x.stride[2] + column * params.x.stride[3]));
#pragma unroll
      for (int v = 0; v < V; ++v) part[v] += widen(values.at[v]);
      row += rows_on, column += columns_on;
      if (column >= width) column -= width, ++row;
    }
#pragma unroll
    for (int v = 0; v < V; ++v) total[v] += part[v];
  }

  if (lanes > 1) {
    const uint32_t sums = ptx::shared_address(shared_memory());
    auto slot = [&](int v, int thread) {
      return sums + (v * kPoolThreads + thread) * uint32_t(sizeof(Sum));
    };
#pragma unroll 1
    for (int half = lanes / 2; half > 0; half /= 2) {
      if (lane >= half && lane < 2 * half)
#pragma unroll
        for (int v = 0; v < V; ++v) ptx::st_shared(slot(v, t), total[v]);
      __syncthreads();
      if (lane < half)
#pragma unroll
        for (int v = 0; v < V; ++v)
          total[v] += ptx::ld_shared<Sum>(slot(v, t + half * (order.last ? outputs : 1)));
    }
    if (lane > 0) return;
  }
  if (!exists) return;
  const Int counted = h.counted * w.counted;
  const Sum divisor = params.divisor != 0 ? Sum(params.divisor) : Sum(counted > 1 ? counted : 1);
  T out[V];
#pragma unroll
  for (int v = 0; v < V; ++v) out[v] = narrow<T>(total[v] / divisor);
  store_all(const_cast<T*>(element<T>(params.y, at.n, at.c, at.p, at.q)), out);
}

// ---- Launches ----

template <class T, int V, class I>
Status launch_max_pool(const PoolJob& c, Stream stream) {
  return for_pool_int(c, [&](auto zero) {
    using Int = decltype(zero);
    static const KernelLabel label("%smax_pool_%s%s%s", kWideName<Int>, kTypeName<T>,
                                   V > 1 ? "_x16" : "", kIndexName<I>);
    return launch_line(label.text, max_pool<T, V, I, Int>, elements(c.y) / V, kPoolThreads,
                       kPoolThreads, 0, stream, pool_args<Int>(c),
                       pool_order<V>(c.y, pool_channels(c)));
  });
}

// Wide accesses for what training and inference use; the caller's own indices are wide by nature.
template <class T>
Status launch_max_pool(const PoolJob& c, Stream stream) {
  constexpr int V = 16 / sizeof(T);
  const bool wide = whole_pool_chunks<T>(c);
  switch (c.index_type) {
    case IndexType::none:
      if (wide) return launch_max_pool<T, V, NoIndex>(c, stream);
      return launch_max_pool<T, 1, NoIndex>(c, stream);
    case IndexType::window8:
      if (wide) return launch_max_pool<T, V, uint8_t>(c, stream);
      return launch_max_pool<T, 1, uint8_t>(c, stream);
    case IndexType::window32: return launch_max_pool<T, 1, int32_t>(c, stream);
    default: return launch_max_pool<T, 1, int64_t>(c, stream);
  }
}

template <class T, int V>
Status launch_avg_pool(const PoolJob& c, int lanes, Stream stream) {
  const int bytes = lanes > 1 ? V * kPoolThreads * int(sizeof(Compute<T>)) : 0;
  return for_pool_int(c, [&](auto zero) {
    using Int = decltype(zero);
    static const KernelLabel label("%savg_pool_%s%s", kWideName<Int>, kTypeName<T>,
                                   V > 1 ? "_x16" : "");
    return launch_line(label.text, avg_pool<T, V, Int>, elements(c.y) / V, kPoolThreads / lanes,
                       kPoolThreads, bytes, stream, pool_args<Int>(c),
                       pool_order<V>(c.y, pool_channels(c)), lanes);
  });
}

// Lanes that share a window: none where it is small; as many as keep four places each, or 32 where
// places lie next to each other in memory.
inline int avg_pool_lanes(const PoolProblem& p, bool channels) {
  auto extent = [](const PoolAxis& a) { return a.adaptive ? (a.in + a.out - 1) / a.out : a.k; };
  if (p.rows.out == 0 || p.cols.out == 0) return 1;
  const int64_t places = extent(p.rows) * extent(p.cols);
  if (places < 32) return 1;
  int lanes = 32;
  while (channels && 4 * lanes > places) lanes /= 2;
  return lanes;
}

template <class T>
Status launch_avg_pool(const PoolJob& c, Stream stream) {
  const int lanes = avg_pool_lanes(c.p, pool_channels(c));
  if (whole_pool_chunks<T>(c)) return launch_avg_pool<T, 16 / sizeof(T)>(c, lanes, stream);
  return launch_avg_pool<T, 1>(c, lanes, stream);
}

}  // namespace fastconv::cuda
