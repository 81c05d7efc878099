// The main loop of the implicit GEMM kernels: copies of later steps fly while a step is multiplied.
#pragma once
#include "gemm_tile.cuh"

namespace fastconv::cuda {

// Multiplies what `loader` copies, `depth` deep, into `warp`; afterwards the stages, which begin at
// `first`, may be written. loader.load(params, stage) starts the copies of a step; that of a weight
// gradient may sum its dy, loader.sum_dy(stage), once it has landed.
template <class Config, class Loader, class Params>
FASTCONV_DEVICE void multiply_steps(Loader& loader, const Params& params, int depth, uint32_t first,
                                    WarpTile<Config>& warp) {
  constexpr Tile tile = Config::kTile;
  const uint32_t end = first + tile.stages * Config::kStageBytes;
  uint32_t write = first, read = first;
  auto next = [&](uint32_t stage) {
    stage += Config::kStageBytes;
    return stage == end ? first : stage;
  };
#pragma unroll
  for (int i = 0; i < tile.stages - 1; ++i) {
    loader.load(params, write);
    write = next(write);
  }
  warp.start();
  if constexpr (Config::kPrefetch) {
    // Fragments are read one step of the tensor core ahead, across the change of stages.
    ptx::cp_async_wait_group<tile.stages - 2>();
    __syncthreads();
    warp.read(read, 0);
  }
#pragma unroll 1
  for (int k = 0; k < depth; k += tile.bk) {
    if constexpr (!Config::kPrefetch) {
      ptx::cp_async_wait_group<tile.stages - 2>();
      __syncthreads();
    }
#pragma unroll
    for (int step = 0; step < Config::kSteps; ++step) {
      const bool last = step == Config::kSteps - 1;
      if constexpr (Config::kPrefetch) {
        if (last) {
          ptx::cp_async_wait_group<tile.stages - 2>();
          __syncthreads();
          read = next(read);
        }
        warp.read(read, (step + 1) % Config::kSteps);
      } else {
        warp.read(read, step);
      }
      if (step == 0) {
        // Into the stage whose last reads were before the latest barrier.
        loader.load(params, write);
        write = next(write);
        if constexpr (Config::kDirection == Direction::weight_grad) loader.sum_dy(read);
      }
      warp.multiply(step);
    }
    warp.promote();
    if constexpr (!Config::kPrefetch) read = next(read);
  }
  ptx::cp_async_wait_group<0>();
  __syncthreads();
}

}  // namespace fastconv::cuda
