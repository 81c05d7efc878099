// Gradients of pooling, bound by memory: a thread makes V channels of one place of dx from the
// windows that hold it, in their order; of 2x2/2 and 3x3/2, of the four places that share windows.
// Nothing is added by two threads, so there are no atomics and no zeros to begin with.
//
// A maximum's gradient is dy where the index is the place's, an average's is dy / divisor.
#pragma once
#include "pool.cuh"

namespace fastconv::cuda {

// Windows (times * place + first) / by to (times * place + last) / by hold a place of an axis.
template <class Int>
struct ReaderRule {
  Int times, first, last;
  Axis by;
};
template <class Int>
ReaderRule<Int> reader_rule(const PoolAxis& a) {
  if (a.adaptive) return {Int(a.out), 0, Int(a.out - 1), make_axis(a.in)};
  const int64_t reach = a.dil * (a.k - 1);
  return {1, Int(a.pad - reach + a.stride - 1), Int(a.pad), make_axis(a.stride)};
}

template <class Int>
struct Readers {
  Int first, last;  // [first, last]
  Int distance;     // from the first one's origin to the place
};
template <class Int>
FASTCONV_DEVICE Readers<Int> readers_of(const ReaderRule<Int>& rule, const PoolWindows<Int>& a,
                                        Int place) {
  Int first = rule.times * place + rule.first, last = rule.times * place + rule.last;
  if (first < 0) first = 0;
  take_remainder(first, rule.by), take_remainder(last, rule.by);
  return {first, last < a.out ? last : a.out - 1, place + a.pad - first * a.stride};
}

// The tap this far from a window's origin; -1 where dilation skips it.
template <class Int>
FASTCONV_DEVICE int tap_at(const PoolWindows<Int>& a, Int distance) {
  if (a.dil == 1) return int(distance);
  const Int tap = quotient(distance, a.dil);
  return tap * a.dil == distance ? int(tap) : -1;
}

// What is loaded of a chunk, as words where it has whole ones: a value that may not be loaded is
// then a choice of words, not of elements.
template <int kBytes>
struct alignas(kBytes) Words {
  uint32_t at[kBytes / 4];
};
template <class C>
using Loaded = typename std::conditional<sizeof(C) % 4 == 0, Words<sizeof(C)>, C>::type;

// Adds dy where the index is the one wanted. Bytes are compared four to a word.
template <class T, class I, int V, class Dy, class Winner>
FASTCONV_DEVICE void add_winners(Compute<T> (&sum)[V], const Dy& loaded, const Winner& winner,
                                 I wanted) {
  Chunk<T, V> dy;
  memcpy(&dy, &loaded, sizeof dy);
  if constexpr (sizeof(I) == 1 && V % 4 == 0) {
    Words<V> words;
    memcpy(&words, &winner, V);
#pragma unroll
    for (int v = 0; v < V; v += 4) {
      uint32_t differs = words.at[v / 4] ^ wanted * 0x01010101u;
      ptx::keep(differs);  // compared with zero a byte is one instruction, with a constant two
#pragma unroll
      for (int e = 0; e < 4; ++e)
        if ((differs & 0xffu << 8 * e) == 0) sum[v + e] += widen(dy.at[v + e]);
    }
  } else {
    Chunk<I, V> index;
    memcpy(&index, &winner, sizeof index);
#pragma unroll
    for (int v = 0; v < V; ++v)
      if (index.at[v] == wanted) sum[v] += widen(dy.at[v]);
  }
}

// Of any windows: one after the other.
template <class T, int V, class I, class Int>
FASTCONV_DEVICE void add_readers(Compute<T> (&sum)[V], const PoolArgs<Int>& params,
                                 const PoolPlace<Int>& at, const ReaderRule<Int>& row_rule,
                                 const ReaderRule<Int>& column_rule) {
  constexpr bool kMax = !std::is_same<I, NoIndex>::value;
  using Sum = Compute<T>;
  const PoolWindows<Int>&rows = params.rows, &cols = params.cols;
  Readers<Int> r = readers_of(row_rule, rows, at.p);
  const Readers<Int> s = readers_of(column_rule, cols, at.q);
  const T* dy_row = element<T>(params.y, at.n, at.c, r.first, s.first);
  const I* index_row = kMax ? element<I>(params.index, at.n, at.c, r.first, s.first) : nullptr;
#pragma unroll 1
  for (Int p = r.first; p <= r.last; ++p) {
    const int row_tap = kMax ? tap_at(rows, r.distance) : 0;
    const Int counted = kMax ? 0 : window_of(rows, p, params.count_include_pad).counted;
    const T* from = dy_row;
    const I* index = index_row;
    Int distance = s.distance;
#pragma unroll 1
    for (Int q = s.first; q <= s.last; ++q) {
      const auto dy = ptx::ld_global(reinterpret_cast<const Chunk<T, V>*>(from));
      if constexpr (kMax) {
        const auto winner = ptx::ld_global(reinterpret_cast<const Chunk<I, V>*>(index));
        const int column_tap = tap_at(cols, distance);
        // NOTE an index that points outside the plane, or between taps, matches none.
        const I wanted =
            sizeof(I) == 8 ? I(at.p * cols.in + at.q) : I(row_tap * int(cols.k) + column_tap);
        if (row_tap >= 0 && column_tap >= 0) add_winners<T>(sum, dy, winner, wanted);
        index += params.index.stride[3], distance -= cols.stride;
      } else {
        const Int places = counted * window_of(cols, q, params.count_include_pad).counted;
        const Sum scale = Sum(1) / (params.divisor != 0 ? Sum(params.divisor) : Sum(places));
#pragma unroll
        for (int v = 0; v < V; ++v) sum[v] += widen(dy.at[v]) * scale;
      }
      from += params.y.stride[3];
    }
    dy_row += params.y.stride[2], r.distance -= rows.stride;
    if constexpr (kMax) index_row += params.index.stride[2];
  }
}

// I is the index's storage, as in max_pool; NoIndex for averages.
template <class T, int V, class I, class Int>
__global__ void __launch_bounds__(kPoolThreads, kPoolBlocks)
    pool_grad(const PoolArgs<Int> __grid_constant__ params, const PoolOrder __grid_constant__ order,
              const ReaderRule<Int> __grid_constant__ row_rule,
              const ReaderRule<Int> __grid_constant__ column_rule) {
  const PoolPlace<Int> at = pool_place<V, Int>(order, kPoolThreads, threadIdx.x);
  if (at.n >= params.N) return;
  Compute<T> sum[V] = {};
  add_readers<T, V, I>(sum, params, at, row_rule, column_rule);
  T out[V];
#pragma unroll
  for (int v = 0; v < V; ++v) out[v] = narrow<T>(sum[v]);
  store_all(const_cast<T*>(element<T>(params.x, at.n, at.c, at.p, at.q)), out);
}

// Of maxima of kK x kK places, 2 or 3, every two: a thread makes the four places that window (p, q)
// and none after it holds first, from that window and (kK == 3) those before it, all of whose loads
// are on their way at once. With at = place + pad, the places of window p are at = 2p and 2p + 1,
// taps 0 and 1; of the window before it 2p is tap 2.
template <class T, int V, int kK>
__global__ void __launch_bounds__(kPoolThreads, kPoolBlocks)
    max_pool_grad_by_two(const PoolArgs<int32_t> __grid_constant__ params,
                         const PoolOrder __grid_constant__ order) {
  constexpr int kWindows = kK - 1;  // of an axis
  using Dy = Loaded<Chunk<T, V>>;
  using Winner = Loaded<Chunk<uint8_t, V>>;
  const PoolWindows<int32_t>&rows = params.rows, &cols = params.cols;
  const PoolPlace<int32_t> at = pool_place<V, int32_t>(order, kPoolThreads, threadIdx.x);
  if (at.n >= params.N) return;
  const int p = at.p + rows.pad / 2, q = at.q + cols.pad / 2;
  const T* const dy_last = static_cast<const T*>(params.y.data);
  const uint8_t* const index_last = static_cast<const uint8_t*>(params.index.data);
  Dy dy[kWindows][kWindows];  // not read where the window is not there, as no winner is wanted
  Winner winner[kWindows][kWindows];
#pragma unroll
  for (int i = 0; i < kWindows; ++i)
#pragma unroll
    for (int j = 0; j < kWindows; ++j) {
      memset(&winner[i][j], 0xff, sizeof(Winner));
      if (uint32_t(p - i) >= uint32_t(rows.out) || uint32_t(q - j) >= uint32_t(cols.out)) continue;
      const uint32_t from = offset_of(params.y, at.n, at.c, p - i, q - j);
      const uint32_t index = offset_of(params.index, at.n, at.c, p - i, q - j);
      dy[i][j] = ptx::ld_global(reinterpret_cast<const Dy*>(dy_last + from));
      winner[i][j] = ptx::ld_global(reinterpret_cast<const Winner*>(index_last + index));
    }
#pragma unroll
  for (int e = 0; e < 2; ++e)
#pragma unroll
    for (int f = 0; f < 2; ++f) {
      const int h = 2 * p + e - rows.pad, w = 2 * q + f - cols.pad;
      if (uint32_t(h) >= uint32_t(rows.in) || uint32_t(w) >= uint32_t(cols.in)) continue;
      Compute<T> sum[V] = {};
#pragma unroll
      for (int i = kWindows - 1; i >= 0; --i)
#pragma unroll
        for (int j = kWindows - 1; j >= 0; --j) {
          const int r = e + 2 * i, s = f + 2 * j;
          if (r < kK && s < kK) add_winners<T>(sum, dy[i][j], winner[i][j], uint8_t(r * kK + s));
        }
      T out[V];
#pragma unroll
      for (int v = 0; v < V; ++v) out[v] = narrow<T>(sum[v]);
      store_all(const_cast<T*>(element<T>(params.x, at.n, at.c, h, w)), out);
    }
}

// y = x at the place that the index names; 0 where that lies outside.
template <class T, class I, class Int>
__global__ void __launch_bounds__(kPoolThreads, kPoolBlocks)
    max_pool_gather(const PoolArgs<Int> __grid_constant__ params,
                    const PoolOrder __grid_constant__ order) {
  const PoolWindows<Int>&rows = params.rows, &cols = params.cols;
  const PoolPlace<Int> at = pool_place<1, Int>(order, kPoolThreads, threadIdx.x);
  if (at.n >= params.N) return;
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
  return for_pool_int(c, [&](auto zero) {
    using Int = decltype(zero);
    static const KernelLabel label("%s%s_pool_grad_%s%s%s", kWideName<Int>,
                                   std::is_same<I, NoIndex>::value ? "avg" : "max", kTypeName<T>,
                                   V > 1 ? "_x16" : "", kIndexName<I>);
    return launch_line(label.text, pool_grad<T, V, I, Int>, elements(c.x) / V, kPoolThreads,
                       kPoolThreads, 0, stream, pool_args<Int>(c),
                       pool_order<V>(c.x, pool_channels(c)), reader_rule<Int>(c.p.rows),
                       reader_rule<Int>(c.p.cols));
  });
}

template <class T, int V, int kK>
Status launch_max_pool_grad_by_two(const PoolJob& c, Stream stream) {
  static const KernelLabel label("by_two_%dx%d_max_pool_grad_%s%s_u8", kK, kK, kTypeName<T>,
                                 V > 1 ? "_x16" : "");
  auto windows = [](const PoolAxis& a) { return (a.in - 1 + a.pad) / 2 - a.pad / 2 + 1; };
  View blocks = c.x;
  blocks.size[2] = windows(c.p.rows), blocks.size[3] = windows(c.p.cols);
  return launch_line(label.text, max_pool_grad_by_two<T, V, kK>, elements(blocks) / V, kPoolThreads,
                     kPoolThreads, 0, stream, pool_args<int32_t>(c),
                     pool_order<V>(blocks, pool_channels(c)));
}
template <class T, int V>
Status launch_max_pool_grad_bytes(const PoolJob& c, Stream stream) {
  auto is = [&](int64_t k) {
    const PoolAxis &rows = c.p.rows, &cols = c.p.cols;
    return rows.k == k && cols.k == k && rows.stride == 2 && cols.stride == 2 && rows.dil == 1 &&
           cols.dil == 1 && pool_fits_32_bits(c);
  };
  if (is(2)) return launch_max_pool_grad_by_two<T, V, 2>(c, stream);
  if (is(3)) return launch_max_pool_grad_by_two<T, V, 3>(c, stream);
  return launch_pool_grad<T, V, uint8_t>(c, stream);
}

template <class T>
Status launch_max_pool_grad(const PoolJob& c, Stream stream) {
  switch (c.index_type) {
    case IndexType::window8:
      if (whole_pool_chunks<T>(c)) return launch_max_pool_grad_bytes<T, 16 / sizeof(T)>(c, stream);
      return launch_max_pool_grad_bytes<T, 1>(c, stream);
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
  return for_pool_int(c, [&](auto zero) {
    using Int = decltype(zero);
    static const KernelLabel label("%smax_pool_gather_%s%s", kWideName<Int>, kTypeName<T>,
                                   kIndexName<I>);
    return launch_line(label.text, max_pool_gather<T, I, Int>, elements(c.y), kPoolThreads,
                       kPoolThreads, 0, stream, pool_args<Int>(c),
                       pool_order<1>(c.y, pool_channels(c)));
  });
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
