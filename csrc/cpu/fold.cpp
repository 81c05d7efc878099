#include "fold.h"

#include <string.h>

namespace fastconv {
namespace {

// `count` pieces of kBytes, to every `to_step` bytes from every `step`.
template <int kBytes>
void copy_pieces(char* to, int64_t to_step, const char* from, int64_t step, int64_t count) {
  for (int64_t i = 0; i < count; ++i, to += to_step, from += step) memcpy(to, from, kBytes);
}

void copy_pieces(char* to, int64_t to_step, const char* from, int64_t step, int64_t bytes,
                 int64_t count) {
  switch (bytes) {
    case 8: return copy_pieces<8>(to, to_step, from, step, count);
    case 16: return copy_pieces<16>(to, to_step, from, step, count);
    case 24: return copy_pieces<24>(to, to_step, from, step, count);
    case 48: return copy_pieces<48>(to, to_step, from, step, count);
    default:
      for (int64_t i = 0; i < count; ++i) memcpy(to + i * to_step, from + i * step, bytes);
  }
}

// Calls f(k, c, r, u, place) for every folded weight. A tap (r, u) may be beyond the kernel's.
template <class F>
void each_tap(int64_t K, int64_t C, const Fold& fold, F f) {
  const int64_t s = fold.stride, taps = fold.taps;
  for (int64_t k = 0; k < K; ++k)
    for (int64_t i = 0; i < s; ++i)
      for (int64_t j = 0; j < s; ++j)
        for (int64_t c = 0; c < C; ++c) {
          int64_t at = (k * fold.C + fold.channel(i, j, c, C)) * taps * taps;
          for (int64_t r = i; r < taps * s; r += s)
            for (int64_t u = j; u < taps * s; u += s) f(k, c, r, u, at++);
        }
}

template <class E>
void fold_taps(const E* w, const int64_t ws[4], int64_t K, int64_t C, int64_t R, int64_t S,
               const Fold& f, E* to) {
  each_tap(K, C, f, [&](int64_t k, int64_t c, int64_t r, int64_t u, int64_t at) {
    to[at] = r < R && u < S ? w[k * ws[0] + c * ws[1] + r * ws[2] + u * ws[3]] : E{0};
  });
}

}  // namespace

void fold_rows(const Unfolded& from, const Fold& f, void* to, int64_t begin, int64_t end) {
  const int64_t s = f.stride, size = from.element;
  const int64_t col = from.xs[3] * size, pixel = f.pitch * size;
  // Pieces lie together: the columns of a channel, or those of all channels of a pixel.
  const bool together = f.planar ? from.xs[3] == 1 : from.xs[3] == from.C;
  const int64_t per_row = f.planar ? from.C : 1, piece = (f.planar ? s : s * from.C) * size;
  for (int64_t row = begin; row < end; ++row) {
    char* const pixels = (char*)to + row * f.W * pixel;
    for (int64_t i = 0; i < s; ++i) {
      const int64_t h = row % f.H * s + i - from.pad_t;
      const bool inside = h >= 0 && h < from.H;
      const char* x =
          (const char*)from.x + (row / f.H * from.xs[0] + (inside ? h : 0) * from.xs[2]) * size;
      // Pixels [first, last) whose columns are all inside.
      int64_t first = 0, last = 0;
      if (inside && together) {
        first = min64(max64(ceil_div(from.pad_l, s), 0), f.W);
        last = max64(min64((from.W + from.pad_l) / s, f.W), first);
      }
      for (int64_t k = 0; k < per_row && first < last; ++k)
        copy_pieces(pixels + first * pixel + f.channel(i, 0, k, from.C) * size, pixel,
                    x + k * from.xs[1] * size + (first * s - from.pad_l) * col, s * col, piece,
                    last - first);
      for (int64_t w = 0; w < f.W; ++w) {
        if (w == first && first < last) w = last;
        for (int64_t j = 0; j < s && w < f.W; ++j)
          for (int64_t c = 0; c < from.C; ++c) {
            const int64_t at = w * s + j - from.pad_l;
            char* const value = pixels + w * pixel + f.channel(i, j, c, from.C) * size;
            if (inside && at >= 0 && at < from.W)
              memcpy(value, x + c * from.xs[1] * size + at * col, size);
            else
              memset(value, 0, size);
          }
      }
    }
  }
}

void fold_weights(const void* w, const int64_t ws[4], int64_t K, int64_t C, int64_t R, int64_t S,
                  const Fold& f, int64_t element, void* to) {
  if (element == 2)
    fold_taps((const uint16_t*)w, ws, K, C, R, S, f, (uint16_t*)to);
  else
    fold_taps((const uint32_t*)w, ws, K, C, R, S, f, (uint32_t*)to);
}

void unfold_grad(const float* folded, int64_t K, int64_t C, int64_t R, int64_t S, const Fold& f,
                 bool add, float* dw) {
  each_tap(K, C, f, [&](int64_t k, int64_t c, int64_t r, int64_t u, int64_t at) {
    if (r >= R || u >= S) return;
    float& to = dw[((k * C + c) * R + r) * S + u];
    to = add ? to + folded[at] : folded[at];
  });
}

}  // namespace fastconv
