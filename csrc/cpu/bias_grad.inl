// Bias gradient, db[k] = sum over n, p, q of dy[n, k, p, q]. Partial sums are short and their sum
// is in double. On its own, or block by block within a weight gradient, which has just read dy.
namespace fastconv::FASTCONV_NS {

constexpr int64_t kBiasChannels = 512;  // of the channel-last sums kept at a time

// total[k] += sum over pixels of x, k < channels: memory in its order, vectors along channels.
template <class S>
inline void bias_grad_pixels(const S* x, int64_t pixels, int64_t step, int64_t channels,
                             double* total) {
  typedef Compute<S> T;
  constexpr int W = kW<T>;
  const int64_t whole = channels / W * W;
  T part[kBiasChannels];
  for (int64_t first = 0; first < pixels; first += kSumTerms) {
    const int64_t last = min64(first + kSumTerms, pixels);
    zero(part, channels);
    int64_t i = first;
    for (; i + 4 <= last; i += 4, x += 4 * step) {
      const S *x1 = x + step, *x2 = x1 + step, *x3 = x2 + step;
      for (int64_t k = 0; k < whole; k += W)
        store<T>(part + k,
                 load<T>(part + k) + ((load_widened<S>(x + k) + load_widened<S>(x1 + k)) +
                                      (load_widened<S>(x2 + k) + load_widened<S>(x3 + k))));
      for (int64_t k = whole; k < channels; ++k)
        part[k] += (widen(x[k]) + widen(x1[k])) + (widen(x2[k]) + widen(x3[k]));
    }
    for (; i < last; ++i, x += step)
      for (int64_t k = 0; k < channels; ++k) part[k] += widen(x[k]);
    for (int64_t k = 0; k < channels; ++k) total[k] += part[k];
  }
}

// The sum of rows x cols pixels of a plane, in runs as long as it has them.
template <class S>
inline double bias_grad_plane(const S* x, int64_t row, int64_t col, int64_t rows, int64_t cols) {
  if (col == 1 && row == cols) return sum_run<S>(x, rows * cols);
  double total = 0;
  for (int64_t p = 0; p < rows; ++p, x += row) {
    if (col == 1) {
      total += sum_run<S>(x, cols);
      continue;
    }
    Compute<S> part[kSumTerms * 4];
    for (int64_t q = 0; q < cols; q += kSumTerms * 4) {
      const int64_t n = min64(kSumTerms * 4, cols - q);
      widen_row<S>(part, x + q * col, n, col);
      total += sum_run<Compute<S>>(part, n);
    }
  }
  return total;
}

// total[k] += sum over rows x cols pixels of dy, k < channels.
template <class S>
inline void add_bias(const S* dy, const int64_t stride[4], int64_t rows, int64_t cols,
                     int64_t channels, double* total) {
  if (stride[1] != 1) {
    for (int64_t k = 0; k < channels; ++k)
      total[k] += bias_grad_plane<S>(dy + k * stride[1], stride[2], stride[3], rows, cols);
    return;
  }
  if (stride[2] == cols * stride[3]) cols *= rows, rows = 1;
  for (int64_t k = 0; k < channels; k += kBiasChannels)
    for (int64_t p = 0; p < rows; ++p)
      bias_grad_pixels<S>(dy + p * stride[2] + k, cols, stride[3],
                          min64(kBiasChannels, channels - k), total + k);
}

template <class S>
inline void write_bias(S* db, const double* total, int64_t channels) {
  for (int64_t k = 0; k < channels; ++k) db[k] = Narrow<S>::from((Compute<S>)total[k]);
}

// db of channels [begin, end). The order within a channel does not depend on these.
template <class S>
inline void bias_grad_run(const View& dy, void* db, int64_t begin, int64_t end) {
  double total[kBiasChannels];
  for (int64_t k = begin; k < end; k += kBiasChannels) {
    const int64_t channels = min64(kBiasChannels, end - k);
    zero(total, channels);
    for (int64_t n = 0; n < dy.size[0]; ++n)
      add_bias<S>((const S*)dy.data + n * dy.stride[0] + k * dy.stride[1], dy.stride, dy.size[2],
                  dy.size[3], channels, total);
    write_bias<S>((S*)db + k, total, channels);
  }
}

}  // namespace fastconv::FASTCONV_NS
