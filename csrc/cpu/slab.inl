// Slabs: the part of an input that a block of outputs reads, zero-padded and widened, so that no
// kernel knows about edges, layouts or storage types.
namespace fastconv::FASTCONV_NS {

template <class T>
struct Slab {
  T* data;
  int64_t c, h, w;  // strides
};

// Strides of a slab of `rows` x `cols` x `channels`. Planes are padded to an odd number of cache
// lines, so that the channels of a tile do not fall into one set of L1.
template <class T>
inline Slab<T> make_slab(T* data, int64_t channels, int64_t rows, int64_t cols, bool planar) {
  if (!planar) return {data, 1, cols * channels, channels};
  const int64_t line = 64 / sizeof(T);
  int64_t plane = (rows * cols + line - 1) / line;
  return {data, (plane | 1) * line, cols, 1};
}

inline int64_t slab_elements(int64_t channels, int64_t rows, int64_t cols, int64_t element) {
  const int64_t line = 64 / element;
  return channels * (rows * cols + 2 * line);
}

template <class T>
inline void zero(T* dst, int64_t n) {
  if (n == 0) return;
  if (n == 1) {  // a row's padding, most often
    *dst = 0;
    return;
  }
  __builtin_memset(dst, 0, n * sizeof(T));
}

// Columns of a planar source to pixels of W channels.
template <class S>
inline void fill_transposed(Compute<S>* dst, const S* from, int64_t c_s, int64_t channels,
                            int64_t cols, const S* end) {
  typedef Compute<S> T;
  constexpr int W = kW<T>;
  for (int64_t j = 0; j < cols; j += W) {
    Vec<T> pixels[W];
    load_transposed<S>(pixels, from + j, c_s, channels, end);
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) {
      if (i == cols - j) break;
      store<T>(dst + (j + i) * W, pixels[i]);
    }
  }
}

// Channels of pixels of a channel-last source to planes.
template <class S>
inline void fill_planes(Compute<S>* dst, int64_t plane, const S* from, int64_t w_s,
                        int64_t channels, int64_t cols, const S* end) {
  typedef Compute<S> T;
  constexpr int W = kW<T>;
  for (int64_t c = 0; c < channels; c += W)
    for (int64_t j = 0; j < cols; j += W) {
      Vec<T> rows[W];
      load_transposed<S>(rows, from + j * w_s + c, w_s, cols - j, end);
#pragma GCC unroll 16
      for (int k = 0; k < W; ++k) {
        if (k == channels - c) break;
        store_lanes<T>(dst + (c + k) * plane + j, rows[k], min64(W, cols - j), 1);
      }
    }
}

// One row of one slab: columns [col0, col0 + cols) of an input row of width W, all channels.
template <class S>
inline void fill_slab_row(Compute<S>* dst, const Slab<Compute<S>>& slab, const S* src, int64_t c_s,
                          int64_t w_s, int64_t channels, int64_t W, int64_t col0, int64_t cols,
                          const S* end) {
  const int64_t left = min64(max64(-col0, 0), cols);
  const int64_t body = max64(min64(W - max64(col0, 0), cols - left), 0);
  const int64_t right = cols - left - body;
  const S* from = src + (col0 + left) * w_s;
  if (slab.c == 1) {  // [col][c]
    zero(dst, left * slab.w);
    zero(dst + (left + body) * slab.w, right * slab.w);
    dst += left * slab.w;
    if (c_s == 1 && w_s == channels && slab.w == channels)
      widen_row<S>(dst, from, body * channels, 1);
    else if (w_s == 1 && slab.w == kW<Compute<S>>)
      fill_transposed<S>(dst, from, c_s, channels, body, end);
    else
      for (int64_t j = 0; j < body; ++j)
        widen_row<S>(dst + j * slab.w, from + j * w_s, channels, c_s);
    return;
  }
  const bool transposed = c_s == 1 && channels >= kW<Compute<S>> / 2;
  if (transposed) fill_planes(dst + left, slab.c, from, w_s, channels, body, end);
  for (int64_t c = 0; c < channels; ++c) {  // [c][col]
    Compute<S>* plane = dst + c * slab.c;
    zero(plane, left);
    if (!transposed) widen_row<S>(plane + left, from + c * c_s, body, w_s);
    zero(plane + left + body, right);
  }
}

// Rows [row0, row0 + rows) x columns [col0, col0 + cols) of x, zeros outside the input. Channels
// that a slab of vectors has beyond `channels` hold anything. `end`: of what may be read of x.
template <class S>
inline void fill_slab(const Slab<Compute<S>>& slab, const S* x, const int64_t xs[4],
                      int64_t channels, int64_t H, int64_t W, int64_t row0, int64_t rows,
                      int64_t col0, int64_t cols, const S* end) {
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t h = row0 + i;
    Compute<S>* dst = slab.data + i * slab.h;
    const bool inside = h >= 0 && h < H;
    fill_slab_row<S>(dst, slab, x + (inside ? h : 0) * xs[2], xs[1], xs[3], channels,
                     inside ? W : 0, inside ? col0 : 0, cols, end);
  }
}

}  // namespace fastconv::FASTCONV_NS
