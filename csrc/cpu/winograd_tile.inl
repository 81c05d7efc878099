// The transforms of Winograd's tiles, vectors along channels: one axis, then both.
//
// Of F(m, r) with finite points p and M(x) = prod (x - p), for one axis:
//   inputs   v_p = sum_i d_i [x^i] M(x) / (x - p)       v_inf = sum_i d_i [x^i] M(x)
//   weights  u_p = sum_r g_r p^r / prod_{q != p} (p - q)  u_inf = g_{r-1}
//   outputs  y_i = sum_p m_p p^i                         y_{m-1} also takes m_inf
// The weight gradient takes the transposes: output gradients to points, and points to taps.
// Points: 0, pairs of p and -p, whose even and odd terms are shared, and infinity.
namespace fastconv::FASTCONV_NS {

typedef Vec<float> Lane;

// Of n pairs of points, made from exact numbers: coefficients of x^2k.
template <int n>
struct PointTable {
  float power[n][8];               // p^i
  float all[n + 1], others[n][n];  // of prod (x^2 - p^2), and without the pair's own factor
  float norm_zero, norm[n];        // 1 / prod (p - q) of zero and of either of a pair
};

template <int n>
constexpr PointTable<n> make_points(const double (&p)[n]) {
  PointTable<n> t = {};
  for (int without = -1; without < n; ++without) {
    double c[n + 1] = {1}, norm = without < 0 ? 1 : 2 * p[without] * p[without];
    int degree = 0;
    for (int i = 0; i < n; ++i) {
      if (i == without) continue;
      for (int k = ++degree; k >= 0; --k) c[k] = (k ? c[k - 1] : 0) - p[i] * p[i] * c[k];
      norm *= (without < 0 ? 0 : p[without] * p[without]) - p[i] * p[i];
    }
    for (int k = 0; k <= degree; ++k) (without < 0 ? t.all[k] : t.others[without][k]) = (float)c[k];
    (without < 0 ? t.norm_zero : t.norm[without]) = (float)(1 / norm);
  }
  for (int j = 0; j < n; ++j) {
    double power = 1;
    for (int i = 0; i < 8; ++i, power *= p[j]) t.power[j][i] = (float)power;
  }
  return t;
}

// By the number of finite points. Those of three make errors as small as direct ones; of five half
// of what 0, +-1, +-2 would; of seven as small as any: four times those of five.
template <int kFinite>
constexpr auto find_points() {
  if constexpr (kFinite == 3) return make_points<1>({1});
  if constexpr (kFinite == 5) return make_points<2>({0.625, 1.5});
  if constexpr (kFinite == 7) return make_points<3>({0.5, 1, 2});
}
template <int kFinite>
constexpr auto kTable = find_points<kFinite>();

// sum over k < n of c[k] * d[2 k].
template <int n>
FASTCONV_INLINE Lane every_second(const float (&c)[n], const Lane* d) {
  Lane sum = c[n - 1] * d[2 * (n - 1)];
#pragma GCC unroll 4
  for (int k = n - 2; k >= 0; --k) sum += c[k] * d[2 * k];
  return sum;
}

// sum over even, and over odd i < n of p^i * d[i].
template <int n>
FASTCONV_INLINE Lane even_powers(const float (&power)[8], const Lane* d) {
  Lane sum = d[0];
#pragma GCC unroll 4
  for (int i = 2; i < n; i += 2) sum += power[i] * d[i];
  return sum;
}
template <int n>
FASTCONV_INLINE Lane odd_powers(const float (&power)[8], const Lane* d) {
  if constexpr (n < 2) return Lane{};
  Lane sum = power[1] * d[1];
#pragma GCC unroll 4
  for (int i = 3; i < n; i += 2) sum += power[i] * d[i];
  return sum;
}

// Axes and forms known when compiled; see winograd.h. Of stride 1 an axis' points are kFinite ones
// and infinity, of stride 2 kFinite ones of the even inputs and kM of the odd ones.
template <int kM_, int kTaps_, int kStride_, bool kTransposed_ = false>
struct Axis {
  static constexpr int kM = kM_, kTaps = kTaps_, kStride = kStride_;
  static constexpr bool kTransposed = kTransposed_;
  static constexpr int kPoints = (kM - 1) * kStride + kTaps;
  static constexpr int kFinite = kStride == 1 ? kPoints - 1 : kM + 1;
  static constexpr int kWeights = kStride == 1 ? kPoints : kM + 2;
  static constexpr int kInputs = kTransposed ? kM + 1 : kPoints;
  static constexpr int kOutputs = kTransposed ? 2 * kM : kM;
};

template <class Rows_, class Cols_ = Rows_>
struct Form {
  typedef Rows_ Rows;
  typedef Cols_ Cols;
};

// Calls f with the form, whose weights are those of the transposed one too.
template <class F>
FASTCONV_INLINE auto by_form(const WinogradForm& form, F f) {
  const WinogradAxis &rows = form.rows, &cols = form.cols;
  if (rows.stride == 2 && rows.m == 4) return f(Form<Axis<4, 3, 2>>{});
  if (rows.stride == 2) return f(Form<Axis<2, 3, 2>>{});
  if (rows.taps == 5) return f(Form<Axis<2, 5, 1>>{});
  if (rows.m != cols.m) return f(Form<Axis<4, 3, 1>, Axis<2, 3, 1>>{});
  if (rows.m == 6) return f(Form<Axis<6, 3, 1>>{});
  return rows.m == 4 ? f(Form<Axis<4, 3, 1>>{}) : f(Form<Axis<2, 3, 1>>{});
}

// Of what differs in the transposed form: inputs and outputs.
template <class F>
FASTCONV_INLINE auto by_tile_form(const WinogradForm& form, F f) {
  if (form.rows.transposed) return f(Form<Axis<2, 3, 2, true>>{});
  return by_form(form, f);
}

// Inputs to finite points.
template <int kFinite>
FASTCONV_INLINE void finite_inputs(const Lane* d, Lane* v) {
  constexpr const auto& t = kTable<kFinite>;
  v[0] = every_second(t.all, d);
#pragma GCC unroll 3
  for (int j = 0; j < kFinite / 2; ++j) {
    const Lane even = every_second(t.others[j], d + 2);
    const Lane odd = t.power[j][1] * every_second(t.others[j], d + 1);
    v[1 + 2 * j] = even + odd;
    v[2 + 2 * j] = even - odd;
  }
}

template <class A>
FASTCONV_INLINE void input_axis(const Lane* d, Lane* v) {
  if constexpr (A::kTransposed) {
    finite_inputs<A::kFinite>(d, v);
    for (int i = 0; i < A::kM; ++i) v[A::kFinite + i] = d[i];
  } else if constexpr (A::kStride == 2) {
    Lane even[A::kFinite];
    for (int i = 0; i < A::kFinite; ++i) even[i] = d[2 * i];
    finite_inputs<A::kFinite>(even, v);
    for (int i = 0; i < A::kM; ++i) v[A::kFinite + i] = d[2 * i + 1];
  } else {
    finite_inputs<A::kFinite>(d, v);
    v[A::kFinite] = every_second(kTable<A::kFinite>.all, d + 1);
  }
}

// kTaps taps to finite points.
template <int kFinite, int kTaps>
FASTCONV_INLINE void finite_weights(const Lane* g, Lane* u) {
  constexpr const auto& t = kTable<kFinite>;
  u[0] = t.norm_zero * g[0];
#pragma GCC unroll 3
  for (int j = 0; j < kFinite / 2; ++j) {
    const Lane even = even_powers<kTaps>(t.power[j], g), odd = odd_powers<kTaps>(t.power[j], g);
    u[1 + 2 * j] = t.norm[j] * (even + odd);
    u[2 + 2 * j] = t.norm[j] * (even - odd);
  }
}

template <class A>
FASTCONV_INLINE void weight_axis(const Lane* g, Lane* u) {
  if constexpr (A::kStride == 2) {
    const Lane even[2] = {g[0], g[2]};
    finite_weights<A::kFinite, 2>(even, u);
    u[A::kFinite] = g[1];
  } else {
    finite_weights<A::kFinite, A::kTaps>(g, u);
    u[A::kFinite] = g[A::kTaps - 1];
  }
}

// Finite points to kM outputs.
template <int kFinite, int kM>
FASTCONV_INLINE void finite_outputs(const Lane* m, Lane* y) {
  constexpr const auto& t = kTable<kFinite>;
  constexpr int n = kFinite / 2;
  Lane of[2][n];  // the sums and the differences of pairs
#pragma GCC unroll 3
  for (int j = 0; j < n; ++j) {
    of[0][j] = m[1 + 2 * j] + m[2 + 2 * j];
    of[1][j] = m[1 + 2 * j] - m[2 + 2 * j];
  }
#pragma GCC unroll 6
  for (int i = 0; i < kM; ++i) {
    y[i] = t.power[0][i] * of[i % 2][0];
#pragma GCC unroll 3
    for (int j = 1; j < n; ++j) y[i] += t.power[j][i] * of[i % 2][j];
  }
  y[0] += m[0];
}

template <class A>
FASTCONV_INLINE void output_axis(const Lane* m, Lane* y) {
  Lane finite[A::kM];
  finite_outputs<A::kFinite, A::kM>(m, finite);
  for (int i = 0; i < A::kM; ++i)
    if constexpr (A::kTransposed)
      y[2 * i] = m[A::kFinite + i], y[2 * i + 1] = finite[i];
    else if constexpr (A::kStride == 2)
      y[i] = finite[i] + m[A::kFinite + i];
    else
      y[i] = i == A::kM - 1 ? finite[i] + m[A::kFinite] : finite[i];
}

// The transpose of output_axis.
template <class A>
FASTCONV_INLINE void grad_axis(const Lane* y, Lane* v) {
  constexpr const auto& t = kTable<A::kFinite>;
  v[0] = y[0];
#pragma GCC unroll 3
  for (int j = 0; j < A::kFinite / 2; ++j) {
    const Lane even = even_powers<A::kM>(t.power[j], y), odd = odd_powers<A::kM>(t.power[j], y);
    v[1 + 2 * j] = even + odd;
    v[2 + 2 * j] = even - odd;
  }
  if constexpr (A::kStride == 2)
    for (int i = 0; i < A::kM; ++i) v[A::kFinite + i] = y[i];
  else
    v[A::kFinite] = y[A::kM - 1];
}

// The transpose of finite_weights.
template <int kFinite, int kTaps>
FASTCONV_INLINE void finite_taps(const Lane* z, Lane* g) {
  constexpr const auto& t = kTable<kFinite>;
  constexpr int n = kFinite / 2;
  Lane of[2][n];
#pragma GCC unroll 3
  for (int j = 0; j < n; ++j) {
    of[0][j] = t.norm[j] * (z[1 + 2 * j] + z[2 + 2 * j]);
    of[1][j] = t.norm[j] * (z[1 + 2 * j] - z[2 + 2 * j]);
  }
#pragma GCC unroll 5
  for (int r = 0; r < kTaps; ++r) {
    g[r] = t.power[0][r] * of[r % 2][0];
#pragma GCC unroll 3
    for (int j = 1; j < n; ++j) g[r] += t.power[j][r] * of[r % 2][j];
  }
  g[0] += t.norm_zero * z[0];
}

// The transpose of weight_axis.
template <class A>
FASTCONV_INLINE void tap_axis(const Lane* z, Lane* g) {
  if constexpr (A::kStride == 2) {
    Lane even[2];
    finite_taps<A::kFinite, 2>(z, even);
    g[0] = even[0], g[1] = z[A::kFinite], g[2] = even[1];
  } else {
    finite_taps<A::kFinite, A::kTaps>(z, g);
    g[A::kTaps - 1] += z[A::kFinite];
  }
}

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
