// The transforms of Winograd's tiles, vectors along channels: those of one axis
// (winograd_axis.inl), then of the other.
namespace fastconv::FASTCONV_NS {

// One tile of inputs, W channels: d[i * row + j * col] to v[(i * points + j) * point].
template <class F>
inline void input_tile(const float* d, int64_t row, int64_t col, float* v, int64_t point) {
  typedef typename F::Rows Rows;
  typedef typename F::Cols Cols;
  Lane half[Rows::kPoints][Cols::kInputs];
#pragma GCC unroll 9
  for (int j = 0; j < Cols::kInputs; ++j) {
    Lane in[Rows::kInputs], out[Rows::kPoints];
#pragma GCC unroll 9
    for (int i = 0; i < Rows::kInputs; ++i) in[i] = load<float>(d + i * row + j * col);
    input_axis<Rows>(in, out);
#pragma GCC unroll 9
    for (int i = 0; i < Rows::kPoints; ++i) half[i][j] = out[i];
  }
#pragma GCC unroll 9
  for (int i = 0; i < Rows::kPoints; ++i) {
    Lane out[Cols::kPoints];
    input_axis<Cols>(half[i], out);
#pragma GCC unroll 9
    for (int j = 0; j < Cols::kPoints; ++j)
      store<float>(v + (i * Cols::kPoints + j) * point, out[j]);
  }
}

// The weights of W output channels and one input channel: g[tap * step] to u[xi * point].
template <class F>
inline void weight_tile(const float* g, int64_t step, float* u, int64_t point) {
  typedef typename F::Rows Rows;
  typedef typename F::Cols Cols;
  Lane half[Rows::kWeights][Cols::kTaps];
#pragma GCC unroll 5
  for (int s = 0; s < Cols::kTaps; ++s) {
    Lane in[Rows::kTaps], out[Rows::kWeights];
#pragma GCC unroll 5
    for (int r = 0; r < Rows::kTaps; ++r) in[r] = load<float>(g + (r * Cols::kTaps + s) * step);
    weight_axis<Rows>(in, out);
#pragma GCC unroll 9
    for (int i = 0; i < Rows::kWeights; ++i) half[i][s] = out[i];
  }
#pragma GCC unroll 9
  for (int i = 0; i < Rows::kWeights; ++i) {
    Lane out[Cols::kWeights];
    weight_axis<Cols>(half[i], out);
#pragma GCC unroll 9
    for (int j = 0; j < Cols::kWeights; ++j)
      store<float>(u + (i * Cols::kWeights + j) * point, out[j]);
  }
}

// One tile of outputs, W channels: m[xi * point] to put(i, j, output), i < rows and j < cols.
// Returns the sum of those: not finite where one of them is not.
template <class F, class Put>
inline Lane output_tile(const float* m, int64_t point, int64_t rows, int64_t cols, const Put& put) {
  typedef typename F::Rows Rows;
  typedef typename F::Cols Cols;
  Lane half[Rows::kOutputs][Cols::kPoints], sum = {};
#pragma GCC unroll 9
  for (int j = 0; j < Cols::kPoints; ++j) {
    Lane in[Rows::kPoints], out[Rows::kOutputs];
#pragma GCC unroll 9
    for (int i = 0; i < Rows::kPoints; ++i)
      in[i] = load<float>(m + (i * Cols::kPoints + j) * point);
    output_axis<Rows>(in, out);
#pragma GCC unroll 6
    for (int i = 0; i < Rows::kOutputs; ++i) half[i][j] = out[i];
  }
#pragma GCC unroll 6
  for (int i = 0; i < Rows::kOutputs; ++i) {
    if (i >= rows) break;
    Lane out[Cols::kOutputs];
    output_axis<Cols>(half[i], out);
#pragma GCC unroll 6
    for (int j = 0; j < Cols::kOutputs; ++j) {
      if (j >= cols) break;
      put(i, j, out[j]);
      sum += out[j];
    }
  }
  return sum;
}

// One tile of output gradients, of which rows x cols are there: d[i * row + j * col] to
// v[xi * point].
template <class F>
inline void grad_tile(const float* d, int64_t row, int64_t col, int64_t rows, int64_t cols,
                      float* v, int64_t point) {
  typedef typename F::Rows Rows;
  typedef typename F::Cols Cols;
  Lane half[Rows::kPoints][Cols::kM];
#pragma GCC unroll 6
  for (int j = 0; j < Cols::kM; ++j) {
    Lane in[Rows::kM], out[Rows::kPoints];
#pragma GCC unroll 6
    for (int i = 0; i < Rows::kM; ++i)
      in[i] = i < rows && j < cols ? load<float>(d + i * row + j * col) : Lane{};
    grad_axis<Rows>(in, out);
#pragma GCC unroll 9
    for (int i = 0; i < Rows::kPoints; ++i) half[i][j] = out[i];
  }
#pragma GCC unroll 9
  for (int i = 0; i < Rows::kPoints; ++i) {
    Lane out[Cols::kPoints];
    grad_axis<Cols>(half[i], out);
#pragma GCC unroll 9
    for (int j = 0; j < Cols::kPoints; ++j)
      store<float>(v + (i * Cols::kPoints + j) * point, out[j]);
  }
}

// Sums over tiles, z[xi * point], to the gradient of W output channels, g[tap * step]. Returns the
// sum of those.
template <class F>
inline Lane tap_tile(const float* z, int64_t point, float* g, int64_t step) {
  typedef typename F::Rows Rows;
  typedef typename F::Cols Cols;
  Lane half[Rows::kTaps][Cols::kWeights], sum = {};
#pragma GCC unroll 9
  for (int j = 0; j < Cols::kWeights; ++j) {
    Lane in[Rows::kWeights], out[Rows::kTaps];
#pragma GCC unroll 9
    for (int i = 0; i < Rows::kWeights; ++i)
      in[i] = load<float>(z + (i * Cols::kWeights + j) * point);
    tap_axis<Rows>(in, out);
#pragma GCC unroll 5
    for (int i = 0; i < Rows::kTaps; ++i) half[i][j] = out[i];
  }
#pragma GCC unroll 5
  for (int i = 0; i < Rows::kTaps; ++i) {
    Lane out[Cols::kTaps];
    tap_axis<Cols>(half[i], out);
#pragma GCC unroll 5
    for (int j = 0; j < Cols::kTaps; ++j) {
      store<float>(g + (i * Cols::kTaps + j) * step, out[j]);
      sum += out[j];
    }
  }
  return sum;
}

}  // namespace fastconv::FASTCONV_NS
