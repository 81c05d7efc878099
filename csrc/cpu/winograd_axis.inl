// The transforms of one axis of Winograd's tiles, vectors along channels.
//
// Of F(m, r) with finite points p and M(x) = prod (x - p), for one axis:
//   inputs   v_p = sum_i d_i [x^i] M(x) / (x - p)       v_inf = sum_i d_i [x^i] M(x)
//   weights  u_p = sum_r g_r p^r / prod_{q != p} (p - q)  u_inf = g_{r-1}
//   outputs  y_i = sum_p m_p p^i                         y_{m-1} also takes m_inf
// The weight gradient takes the transposes: output gradients to points, and points to taps.
// Points: 0, a, -a, b, -b or 0, 1, -1, and infinity.
namespace fastconv::FASTCONV_NS {

typedef Vec<float> Lane;
constexpr float kA = 0.625f, kB = 1.5f, kA2 = kA * kA, kB2 = kB * kB;
constexpr float kNorm0 = 1 / (kA2 * kB2);  // 1 / prod (p - q) of 0, +-a, +-b
constexpr float kNormA = 1 / (2 * kA2 * (kA2 - kB2)), kNormB = 1 / (2 * kB2 * (kB2 - kA2));

// Of F(6, 3): 0, +-1/2, +-1, +-2. The symmetric sums of two squares, for each the other two's.
constexpr int kThree = 3;
constexpr float kPoint[kThree] = {0.5f, 1, 2}, kSquare[kThree] = {0.25f, 1, 4};
constexpr float kSum[kThree] = {5, 4.25f, 1.25f}, kProduct[kThree] = {4, 1, 0.25f};
constexpr float kNorm[kThree] = {1 / (0.5f * 0.75f * 3.75f), -1 / (2 * 0.75f * 3),
                                 1 / (8 * 3.75f * 3)};

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
  if (rows.taps == 4) return f(Form<Axis<3, 4, 1>>{});
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
  if constexpr (kFinite == 3) {
    v[0] = d[2] - d[0];
    v[1] = d[2] + d[1];
    v[2] = d[2] - d[1];
  } else if constexpr (kFinite == 7) {
    v[0] = d[6] - d[0] + 5.25f * (d[2] - d[4]);
#pragma GCC unroll 3
    for (int j = 0; j < kThree; ++j) {
      const Lane even = d[6] - kSum[j] * d[4] + kProduct[j] * d[2];
      const Lane odd = kPoint[j] * (d[5] - kSum[j] * d[3] + kProduct[j] * d[1]);
      v[1 + 2 * j] = even + odd;
      v[2 + 2 * j] = even - odd;
    }
  } else {
    const Lane even_a = d[4] - kB2 * d[2], odd_a = d[3] - kB2 * d[1];
    const Lane even_b = d[4] - kA2 * d[2], odd_b = d[3] - kA2 * d[1];
    v[0] = even_a - kA2 * d[2] + (kA2 * kB2) * d[0];
    v[1] = even_a + kA * odd_a;
    v[2] = even_a - kA * odd_a;
    v[3] = even_b + kB * odd_b;
    v[4] = even_b - kB * odd_b;
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
    if constexpr (A::kFinite == 3)
      v[3] = d[3] - d[1];
    else if constexpr (A::kFinite == 7)
      v[7] = d[7] - d[1] + 5.25f * (d[3] - d[5]);
    else
      v[5] = d[5] - (kA2 + kB2) * d[3] + (kA2 * kB2) * d[1];
  }
}

// kTaps taps to finite points.
template <int kFinite, int kTaps>
FASTCONV_INLINE void finite_weights(const Lane* g, Lane* u) {
  if constexpr (kFinite == 3) {
    const Lane even = (kTaps == 3 ? g[0] + g[2] : g[0]) * 0.5f, odd = g[1] * 0.5f;
    u[0] = -g[0];
    u[1] = even + odd;
    u[2] = even - odd;
  } else if constexpr (kFinite == 7) {
    u[0] = -g[0];
#pragma GCC unroll 3
    for (int j = 0; j < kThree; ++j) {
      const Lane even = kNorm[j] * (g[0] + kSquare[j] * g[2]);
      const Lane odd = (kNorm[j] * kPoint[j]) * g[1];
      u[1 + 2 * j] = even + odd;
      u[2 + 2 * j] = even - odd;
    }
  } else {
    Lane even_a = g[0], odd_a = g[1], even_b = g[0], odd_b = g[1];
    if constexpr (kTaps >= 3) even_a += kA2 * g[2], even_b += kB2 * g[2];
    if constexpr (kTaps >= 4) odd_a += kA2 * g[3], odd_b += kB2 * g[3];
    if constexpr (kTaps == 5) even_a += (kA2 * kA2) * g[4], even_b += (kB2 * kB2) * g[4];
    u[0] = kNorm0 * g[0];
    u[1] = kNormA * (even_a + kA * odd_a);
    u[2] = kNormA * (even_a - kA * odd_a);
    u[3] = kNormB * (even_b + kB * odd_b);
    u[4] = kNormB * (even_b - kB * odd_b);
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
  if constexpr (kFinite == 3) {
    y[0] = m[0] + (m[1] + m[2]);
    y[1] = m[1] - m[2];
  } else if constexpr (kFinite == 7) {
    Lane even[kThree], odd[kThree];
#pragma GCC unroll 3
    for (int j = 0; j < kThree; ++j) {
      even[j] = m[1 + 2 * j] + m[2 + 2 * j];
      odd[j] = m[1 + 2 * j] - m[2 + 2 * j];
    }
    y[0] = m[0] + even[0] + even[1] + even[2];
    y[1] = 0.5f * odd[0] + odd[1] + 2 * odd[2];
    y[2] = 0.25f * even[0] + even[1] + 4 * even[2];
    y[3] = 0.125f * odd[0] + odd[1] + 8 * odd[2];
    y[4] = 0.0625f * even[0] + even[1] + 16 * even[2];
    y[5] = 0.03125f * odd[0] + odd[1] + 32 * odd[2];
  } else {
    const Lane even_a = m[1] + m[2], odd_a = m[1] - m[2];
    const Lane even_b = m[3] + m[4], odd_b = m[3] - m[4];
    y[0] = m[0] + (even_a + even_b);
    y[1] = kA * odd_a + kB * odd_b;
    if constexpr (kM >= 3) y[2] = kA2 * even_a + kB2 * even_b;
    if constexpr (kM == 4) y[3] = kA2 * kA * odd_a + kB2 * kB * odd_b;
  }
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
  v[0] = y[0];
  if constexpr (A::kFinite == 3) {
    v[1] = y[0] + y[1];
    v[2] = y[0] - y[1];
  } else if constexpr (A::kFinite == 7) {
#pragma GCC unroll 3
    for (int j = 0; j < kThree; ++j) {
      constexpr float kP[kThree] = {0.5f, 1, 2};
      const float s = kSquare[j];
      const Lane even = y[0] + s * (y[2] + s * y[4]), odd = kP[j] * (y[1] + s * (y[3] + s * y[5]));
      v[1 + 2 * j] = even + odd;
      v[2 + 2 * j] = even - odd;
    }
  } else {
    Lane even_a = y[0], odd_a = kA * y[1], even_b = y[0], odd_b = kB * y[1];
    if constexpr (A::kM >= 3) even_a += kA2 * y[2], even_b += kB2 * y[2];
    if constexpr (A::kM == 4) odd_a += kA2 * kA * y[3], odd_b += kB2 * kB * y[3];
    v[1] = even_a + odd_a;
    v[2] = even_a - odd_a;
    v[3] = even_b + odd_b;
    v[4] = even_b - odd_b;
  }
  if constexpr (A::kStride == 2)
    for (int i = 0; i < A::kM; ++i) v[A::kFinite + i] = y[i];
  else
    v[A::kFinite] = y[A::kM - 1];
}

// The transpose of finite_weights.
template <int kFinite, int kTaps>
FASTCONV_INLINE void finite_taps(const Lane* z, Lane* g) {
  if constexpr (kFinite == 3) {
    const Lane even = 0.5f * (z[1] + z[2]);
    g[0] = even - z[0];
    g[1] = 0.5f * (z[1] - z[2]);
    if constexpr (kTaps == 3) g[2] = even;
  } else if constexpr (kFinite == 7) {
    g[0] = -z[0], g[1] = g[2] = Lane{};
#pragma GCC unroll 3
    for (int j = 0; j < kThree; ++j) {
      const Lane even = kNorm[j] * (z[1 + 2 * j] + z[2 + 2 * j]);
      g[0] += even;
      g[1] += (kNorm[j] * kPoint[j]) * (z[1 + 2 * j] - z[2 + 2 * j]);
      g[2] += kSquare[j] * even;
    }
  } else {
    const Lane even_a = kNormA * (z[1] + z[2]), odd_a = (kNormA * kA) * (z[1] - z[2]);
    const Lane even_b = kNormB * (z[3] + z[4]), odd_b = (kNormB * kB) * (z[3] - z[4]);
    g[0] = kNorm0 * z[0] + (even_a + even_b);
    g[1] = odd_a + odd_b;
    if constexpr (kTaps >= 3) g[2] = kA2 * even_a + kB2 * even_b;
    if constexpr (kTaps >= 4) g[3] = kA2 * odd_a + kB2 * odd_b;
    if constexpr (kTaps == 5) g[4] = (kA2 * kA2) * even_a + (kB2 * kB2) * even_b;
  }
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

}  // namespace fastconv::FASTCONV_NS
