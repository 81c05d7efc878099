// Panels: kPanel output channels side by side, the operand of the register tile that is loaded.
namespace fastconv::FASTCONV_NS {

// Past the last element of a strided operand: everything before it may be read. Of an empty one,
// whose data may be null, its beginning.
template <class S>
inline const S* end_of(const void* data, const int64_t* size, const int64_t* stride, int dims) {
  int64_t last = 0;
  for (int i = 0; i < dims; ++i) {
    if (size[i] == 0) return (const S*)data;
    last += (size[i] - 1) * stride[i];
  }
  return (const S*)data + last + 1;
}

// Of an operand of `channels` of a TapConv or WeightGrad: `image` is the largest image, `whole` of
// a lattice its tensor, rows and columns.
template <class S, class Job>
inline const S* images_end(const Job& job, const void* data, int64_t channels,
                           const int64_t stride[4], const int64_t (&image)[2],
                           const int64_t (&whole)[2]) {
  const int64_t h = job.lattice.h, w = job.lattice.w;
  const int64_t size[4] = {h ? job.N / (h * w) : job.N, channels, h ? whole[0] : image[0],
                           h ? whole[1] : image[1]};
  const int64_t step[4] = {stride[0], stride[1], h ? stride[2] / h : stride[2],
                           h ? stride[3] / w : stride[3]};
  return end_of<S>(data, size, step, 4);
}

template <class S, class Job>
inline const S* input_end(const Job& job) {
  return images_end<S>(job, job.x, job.G * job.C, job.xs, {job.H, job.W},
                       {job.lattice.H, job.lattice.W});
}

// rows[i] = src[lane * lane_s + i] of W lanes; those from `lanes` on are zero. Reads W elements of
// each lane, wanted or not, as far as `end`. Asks for what lies `ahead` elements on, if not 0.
template <class S>
FASTCONV_INLINE void load_transposed(Vec<Compute<S>> (&rows)[kW<Compute<S>>], const S* src,
                                     int64_t lane_s, int64_t lanes, const S* end,
                                     int64_t ahead = 0) {
  typedef Compute<S> T;
  constexpr int W = kW<T>;
  if (lanes >= W && src + (W - 1) * lane_s + W <= end) {
#pragma GCC unroll 16
    for (int k = 0; k < W; ++k) {
      rows[k] = load_widened<S>(src + k * lane_s);
      if (ahead) __builtin_prefetch(src + k * lane_s + ahead, 0, 2);
    }
  } else {
    for (int k = 0; k < W; ++k) {
      const S* lane = src + k * lane_s;
      S edge[W] = {};
      if (k < lanes) __builtin_memcpy(edge, lane, min64(W, end - lane) * sizeof(S));
      rows[k] = load_widened<S>(edge);
    }
  }
  transpose<T>(rows);
}

// dst[i][lane] = src[i * step + lane * lane_s], lanes from `lanes` on are zero.
// Both orders are common: NCHW sources have step 1, channel-last ones lane_s 1.
template <class S>
inline void pack_panel(Compute<S>* dst, const S* src, int64_t count, int64_t step, int64_t lane_s,
                       int64_t lanes, const S* end, int64_t ahead = 0) {
  typedef Compute<S> T;
  constexpr int W = kW<T>, L = kPanel<T>;
  int64_t i = 0;
  if (lane_s == 1 && lanes == L) {
    for (; i < count; ++i) {
      store<T>(dst + i * L, load_widened<S>(src + i * step));
      store<T>(dst + i * L + W, load_widened<S>(src + i * step + W));
      if (ahead) {
        __builtin_prefetch(src + i * step + ahead, 0, 2);
        __builtin_prefetch(src + i * step + W + ahead, 0, 2);
      }
    }
    return;
  }
  if (lane_s == 1) {
    const int64_t low = min64(lanes, W), high = lanes - low;
    for (; i < count; ++i) {
      store<T>(dst + i * L, load_lanes<S>(src + i * step, low));
      store<T>(dst + i * L + W, high ? load_lanes<S>(src + i * step + W, high) : Vec<T>{});
    }
    return;
  }
  if (step == 1 && count >= W / 2) {
    for (; i < count; i += W)
      for (int half = 0; half < L; half += W) {
        Vec<T> rows[W];
        load_transposed<S>(rows, src + i + half * lane_s, lane_s, lanes - half, end, ahead);
#pragma GCC unroll 16
        for (int k = 0; k < W; ++k) {
          if (k == count - i) break;
          store<T>(dst + (i + k) * L + half, rows[k]);
        }
      }
    return;
  }
  for (; i < count; ++i) {
    int64_t k = 0;
    for (; k < lanes; ++k) dst[i * L + k] = widen(src[i * step + k * lane_s]);
    for (; k < L; ++k) dst[i * L + k] = 0;
  }
}

// A panel of channels as [pixel][kPanel], of rows x cols pixels of a tensor from `from` on. Asks
// for what lies `ahead` elements on, if not 0.
template <class S>
inline void pack_pixels(Compute<S>* dst, const S* from, const int64_t stride[4], int64_t rows,
                        int64_t cols, int64_t lanes, const S* end, int64_t ahead = 0) {
  if (stride[2] == cols * stride[3]) cols *= rows, rows = 1;  // rows continue each other
  for (int64_t i = 0; i < rows; ++i)
    pack_panel<S>(dst + i * cols * kPanel<Compute<S>>, from + i * stride[2], cols, stride[3],
                  stride[1], lanes, end, ahead);
}

// Dense KCRS weights, as the reduction (forward) or the lanes (input gradient) run along them.
inline bool dense_kernels(const TapConv& job) {
  const int64_t kernel = job.R * job.S;
  if (kernel < 2 || kernel > 128 || job.ws[4] != 1 || job.ws[3] != job.S) return false;
  const bool forward = job.ws[2] == kernel && job.ws[1] == job.C * kernel;
  const bool lanes = job.ws[1] == kernel && job.ws[2] == job.K * kernel;
  // A stride phase wants few of the taps that are transposed: 4 of 9 are packed faster one by one.
  const bool phase = 2 * job.rows.count * job.cols.count < kernel;
  return (forward || (lanes && !phase)) && job.ws[0] == job.C * job.K * kernel;
}

// What of the weights is packed: channels c0 .. c0 + cn of a panel of a group.
struct PackedPart {
  int64_t g, panel, c0, cn;
};

// By transposes: a lane's weights are contiguous over (c, r, s) or over (r, s), and a row of a
// transposed block is one (c, r, s) of W lanes.
template <class S>
inline void pack_kernels(const TapConv& job, const PackedPart& part, Compute<S>* dst, const S* end,
                         int64_t ahead) {
  typedef Compute<S> T;
  constexpr int W = kW<T>, L = kPanel<T>;
  const int64_t kernel = job.R * job.S;
  const S* src =
      (const S*)job.w + part.g * job.ws[0] + part.panel * L * job.ws[1] + part.c0 * job.ws[2];
  int tap_at[128];  // of each (r, s), its place among the taps
  for (int64_t t = 0; t < kernel; ++t) tap_at[t] = -1;
  for (int64_t i = 0; i < job.rows.count; ++i)
    for (int64_t j = 0; j < job.cols.count; ++j)
      tap_at[(job.rows.index + i * job.rows.index_step) * job.S + job.cols.index +
             j * job.cols.index_step] = (int)(i * job.cols.count + j);
  const bool forward = job.ws[2] == kernel;
  const int64_t length = forward ? part.cn * kernel : kernel, outer = forward ? 1 : part.cn;
  for (int64_t o = 0; o < outer; ++o)
    for (int half = 0; half < L; half += W) {
      const int64_t lanes = min64(W, job.K - part.panel * L - half);
      const S* from = src + o * job.ws[2] + half * job.ws[1];
      for (int64_t e = 0; e < length; e += W) {
        Vec<T> rows[W];
        load_transposed<S>(rows, from + e, job.ws[1], lanes, end, ahead);
        int64_t c = o + e / kernel, t = e % kernel;
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) {
          if (i == length - e) break;
          if (tap_at[t] >= 0) store<T>(dst + (tap_at[t] * part.cn + c) * L + half, rows[i]);
          if (++t == kernel) t = 0, ++c;
        }
      }
    }
}

// dst is [tap row][tap column][c][kPanel]. Asks for the weights of the channels that follow where
// they are far away: their lanes and taps are more streams than a core follows. 3x3 512->512 @7 on
// Zen 4, weights packed on every call: 2.6 -> 1.9 ms channel-last, 2.1 -> 1.9 in NCHW.
template <class S>
inline void pack_weights(const TapConv& job, const PackedPart& part, Compute<S>* dst) {
  typedef Compute<S> T;
  constexpr int L = kPanel<T>;
  const int64_t size[5] = {job.G, job.K, job.C, job.R, job.S};
  const S* end = end_of<S>(job.w, size, job.ws, 5);
  const bool far = job.K * job.C * job.R * job.S * (int64_t)sizeof(S) > kNearBytes;
  const int64_t ahead = far ? part.cn * job.ws[2] : 0;
  if (dense_kernels(job)) return pack_kernels<S>(job, part, dst, end, ahead);
  const int64_t lanes = min64(L, job.K - part.panel * L);
  const S* src =
      (const S*)job.w + part.g * job.ws[0] + part.panel * L * job.ws[1] + part.c0 * job.ws[2];
  for (int64_t i = 0; i < job.rows.count; ++i)
    for (int64_t j = 0; j < job.cols.count; ++j) {
      const int64_t r = job.rows.index + i * job.rows.index_step;
      const int64_t s = job.cols.index + j * job.cols.index_step;
      pack_panel<S>(dst, src + r * job.ws[3] + s * job.ws[4], part.cn, job.ws[2], job.ws[1], lanes,
                    end, ahead);
      dst += part.cn * L;
    }
}

}  // namespace fastconv::FASTCONV_NS
