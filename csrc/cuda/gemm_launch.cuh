// Tile index to kernel, for the files in instances/: each instantiates launch_gemm once.
#pragma once
#include <stdio.h>

#include <utility>

#include "conv_implicit_gemm.cuh"
#include "conv_weight_grad.cuh"
#include "gemm_instances.cuh"
#include "split_k.cuh"

namespace fastconv::cuda {

// "conv1x1_f16_128x128x32_s4", "conv1x1_input_grad_f16_128x128x32_s4"
template <class Config>
struct KernelName {
  char text[64];
  KernelName() {
    const char* const maths[] = {"f16", "bf16", "tf32", "f32"};
    const char* const directions[] = {"", "_input_grad", "_weight_grad"};
    constexpr Tile t = Config::kTile;
    const char* stem = Config::kPointwise ? "conv1x1" : "conv_implicit_gemm";
    snprintf(text, sizeof text, "%s%s_%s_%dx%dx%d_s%d", stem, directions[int(Config::kDirection)],
             maths[int(Config::kMath)], t.bm, t.bn, t.bk, t.stages);
  }
};

// The phases of a product, and the most rows of one.
struct PhaseCount {
  int phases;
  int64_t rows;
};

template <class Config, class Params>
Status launch_tile(const Params& all, const ConvParams& first, PhaseCount count, Stream stream) {
  static const KernelName<Config> name;
  constexpr Tile tile = Config::kTile;
  const int64_t tiles_m = (count.rows + tile.bm - 1) / tile.bm;
  const int64_t tiles_n = (first.K + tile.bn - 1) / tile.bn;
  const dim3 grid(unsigned(tiles_m * tiles_n), first.groups, first.splits * count.phases);
  const Status status = launch(name.text, conv_implicit_gemm<Config>, grid, tile.threads(),
                               Config::kSharedBytes, stream, all);
  if (status.error != nullptr || first.splits == 1) return status;
  const int chunks = first.K * first.groups / Chunk<typename Config::T>::kSize;
  const int64_t blocks = (count.rows * chunks + kSplitThreads - 1) / kSplitThreads;
  return launch("add_splits", add_splits<Config::kMath, Config::kDirection>,
                dim3(unsigned(blocks), count.phases), kSplitThreads, 0, stream, all,
                make_divisor(chunks));
}

// Calls f with the number of the tile as a constant.
template <class F, int... I>
Status with_tile(int tile, const F& f, std::integer_sequence<int, I...>) {
  Status status = {"conv_implicit_gemm", "no such tile"};
  (void)((tile == I && (status = f(std::integral_constant<int, I>{}), true)) || ...);
  return status;
}

template <Math kMath, bool kPointwise>
Status launch_gemm(const ConvParams& params, int tile, Stream stream) {
  return with_tile(
      tile,
      [&](auto index) {
        using Config = GemmConfig<kMath, decltype(index)::value, kPointwise>;
        return launch_tile<Config>(params, params, {1, params.M}, stream);
      },
      std::make_integer_sequence<int, tile_count(kMath)>());
}

template <Math kMath, bool kPointwise>
Status launch_input_grad(const PhaseParams& all, int phases, int tile, Stream stream) {
  int64_t rows = 0;
  for (int i = 0; i < phases; ++i) rows = rows < all.phase[i].M ? all.phase[i].M : rows;
  return with_tile(
      tile,
      [&](auto index) {
        using Config = GemmConfig<kMath, decltype(index)::value, kPointwise, Direction::input_grad>;
        return launch_tile<Config>(all, all.phase[0], {phases, rows}, stream);
      },
      std::make_integer_sequence<int, tile_count(kMath, Direction::input_grad)>());
}

template <Math kMath, bool kPointwise>
Status launch_weight_grad(const ConvParams& p, float* bias, int tile, Stream stream) {
  return with_tile(
      tile,
      [&](auto index) {
        using Config =
            GemmConfig<kMath, decltype(index)::value, kPointwise, Direction::weight_grad>;
        static const KernelName<Config> name;
        constexpr Tile t = Config::kTile;
        const int64_t tiles_m = (p.K + t.bm - 1) / t.bm, tiles_n = (p.depth + t.bn - 1) / t.bn;
        const dim3 grid(unsigned(tiles_m * tiles_n), p.groups, p.splits);
        return launch(name.text, conv_weight_grad<Config>, grid, t.threads(), Config::kSharedBytes,
                      stream, p, bias);
      },
      std::make_integer_sequence<int, tile_count(kMath, Direction::weight_grad)>());
}

}  // namespace fastconv::cuda
