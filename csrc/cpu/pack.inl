// Panels: kPanel output channels side by side, the operand of the register tile that is loaded.
namespace fastconv::FASTCONV_NS {

// dst[i][lane] = src[i * step + lane * lane_s], lanes from `lanes` on are zero.
// Both orders are common: NCHW sources have step 1, channel-last ones lane_s 1.
template <class S>
inline void pack_panel(Compute<S>* dst, const S* src, int64_t count, int64_t step, int64_t lane_s,
                       int64_t lanes) {
  typedef Compute<S> T;
  constexpr int W = kW<T>, L = kPanel<T>;
  int64_t i = 0;
  if (lane_s == 1 && lanes == L) {
    for (; i < count; ++i) {
      store<T>(dst + i * L, load_widened<S>(src + i * step));
      store<T>(dst + i * L + W, load_widened<S>(src + i * step + W));
    }
    return;
  }
  if (step == 1 && lanes == L) {
    for (; i + W <= count; i += W)
      for (int half = 0; half < L; half += W) {
        Vec<T> rows[W];
#pragma GCC unroll 16
        for (int k = 0; k < W; ++k) rows[k] = load_widened<S>(src + i + (half + k) * lane_s);
        transpose<T>(rows);
#pragma GCC unroll 16
        for (int k = 0; k < W; ++k) store<T>(dst + (i + k) * L + half, rows[k]);
      }
  }
  for (; i < count; ++i) {
    int64_t k = 0;
    for (; k < lanes; ++k) dst[i * L + k] = widen(src[i * step + k * lane_s]);
    for (; k < L; ++k) dst[i * L + k] = 0;
  }
}

// Weights of a (group, panel): [chunk of C][tap row][tap column][c][kPanel].
template <class S>
inline void pack_weights(const TapConv& job, int64_t chunk, int64_t g, int64_t panel,
                         Compute<S>* dst) {
  typedef Compute<S> T;
  constexpr int L = kPanel<T>;
  const int64_t lanes = min64(L, job.K - panel * L);
  const S* src = (const S*)job.w + g * job.ws[0] + panel * L * job.ws[1];
  for (int64_t c0 = 0; c0 < job.C; c0 += chunk) {
    const int64_t cn = min64(chunk, job.C - c0);
    for (int64_t i = 0; i < job.rows.count; ++i)
      for (int64_t j = 0; j < job.cols.count; ++j) {
        const int64_t r = job.rows.index + i * job.rows.index_step;
        const int64_t s = job.cols.index + j * job.cols.index_step;
        pack_panel<S>(dst, src + c0 * job.ws[2] + r * job.ws[3] + s * job.ws[4], cn, job.ws[2],
                      job.ws[1], lanes);
        dst += cn * L;
      }
  }
}

}  // namespace fastconv::FASTCONV_NS
