// Tile index to kernel, for the files in instances/: each instantiates launch_gemm once.
#pragma once
#include <stdio.h>

#include <utility>

#include "conv_implicit_gemm.cuh"
#include "gemm_instances.cuh"
#include "split_k.cuh"

namespace fastconv::cuda {

// "conv1x1_f16_128x128x32_s4"
struct KernelName {
  char text[64];
  KernelName(bool pointwise, Math math, const Tile& t) {
    const char* const names[] = {"f16", "bf16", "tf32", "f32"};
    snprintf(text, sizeof text, "%s_%s_%dx%dx%d_s%d", pointwise ? "conv1x1" : "conv_implicit_gemm",
             names[int(math)], t.bm, t.bn, t.bk, t.stages);
  }
};

template <Math kMath>
Status launch_add_splits(const ConvParams& params, Stream stream) {
  constexpr int kSize = Chunk<typename Storage<kMath>::type>::kSize;
  const int chunks = params.K * params.groups / kSize;
  const int64_t threads = int64_t(params.M) * chunks;
  return launch("add_splits", add_splits<kMath>,
                dim3(unsigned((threads + kSplitThreads - 1) / kSplitThreads)), kSplitThreads, 0,
                stream, params, make_divisor(chunks));
}

template <class Config>
Status launch_tile(const ConvParams& params, Stream stream) {
  static const KernelName name(Config::kPointwise, Config::kMath, Config::kTile);
  constexpr Tile tile = Config::kTile;
  const int64_t tiles_m = (params.M + tile.bm - 1) / tile.bm;
  const int64_t tiles_n = (params.K + tile.bn - 1) / tile.bn;
  const dim3 grid(unsigned(tiles_m * tiles_n), params.groups, params.splits);
  const Status status = launch(name.text, conv_implicit_gemm<Config>, grid, tile.threads(),
                               Config::kSharedBytes, stream, params);
  if (status.error != nullptr || params.splits == 1) return status;
  return launch_add_splits<Config::kMath>(params, stream);
}

template <Math kMath, bool kPointwise, int... I>
Status launch_indexed(const ConvParams& params, int tile, Stream stream,
                      std::integer_sequence<int, I...>) {
  Status status = {"conv_implicit_gemm", "no such tile"};
  (void)((tile == I &&
          (status = launch_tile<GemmConfig<kMath, I, kPointwise>>(params, stream), true)) ||
         ...);
  return status;
}

template <Math kMath, bool kPointwise>
Status launch_gemm(const ConvParams& params, int tile, Stream stream) {
  return launch_indexed<kMath, kPointwise>(params, tile, stream,
                                           std::make_integer_sequence<int, tile_count(kMath)>());
}

}  // namespace fastconv::cuda
