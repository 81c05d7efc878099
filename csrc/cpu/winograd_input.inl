// V of a block of tiles, the inputs of Winograd: of a TapConv, and of a WeightGrad's x.
namespace fastconv::FASTCONV_NS {

// What tiles of channel-last pixels will be read from: where this one lies, the next W channels for
// the next pass over the block, and in the first pass the tile after the next. A core follows no
// such rows by itself. Zen 4, 3x3: 64->64 @56 of a batch of 16 2.24 -> 2.46 times the FMA peak,
// 256->512 @28 2.9 -> 3.2; asking for outputs before they are stored lost 1 to 6 %, and for
// the next channels' planes gained nothing.
FASTCONV_INLINE void ask_pixels(const float* tile, int64_t row, int64_t col, int64_t step_h,
                                int64_t step_w, int64_t rows, int64_t vector, int64_t channels) {
  constexpr int W = kW<float>;
  if ((vector + 1) * W < channels)
    for (int64_t i = 0; i < step_h; ++i)
      for (int64_t j = 0; j < step_w; ++j) __builtin_prefetch(tile + i * row + j * col + W, 0, 2);
  if (vector == 0)
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < step_w; ++j)
        __builtin_prefetch(tile + i * row + (2 * step_w + j) * col, 0, 2);
}

// V of a block, vectors [begin, end) of channels; of a TapConv or WeightGrad. Tiles inside a
// channel-last image are read where they lie.
template <class S, class Job>
inline void winograd_input(const Job& job, const WinogradBlocking& b, const TileBlock& t,
                           float* slab_data, float* v, int64_t begin, int64_t end) {
  constexpr int W = kW<float>;
  const int64_t stride = b.form.rows.step(), tiles = t.tiles();
  const int64_t tile_h = b.form.rows.inputs(), tile_w = b.form.cols.inputs();
  const int64_t p0 = t.p0 * stride + job.rows.offset, q0 = t.q0 * stride + job.cols.offset;
  const int64_t rows = t.rows.start(t.rows.count() - 1) * stride + tile_h;
  const int64_t cols = t.cols.start(t.cols.count() - 1) * stride + tile_w;
  const S* x_end = input_end<S>(job);
  for (int64_t cv = begin; cv < end; ++cv)
    for (int64_t n = 0; n < t.images; ++n) {
      const Image image = image_of(job, t.n0 + n);
      const S* x = (const S*)job.x + image_at(job.lattice, image, job.xs) +
                   (t.g * job.C + cv * W) * job.xs[1];
      const int64_t cn = min64(W, job.C - cv * W);
      auto fill = [&](const Slab<float>& slab, int64_t h, int64_t slab_h, int64_t w,
                      int64_t slab_w) {
        fill_slab<S>(slab, x, job.xs, cn, image.H, image.W, h, slab_h, w, slab_w, x_end);
      };
      const bool in_place = sizeof(S) == sizeof(float) && job.xs[1] == 1 && (cn == W || job.folded);
      const Slab<float> all = {slab_data, 1, cols * W, W}, one = {slab_data, 1, tile_w * W, W};
      if (!in_place) fill(all, p0, rows, q0, cols);
      for (int64_t i = 0; i < t.rows.count(); ++i)
        for (int64_t j = 0; j < t.cols.count(); ++j) {
          const int64_t top = t.rows.start(i) * stride, left = t.cols.start(j) * stride;
          const int64_t h = p0 + top, w = q0 + left;
          Slab<float> from = all;
          if (!in_place) {
            from.data += top * all.h + left * all.w;
          } else if (h >= 0 && h + tile_h <= image.H && w >= 0 && w + tile_w <= image.W) {
            from = {(float*)x + h * job.xs[2] + w * job.xs[3], 1, job.xs[2], job.xs[3]};
          } else {
            fill(one, h, tile_h, w, tile_w);
            from = one;
          }
          if (in_place)
            ask_pixels((const float*)x + h * job.xs[2] + w * job.xs[3], job.xs[2], job.xs[3],
                       stride * b.form.rows.m, stride * b.form.cols.m, tile_h, cv, job.C);
          float* to = v + (cv * tiles + t.index(n, i, j)) * W;
          by_tile_form(b.form, [&](auto f) {
            input_tile<decltype(f)>(from.data, from.h, from.w, to, b.v_point);
          });
        }
    }
}

}  // namespace fastconv::FASTCONV_NS
