// Gradients of pooling, bound by memory: a thread makes V channels of one place of dx from the
// windows that hold it, in their order. Nothing is added by two threads, so there are no atomics
// and no zeros to begin with.
//
// A maximum's gradient is dy where the index is the place's, an average's is dy / divisor.
#pragma once
#include "pool.cuh"

namespace fastconv::cuda {

// Windows (times * place + first) / by to (times * place + last) / by hold a place of an axis.
struct ReaderRule {
  int64_t times, first, last;
  Axis by;
};
inline ReaderRule reader_rule(const PoolAxis& a) {
  if (a.adaptive) return {a.out, 0, a.out - 1, make_axis(a.in)};
  const int64_t reach = a.dil * (a.k - 1);
  return {1, a.pad - reach + a.stride - 1, a.pad, make_axis(a.stride)};
}

struct Readers {
  int64_t first, last;  // [first, last]
  int64_t distance;     // from the first one's origin to the place
};
FASTCONV_DEVICE Readers readers_of(const ReaderRule& rule, const PoolAxis& a, int64_t place) {
  int64_t first = rule.times * place + rule.first, last = rule.times * place + rule.last;
  if (first < 0) first = 0;
  take_remainder(first, rule.by), take_remainder(last, rule.by);
  return {first, last < a.out ? last : a.out - 1, place + a.pad - first * a.stride};
}

// The tap this far from a window's origin; -1 where dilation skips it.
FASTCONV_DEVICE int tap_at(const PoolAxis& a, int64_t distance) {
  if (a.dil == 1) return int(distance);
  const int64_t tap = quotient(distance, a.dil);
  return tap * a.dil == distance ? int(tap) : -1;
}

// I is the index's storage, as in max_pool; NoIndex for averages.
template <class T, int V, class I>
__global__ void __launch_bounds__(kPoolThreads, kPoolBlocks)
    pool_grad(const PoolJob __grid_constant__ params, const PoolOrder __grid_constant__ order,
              const ReaderRule __grid_constant__ row_rule,
              const ReaderRule __grid_constant__ column_rule) {
  constexpr bool kMax = !std::is_same<I, NoIndex>::value;
  using Sum = Compute<T>;
  const PoolAxis &rows = params.p.rows, &cols = params.p.cols;
  const PoolPlace at = pool_place<V>(order, int64_t(blockIdx.x) * kPoolThreads + threadIdx.x);
  if (at.n >= params.p.N) return;
  T* dx = const_cast<T*>(element<T>(params.x, at.n, at.c, at.p, at.q));
  const int64_t place = at.p * cols.in + at.q;
  Readers r = readers_of(row_rule, rows, at.p);
  const Readers s = readers_of(column_rule, cols, at.q);
  const T* dy_row = element<T>(params.y, at.n, at.c, r.first, s.first);
  const I* index_row = kMax ? element<I>(params.index, at.n, at.c, r.first, s.first) : nullptr;
  Sum sum[V] = {};
#pragma unroll 1
  for (int64_t p = r.first; p <= r.last; ++p) {
    const int row_tap = kMax ? tap_at(rows, r.distance) : 0;
    const int64_t counted = kMax ? 0 : window_of(rows, p, params.p.count_include_pad).counted;
    const T* from = dy_row;
    const I* index = index_row;
    int64_t distance = s.distance;
#pragma unroll 1
    for (int64_t q = s.first; q <= s.last; ++q) {
      const auto dy = ptx::ld_global(reinterpret_cast<const Chunk<T, V>*>(from));
      if constexpr (kMax) {
        const auto winner = ptx::ld_global(reinterpret_cast<const Chunk<I, V>*>(index));
        const int column_tap = tap_at(cols, distance);
        // NOTE an index that points outside the plane, or between taps, matches none.
        const bool reads = row_tap >= 0 && column_tap >= 0;
        const I wanted = sizeof(I) == 8 ? I(place) : I(row_tap * int(cols.k) + column_tap);
#pragma unroll
        for (int v = 0; v < V; ++v)
          sum[v] += reads && winner.at[v] == wanted ? widen(dy.at[v]) : Sum(0);
        index += params.index.stride[3], distance -= cols.stride;
      } else {
        const int64_t places = counted * window_of(cols, q, params.p.count_include_pad).counted;
        const Sum scale = Sum(1) / Sum(params.p.divisor != 0 ? params.p.divisor : places);
#pragma unroll
        for (int v = 0; v < V; ++v) sum[v] += widen(dy.at[v]) * scale;
      }
      from += params.y.stride[3];
    }
    dy_row += params.y.stride[2], r.distance -= rows.stride;
    if constexpr (kMax) index_row += params.index.stride[2];
  }
  T out[V];
#pragma unroll
  for (int v = 0; v < V; ++v) out[v] = narrow<T>(sum[v]);
  store_all(dx, out);
}

// y = x at the place that the index names; 0 where that lies outside.
template <class T, class I>
__global__ void __launch_bounds__(kPoolThreads, kPoolBlocks)
    max_pool_gather(const PoolJob __grid_constant__ params,
                    const PoolOrder __grid_constant__ order) {
  const PoolAxis &rows = params.p.rows, &cols = params.p.cols;
  const PoolPlace at = pool_place<1>(order, int64_t(blockIdx.x) * kPoolThreads + threadIdx.x);
  if (at.n >= params.p.N) return;
  const int64_t index = ptx::ld_global(element<I>(params.index, at.n, at.c, at.p, at.q));
  bool inside = index >= 0;
  int64_t h = 0, w = 0;
  if (inside) {
    const int64_t width = sizeof(I) == 8 ? cols.in : cols.k;
    h = quotient(index, width), w = index - h * width;
  }
  if constexpr (sizeof(I) < 8) {
    inside = inside && h < rows.k;
    h = at.p * rows.stride - rows.pad + h * rows.dil;
    w = at.q * cols.stride - cols.pad + w * cols.dil;
  }
  inside = inside && h >= 0 && h < rows.in && w >= 0 && w < cols.in;
  T value = {};
  if (inside) value = ptx::ld_global(element<T>(params.x, at.n, at.c, h, w));
  ptx::st_global(const_cast<T*>(element<T>(params.y, at.n, at.c, at.p, at.q)), value);
}

// ---- Launches ----

template <class T, int V, class I>
Status launch_pool_grad(const PoolJob& c, Stream stream) {
  static const KernelLabel label("%s_pool_grad_%s%s%s",
                                 std::is_same<I, NoIndex>::value ? "avg" : "max", kTypeName<T>,
                                 V > 1 ? "_x16" : "", kIndexName<I>);
  return launch_line(label.text, pool_grad<T, V, I>, elements(c.x) / V, kPoolThreads, kPoolThreads,
                     0, stream, c, pool_order<V>(c.x, pool_channels(c)), reader_rule(c.p.rows),
                     reader_rule(c.p.cols));
}

template <class T>
Status launch_max_pool_grad(const PoolJob& c, Stream stream) {
  switch (c.index_type) {
    case IndexType::window8:
      if (whole_pool_chunks<T>(c)) return launch_pool_grad<T, 16 / sizeof(T), uint8_t>(c, stream);
      return launch_pool_grad<T, 1, uint8_t>(c, stream);
    case IndexType::window32: return launch_pool_grad<T, 1, int32_t>(c, stream);
    default: return launch_pool_grad<T, 1, int64_t>(c, stream);
  }
}

template <class T>
Status launch_avg_pool_grad(const PoolJob& c, Stream stream) {
  if (whole_pool_chunks<T>(c)) return launch_pool_grad<T, 16 / sizeof(T), NoIndex>(c, stream);
  return launch_pool_grad<T, 1, NoIndex>(c, stream);
}

template <class T, class I>
Status launch_max_pool_gather(const PoolJob& c, Stream stream) {
  static const KernelLabel label("max_pool_gather_%s%s", kTypeName<T>, kIndexName<I>);
  return launch_line(label.text, max_pool_gather<T, I>, elements(c.y), kPoolThreads, kPoolThreads,
                     0, stream, c, pool_order<1>(c.y, pool_channels(c)));
}

template <class T>
Status launch_max_pool_gather(const PoolJob& c, Stream stream) {
  switch (c.index_type) {
    case IndexType::window8: return launch_max_pool_gather<T, uint8_t>(c, stream);
    case IndexType::window32: return launch_max_pool_gather<T, int32_t>(c, stream);
    default: return launch_max_pool_gather<T, int64_t>(c, stream);
  }
}

}  // namespace fastconv::cuda
