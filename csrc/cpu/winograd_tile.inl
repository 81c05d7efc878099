// The transforms of Winograd's tiles, vectors along channels: one axis, then both.
//
// Of F(m, r) with finite points p and M(x) = prod (x - p), for one axis:
//   inputs   v_p = sum_i d_i [x^i] M(x) / (x - p)       v_inf = sum_i d_i [x^i] M(x)
//   weights  u_p = sum_r g_r p^r / prod_{q != p} (p - q)  u_inf = g_{r-1}
//   outputs  y_i = sum_p m_p p^i                         y_{m-1} also takes m_inf
// The weight gradient takes the transposes: output gradients to points, and points to taps.
// Points: 0, a, -a, b, -b, infinity where there are six; 0, 1, -1, infinity where there are four.
namespace fastconv::FASTCONV_NS {

typedef Vec<float> Lane;
constexpr float kA = 0.625f, kB = 1.5f, kA2 = kA * kA, kB2 = kB * kB;
constexpr float kNorm0 = 1 / (kA2 * kB2);  // 1 / prod (p - q) of 0, +-a, +-b
constexpr float kNormA = 1 / (2 * kA2 * (kA2 - kB2)), kNormB = 1 / (2 * kB2 * (kB2 - kA2));

template <int kPoints>
FASTCONV_INLINE void input_axis(const Lane* d, Lane* v) {
  if constexpr (kPoints == 4) {
    v[0] = d[2] - d[0];
    v[1] = d[2] + d[1];
    v[2] = d[2] - d[1];
    v[3] = d[3] - d[1];
  } else {
    const Lane even_a = d[4] - kB2 * d[2], odd_a = d[3] - kB2 * d[1];
    const Lane even_b = d[4] - kA2 * d[2], odd_b = d[3] - kA2 * d[1];
    v[0] = even_a - kA2 * d[2] + (kA2 * kB2) * d[0];
    v[1] = even_a + kA * odd_a;
    v[2] = even_a - kA * odd_a;
    v[3] = even_b + kB * odd_b;
    v[4] = even_b - kB * odd_b;
    v[5] = d[5] - (kA2 + kB2) * d[3] + (kA2 * kB2) * d[1];
  }
}

template <int kPoints, int kTaps>
FASTCONV_INLINE void weight_axis(const Lane* g, Lane* u) {
  if constexpr (kPoints == 4) {
    const Lane even = (g[0] + g[2]) * 0.5f, odd = g[1] * 0.5f;
    u[0] = -g[0];
    u[1] = even + odd;
    u[2] = even - odd;
    u[3] = g[2];
  } else {
    Lane even_a = g[0] + kA2 * g[2], odd_a = g[1], even_b = g[0] + kB2 * g[2], odd_b = g[1];
    if constexpr (kTaps == 5) {
      even_a += (kA2 * kA2) * g[4], odd_a += kA2 * g[3];
      even_b += (kB2 * kB2) * g[4], odd_b += kB2 * g[3];
    }
    u[0] = kNorm0 * g[0];
    u[1] = kNormA * (even_a + kA * odd_a);
    u[2] = kNormA * (even_a - kA * odd_a);
    u[3] = kNormB * (even_b + kB * odd_b);
    u[4] = kNormB * (even_b - kB * odd_b);
    u[5] = g[kTaps - 1];
  }
}

template <int kPoints, int kM>
FASTCONV_INLINE void output_axis(const Lane* m, Lane* y) {
  if constexpr (kPoints == 4) {
    y[0] = m[0] + (m[1] + m[2]);
    y[1] = (m[1] - m[2]) + m[3];
  } else {
    const Lane even_a = m[1] + m[2], odd_a = m[1] - m[2];
    const Lane even_b = m[3] + m[4], odd_b = m[3] - m[4];
    y[0] = m[0] + (even_a + even_b);
    y[1] = kA * odd_a + kB * odd_b;
    if constexpr (kM == 4) {
      y[2] = kA2 * even_a + kB2 * even_b;
      y[3] = kA2 * kA * odd_a + kB2 * kB * odd_b;
    }
    y[kM - 1] += m[5];
  }
}

// The transpose of output_axis.
template <int kPoints, int kM>
FASTCONV_INLINE void grad_axis(const Lane* y, Lane* v) {
  v[0] = y[0];
  if constexpr (kPoints == 4) {
    v[1] = y[0] + y[1];
    v[2] = y[0] - y[1];
  } else {
    Lane even_a = y[0], odd_a = kA * y[1], even_b = y[0], odd_b = kB * y[1];
    if constexpr (kM == 4) {
      even_a += kA2 * y[2], odd_a += kA2 * kA * y[3];
      even_b += kB2 * y[2], odd_b += kB2 * kB * y[3];
    }
    v[1] = even_a + odd_a;
    v[2] = even_a - odd_a;
    v[3] = even_b + odd_b;
    v[4] = even_b - odd_b;
  }
  v[kPoints - 1] = y[kM - 1];
}

// The transpose of weight_axis.
template <int kPoints, int kTaps>
FASTCONV_INLINE void tap_axis(const Lane* z, Lane* g) {
  if constexpr (kPoints == 4) {
    const Lane even = 0.5f * (z[1] + z[2]);
    g[0] = even - z[0];
    g[1] = 0.5f * (z[1] - z[2]);
    g[2] = even + z[3];
  } else {
    const Lane even_a = kNormA * (z[1] + z[2]), odd_a = (kNormA * kA) * (z[1] - z[2]);
    const Lane even_b = kNormB * (z[3] + z[4]), odd_b = (kNormB * kB) * (z[3] - z[4]);
    g[0] = kNorm0 * z[0] + (even_a + even_b);
    g[1] = odd_a + odd_b;
    g[2] = kA2 * even_a + kB2 * even_b;
    if constexpr (kTaps == 5) {
      g[3] = kA2 * odd_a + kB2 * odd_b;
      g[4] = (kA2 * kA2) * even_a + (kB2 * kB2) * even_b;
    }
    g[kTaps - 1] += z[5];
  }
}

// One tile of inputs, W channels: d[i * row + j * W] to v[(i * points + j) * point].
template <int kPoints>
inline void input_tile(const float* d, int64_t row, float* v, int64_t point) {
  constexpr int W = kW<float>;
  Lane half[kPoints][kPoints];
#pragma GCC unroll 6
  for (int j = 0; j < kPoints; ++j) {
    Lane in[kPoints], out[kPoints];
#pragma GCC unroll 6
    for (int i = 0; i < kPoints; ++i) in[i] = load<float>(d + i * row + j * W);
    input_axis<kPoints>(in, out);
#pragma GCC unroll 6
    for (int i = 0; i < kPoints; ++i) half[i][j] = out[i];
  }
#pragma GCC unroll 6
  for (int i = 0; i < kPoints; ++i) {
    Lane out[kPoints];
    input_axis<kPoints>(half[i], out);
#pragma GCC unroll 6
    for (int j = 0; j < kPoints; ++j) store<float>(v + (i * kPoints + j) * point, out[j]);
  }
}

// The weights of W output channels and one input channel: g[tap * step] to u[xi * point].
template <int kPoints, int kTaps>
inline void weight_tile(const float* g, int64_t step, float* u, int64_t point) {
  Lane half[kPoints][kTaps];
#pragma GCC unroll 5
  for (int s = 0; s < kTaps; ++s) {
    Lane in[kTaps], out[kPoints];
#pragma GCC unroll 5
    for (int r = 0; r < kTaps; ++r) in[r] = load<float>(g + (r * kTaps + s) * step);
    weight_axis<kPoints, kTaps>(in, out);
#pragma GCC unroll 6
    for (int i = 0; i < kPoints; ++i) half[i][s] = out[i];
  }
#pragma GCC unroll 6
  for (int i = 0; i < kPoints; ++i) {
    Lane out[kPoints];
    weight_axis<kPoints, kTaps>(half[i], out);
#pragma GCC unroll 6
    for (int j = 0; j < kPoints; ++j) store<float>(u + (i * kPoints + j) * point, out[j]);
  }
}

// One tile of outputs, W channels: m[xi * point] to the first rows x cols of y[i * row + j * col].
// Returns the sum of those: not finite where one of them is not.
template <int kPoints, int kM>
inline Lane output_tile(const float* m, int64_t point, float* y, int64_t row, int64_t col,
                        int64_t rows, int64_t cols) {
  Lane half[kM][kPoints], sum = {};
#pragma GCC unroll 6
  for (int j = 0; j < kPoints; ++j) {
    Lane in[kPoints], out[kM];
#pragma GCC unroll 6
    for (int i = 0; i < kPoints; ++i) in[i] = load<float>(m + (i * kPoints + j) * point);
    output_axis<kPoints, kM>(in, out);
#pragma GCC unroll 4
    for (int i = 0; i < kM; ++i) half[i][j] = out[i];
  }
#pragma GCC unroll 4
  for (int i = 0; i < kM; ++i) {
    if (i >= rows) break;
    Lane out[kM];
    output_axis<kPoints, kM>(half[i], out);
#pragma GCC unroll 4
    for (int j = 0; j < kM; ++j) {
      if (j >= cols) break;
      store<float>(y + i * row + j * col, out[j]);
      sum += out[j];
    }
  }
  return sum;
}

// One tile of output gradients, of which rows x cols are there: d[i * row + j * W] to
// v[xi * point].
template <int kPoints, int kM>
inline void grad_tile(const float* d, int64_t row, int64_t rows, int64_t cols, float* v,
                      int64_t point) {
  constexpr int W = kW<float>;
  Lane half[kPoints][kM];
#pragma GCC unroll 4
  for (int j = 0; j < kM; ++j) {
    Lane in[kM], out[kPoints];
#pragma GCC unroll 4
    for (int i = 0; i < kM; ++i)
      in[i] = i < rows && j < cols ? load<float>(d + i * row + j * W) : Lane{};
    grad_axis<kPoints, kM>(in, out);
#pragma GCC unroll 6
    for (int i = 0; i < kPoints; ++i) half[i][j] = out[i];
  }
#pragma GCC unroll 6
  for (int i = 0; i < kPoints; ++i) {
    Lane out[kPoints];
    grad_axis<kPoints, kM>(half[i], out);
#pragma GCC unroll 6
    for (int j = 0; j < kPoints; ++j) store<float>(v + (i * kPoints + j) * point, out[j]);
  }
}

// Sums over tiles, z[xi * point], to the gradient of W output channels, g[tap * step]. Returns the
// sum of those.
template <int kPoints, int kTaps>
inline Lane tap_tile(const float* z, int64_t point, float* g, int64_t step) {
  Lane half[kTaps][kPoints], sum = {};
#pragma GCC unroll 6
  for (int j = 0; j < kPoints; ++j) {
    Lane in[kPoints], out[kTaps];
#pragma GCC unroll 6
    for (int i = 0; i < kPoints; ++i) in[i] = load<float>(z + (i * kPoints + j) * point);
    tap_axis<kPoints, kTaps>(in, out);
#pragma GCC unroll 5
    for (int i = 0; i < kTaps; ++i) half[i][j] = out[i];
  }
#pragma GCC unroll 5
  for (int i = 0; i < kTaps; ++i) {
    Lane out[kTaps];
    tap_axis<kPoints, kTaps>(half[i], out);
#pragma GCC unroll 5
    for (int j = 0; j < kTaps; ++j) {
      store<float>(g + (i * kTaps + j) * step, out[j]);
      sum += out[j];
    }
  }
  return sum;
}

}  // namespace fastconv::FASTCONV_NS
