// Couples: two bfloat16 of neighbouring channels as one operand of the register tile, in place of
// one widened to float. Where the processor multiplies and adds two at once (AVX512-BF16) the dense
// kernels take half the instructions; of an odd number of channels the last one's neighbour is
// zero.
namespace fastconv::FASTCONV_NS {

template <class M>
constexpr Tiles kTilesOf = kNumbers<M> == 2 ? Tiles::couples : Tiles::forward;

// Whether an image of storage S, N C H W, holds operands of M where it lies.
template <class S, class M>
inline bool lies_as(const S* image, int64_t channels, const int64_t stride[4]) {
  if (sizeof(S) * kNumbers<M> != sizeof(Data<M>) || stride[1] != 1) return false;
  const bool even = channels % 2 == 0 && stride[2] % 2 == 0 && stride[3] % 2 == 0;
  return kNumbers<M> == 1 || (even && (uintptr_t)image % sizeof(Data<M>) == 0);
}

// The first of each couple from the upper halves of `low`, the second from those of `high`.
FASTCONV_INLINE Vec<float> join(Vec<float> low, Vec<float> high) {
  return bits_as<Vec<float>>(bits_as<Words>(low) >> 16 | (bits_as<Words>(high) & 0xffff0000u));
}

// n pixels of two channels to to[i * step]; no second channel where `second` is null.
inline void join_row(float* to, int64_t step, const bf16* first, const bf16* second, int64_t n,
                     int64_t w_s) {
  constexpr int W = kW<float>;
  int64_t i = 0;
  for (; step == 1 && w_s == 1 && i < n; i += W) {
    const int64_t lanes = min64(W, n - i);
    const Vec<float> low = load_lanes<bf16>(first + i, lanes);
    const Vec<float> high = second ? load_lanes<bf16>(second + i, lanes) : Vec<float>{};
    store_lanes<float>(to + i, join(low, high), lanes, 1);
  }
  for (; i < n; ++i) {
    const uint32_t high = second ? second[i * w_s].bits : 0;
    to[i * step] = bits_as<float>(high << 16 | first[i * w_s].bits);
  }
}

// As fill_slab_row.
inline void fill_couple_row(float* dst, const Slab<float>& slab, const bf16* src, int64_t c_s,
                            int64_t w_s, int64_t channels, int64_t W, int64_t col0, int64_t cols) {
  const int64_t left = min64(max64(-col0, 0), cols);
  const int64_t body = max64(min64(W - max64(col0, 0), cols - left), 0);
  const int64_t right = cols - left - body;
  const bf16* from = src + (col0 + left) * w_s;
  if (slab.c == 1) {  // [col][c]
    zero(dst, left * slab.w);
    zero(dst + (left + body) * slab.w, right * slab.w);
    dst += left * slab.w;
    for (int64_t j = 0; c_s == 1 && j < body; ++j, dst += slab.w, from += w_s) {
      dst[slab.w - 1] = 0;  // the neighbour of an odd last channel
      __builtin_memcpy(dst, from, channels * sizeof(bf16));
    }
    if (c_s == 1) return;
  }
  for (int64_t c = 0; c < channels; c += 2) {
    float* to = dst + c / 2 * slab.c;
    if (slab.c > 1) zero(to, left), zero(to + left + body, right), to += left;
    const bf16* first = from + c * c_s;
    join_row(to, slab.w, first, c + 1 < channels ? first + c_s : nullptr, body, w_s);
  }
}

// fill_slab, to operands of M.
template <class S, class M>
inline void fill_operands(const Slab<Compute<S>>& slab, const S* x, const int64_t xs[4],
                          int64_t channels, int64_t H, int64_t W, int64_t row0, int64_t rows,
                          int64_t col0, int64_t cols, const S* end) {
  if constexpr (kNumbers<M> == 1) {
    fill_slab<S>(slab, x, xs, channels, H, W, row0, rows, col0, cols, end);
  } else {
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t h = row0 + i;
      const bool inside = h >= 0 && h < H;
      fill_couple_row(slab.data + i * slab.h, slab, x + (inside ? h : 0) * xs[2], xs[1], xs[3],
                      channels, inside ? W : 0, inside ? col0 : 0, cols);
    }
  }
}

// n rows of floats that were bfloat16, `width` long, to ceil(n / 2) of couples, in place.
inline void join_rows(float* rows, int64_t width, int64_t n) {
  constexpr int W = kW<float>;
  for (int64_t i = 0; i < n; i += 2)
    for (int64_t j = 0; j < width; j += W) {
      const int64_t lanes = min64(W, width - j);
      const float* low = rows + i * width + j;
      const Vec<float> high = i + 1 < n ? load_lanes<float>(low + width, lanes) : Vec<float>{};
      store_lanes<float>(rows + i / 2 * width + j, join(load_lanes<float>(low, lanes), high), lanes,
                         1);
    }
}

// The same of a slab's pixels, whose rows continue each other.
inline void join_pixels(const Slab<float>& slab, int64_t channels, int64_t pixels) {
  constexpr int W = kW<float>;
  if (slab.c == 1) return join_rows(slab.data, channels, pixels);
  for (int64_t c = 0; c < channels; ++c) {
    float* plane = slab.data + c * slab.c;
    if (pixels % 2) plane[pixels] = 0;  // a plane is a line longer
    for (int64_t i = 0; i < pixels; i += 2 * W) {
      Vec<float> low, high;
      deinterleave<float>(load<float>(plane + i), load<float>(plane + i + W), low, high);
      store<float>(plane + i / 2, join(low, high));
    }
  }
}

// A job whose channels, weights and their strides count operands of M, where those lie in memory.
template <class M>
inline TapConv weights_as(TapConv job) {
  job.C = ceil_div(job.C, kNumbers<M>);
  for (int i = 0; i < 5; ++i)
    if (i != 2) job.ws[i] /= kNumbers<M>;
  return job;
}

// pack_weights, to operands of M; `part` counts those.
template <class S, class M>
inline void pack_operands(const TapConv& job, const PackedPart& part, Compute<S>* dst) {
  if constexpr (kNumbers<M> == 1) {
    pack_weights<S>(job, part, dst);
  } else if (couples_lie(job)) {
    pack_weights<float>(weights_as<M>(job), part, dst);
  } else {  // widened, then joined
    constexpr int W = kW<float>, L = kPanel<float>;
    const int64_t taps = job.rows.count * job.cols.count;
    const int64_t most = max64(kCoupleTaps / max64(taps, 1), 1);
    float wide[2 * kCoupleTaps * L];
    for (int64_t c = 0, n; c < part.cn; c += n) {
      n = min64(most, part.cn - c);
      const int64_t first = 2 * (part.c0 + c), cn = min64(2 * n, job.C - first);
      pack_weights<S>(job, {part.g, part.panel, first, cn}, wide);
      for (int64_t t = 0; t < taps; ++t)
        for (int64_t i = 0; i < n; ++i)
          for (int half = 0; half < L; half += W) {
            const float* low = wide + (t * cn + 2 * i) * L + half;
            const Vec<float> high = 2 * i + 1 < cn ? load<float>(low + L) : Vec<float>{};
            store<float>(dst + (t * part.cn + c + i) * L + half, join(load<float>(low), high));
          }
    }
  }
}

}  // namespace fastconv::FASTCONV_NS
