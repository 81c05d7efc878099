// A 1x1 of few pixels: the tasks of conv_dots.inl and conv_axpy.inl.
namespace fastconv::FASTCONV_NS {

struct FewScratch {
  int64_t slab, acc, partial, total;  // byte offsets
};

// Sums are [panel][pixel][kPanel]; the last tile of pixels may hold more than there are.
template <class M>
inline FewScratch few_scratch(const TapConv& job, const Blocking& b) {
  typedef Data<M> T;
  FewScratch s;
  const int64_t rows = slab_rows(b.rows, job.stride_h, job.rows);
  const int64_t cols = slab_rows(b.cols, job.stride_w, job.cols);
  s.slab = 0;
  s.acc = align64(slab_elements(depth<M>(job), rows, cols, sizeof(T)) * sizeof(T));
  const int64_t panel = (b.rows * b.cols + kTile) * kPanel<T> * (int64_t)sizeof(T);
  const bool dots = job.ws[2] == 1;
  s.partial = s.acc + (dots ? 1 : b.panels) * panel;
  s.total = s.partial + (dots ? 0 : b.panels * panel);
  return s;
}

// Sums of `lanes` output channels, whose weights begin at w, to acc, panels `pitch` apart. The job
// counts operands of M.
template <class S, class M, int J>
__attribute__((noinline)) void few_sums(const TapConv& job, const Blocking& b, const S* w,
                                        int64_t lanes, const Compute<S>* const* x, int64_t pixels,
                                        Compute<S>* acc, Compute<S>* partial, int64_t pitch) {
  if (kNumbers<M> == 2 || job.ws[2] == 1)
    dot_panel<S, M, J>(job, b, w, lanes, x, pixels, acc);
  else
    axpy_block<S, J>(job, b, w, lanes, x, pixels, acc, partial, pitch);
}

template <class S, class M>
struct FewTile {
  int64_t rows;  // output channels of a tile of dots
  decltype(&few_sums<S, M, 1>) sums;
};
template <class S, class M, int J>
constexpr FewTile<S, M> kFewTile = {kDotRows<Compute<S>, J>, few_sums<S, M, J>};
template <class S, class M>
constexpr FewTile<S, M> kFewTiles[kTile] = {kFewTile<S, M, 1>, kFewTile<S, M, 2>,
                                            kFewTile<S, M, 3>, kFewTile<S, M, 4>,
                                            kFewTile<S, M, 5>, kFewTile<S, M, 6>};

// Tasks as in conv_run. Stored: what holds weights.
template <class S, class M = Compute<S>, class Stored = S>
inline void few_run(const TapConv& job, const Blocking& b, void* scratch, int64_t begin,
                    int64_t end) {
  typedef Compute<S> T;
  constexpr int L = kPanel<T>;
  const bool dots = job.ws[2] == 1;
  const FewScratch in = few_scratch<M>(job, b);
  T *acc = (T*)((char*)scratch + in.acc), *partial = (T*)((char*)scratch + in.partial);
  const S* x_end = input_end<S>(job);
  const int64_t tap = job.rows.index * job.ws[3] + job.cols.index * job.ws[4];
  const int64_t pixels = b.rows * b.cols;
  const int64_t J = ceil_div(pixels, ceil_div(pixels, kTile));  // even tiles
  const FewTile<Stored, M> tile = kFewTiles<Stored, M>[J - 1];
  const TapConv as = weights_as<M>(job);
  const int64_t pitch = ceil_div(pixels, J) * J * L;
  Slab<T> slab = {};
  int64_t filled = -1;
  const T* x[kFewPixels];
  for (int64_t task = begin; task < end; ++task) {
    const ConvBlock at = conv_block(job, b, task);
    if (at.block != filled) {
      slab = block_slab<S, M>(job, b, at, BlockTaps::all(job), (T*)scratch, x_end);
      for (int64_t m = 0; m < pixels; ++m)
        x[m] = slab.data + m / b.cols * job.stride_h * slab.h + m % b.cols * job.stride_w * slab.w;
      filled = at.block;
    }
    const int64_t last = min64((at.panel + b.panels) * L, job.K);
    for (int64_t k = at.panel * L, lanes; k < last; k += lanes) {
      lanes = min64(dots ? L / tile.rows * tile.rows : b.panels * L, last - k);
      const S* w = (const S*)job.w + at.g * job.ws[0] + k * job.ws[1] + tap;
      tile.sums(as, b, (const Stored*)w, lanes, x, pixels, acc, partial, pitch);
      for (int64_t i = 0; i < lanes; i += L)
        store_panel<S>(channel_store<S>(job, at.n, at.g, k + i, min64(L, lanes - i)),
                       acc + i / L * pitch, 0, 0, b.rows, b.cols);
    }
  }
}

}  // namespace fastconv::FASTCONV_NS
