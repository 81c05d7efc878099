// What a CPU kernel is given: pointers, strides and blocking, as PODs (no torch, no STL header).
//
// Forward convolution and each stride phase of the input gradient are one thing, a TapConv: every
// output (p, q) sums taps read at (p * stride_h + rows.offset(i), q * stride_w + cols.offset(j)).
// `transposed`, Winograd only: the whole input gradient of stride 2. Of an axis' inputs x and taps
// g, from the weight's last one on, y[2 i] = g1 x[i] and y[2 i + 1] = g0 x[i] + g2 x[i + 1].
#pragma once
#include "../pair_job.h"
#include "../pool_problem.h"
#include "../problem.h"

namespace fastconv {

// A dilated convolution as one without dilation (Winograd only): the pixels of one phase, (row mod
// h, column mod w), are an image of their own. N counts those; H, W, P, Q and strides of the job
// are the first one's, the largest, and here they are of the whole tensors. h = 0: there is none.
struct Lattice {
  int64_t h, w, H, W, P, Q;
};

struct TapConv {
  int64_t N, G, C, K;  // C, K: channels per group
  int64_t H, W, P, Q;
  int64_t stride_h, stride_w;
  int64_t R, S;  // of the whole kernel, of which rows and cols may be a part
  TapAxis rows, cols;
  bool transposed;
  bool folded;      // fold.h: whole vectors of channels of x may be read
  int* not_finite;  // Winograd: set, where not null, instead of making such outputs again
  Lattice lattice;
  DType dtype;
  Activation activation;
  const void* x;  // [N, G * C, H, W]
  int64_t xs[4];
  const void* w;  // element (g, k, c, r, s) at g * ws[0] + k * ws[1] + c * ws[2] + ...
  int64_t ws[5];
  const void* bias;  // [G * K], stride bias_s; may be null
  int64_t bias_s;
  const void* residual;  // [N, G * K, P, Q]; may be null
  int64_t rs[4];
  void* y;  // [N, G * K, P, Q]
  int64_t ys[4];
};

// What a grouped kernel makes at once: a job, or all stride phases of an input gradient, (a, b) at
// a * step_w + b. `whole`: their outputs as one tensor; its taps are those of all.
constexpr int kMostPhases = 16;
struct GroupedJob {
  TapConv whole;
  int64_t step_h, step_w;
  TapConv phases[kMostPhases];

  int64_t count() const { return step_h * step_w; }
};

// Register tiles of the grouped kernels: so many pixels, for runs of taps of a stride, the last
// four of depthwise only. One tap at a time is for any other.
constexpr int kGroupedPixels[] = {5, 7, 8};
struct TapsOfStride {
  int taps, stride;
};
constexpr TapsOfStride kGroupedTaps[] = {{1, 1}, {2, 1}, {3, 1}, {3, 2},
                                         {5, 1}, {5, 2}, {7, 1}, {7, 2}};
constexpr int kGroupTaps = 4;
// Of the weight gradient: runs of up to four taps, depthwise of one and two vectors, and two and
// four input channels of a group.
constexpr int kGroupedRuns = 4, kGroupedGradKinds = 4;

struct WeightGrad {
  int64_t N, G, C, K;  // C, K: channels per group
  int64_t H, W, P, Q;
  int64_t stride_h, stride_w;
  TapAxis rows, cols;
  bool folded;  // these two as a TapConv's
  int* not_finite;
  Lattice lattice;
  DType dtype;
  const void* x;  // [N, G * C, H, W]
  int64_t xs[4];
  const void* dy;  // [N, G * K, P, Q]
  int64_t dys[4];
  void* dw;  // [G * K, C, R, S], dense; float where folded
  void* db;  // [G * K], the bias gradient; null: not asked for
};

// Broadcast operands of the register tile: pixels, or (c, r, s) in a weight gradient.
constexpr int kTileOperands = 6;
constexpr int kTileKinds = 5, kTileVectors = 4;  // Tiles in tile.inl

// How a TapConv or WeightGrad is cut; chosen by blocking.h.
struct Blocking {
  int64_t rows, cols;  // output block
  int64_t chunk;       // input channels whose weights stay in L1 (forward), or per task (dw)
  int64_t panels;      // panels of output channels per task
  int64_t row_blocks, col_blocks, panel_blocks, chunk_blocks;
  int64_t tasks;
  bool packed;        // forward: weights are packed before, else chunk by chunk in the loop
  bool asks_outputs;  // forward: of the next block, while one is summed
  bool planar;        // slab layout: [c][row][col], else [row][col][c]
  bool along_inputs;  // weight gradient of one tap: vectors run along c (weight_grad_1x1.inl)
  bool few;           // forward of few pixels: weights are read once, where they lie (conv_few.inl)
  bool couples;     // bfloat16 two at a time, channels or pixels: chunks count couples of channels
                    // (couples.inl)
  bool along_rows;  // vectors run along pixels (conv_rows.inl), and panels are kTileOperands wide
};

// Vectors along channels where every operand has them next to each other; one plane at a time
// otherwise. Tasks: (image, row of the result), or (image, channel).
static inline bool pool_channels(const PoolJob& j) {
  return j.x.stride[1] == 1 && j.y.stride[1] == 1 && j.p.C > 1 &&
         (j.index_type == IndexType::none || j.index.stride[1] == 1);
}

constexpr int64_t kPairBlock = 16384;  // elements of a task where dense; else a task is (n, c or h)

struct GroupedBlocking;   // grouped_blocking.h
struct WinogradBlocking;  // winograd.h

// Packed weights of a TapConv in elements of the arithmetic type; scratch of one thread in bytes.
// conv_pack takes ranges of output channels where vectors run along rows, else of (group, panel).
struct KernelTable {
  const char* isa;
  int panel_f32, panel_f64;  // output channels of a register tile

  int64_t (*conv_packed_size)(const TapConv&, const Blocking&);
  void (*conv_pack)(const TapConv&, const Blocking&, void* packed, int64_t begin, int64_t end);
  int64_t (*conv_scratch)(const TapConv&, const Blocking&);
  void (*conv_run)(const TapConv&, const Blocking&, const void* packed, void* scratch,
                   int64_t begin, int64_t end);

  // See conv_winograd.inl; ranges of (group, panel), of (block, vector of channels), of tasks.
  int64_t (*winograd_scratch)(const TapConv&, const WinogradBlocking&);
  void (*winograd_pack)(const TapConv&, const WinogradBlocking&, float* u, void* scratch,
                        int64_t begin, int64_t end);
  void (*winograd_inputs)(const TapConv&, const WinogradBlocking&, float* v, void* scratch,
                          int64_t begin, int64_t end);
  void (*winograd_run)(const TapConv&, const WinogradBlocking&, const float* u, const float* v,
                       void* scratch, int64_t begin, int64_t end);
  // See winograd_grad.inl; ranges of (block, vector of channels) of a segment, of tasks.
  int64_t (*winograd_grad_scratch)(const WeightGrad&, const WinogradBlocking&);
  void (*winograd_grad_inputs)(const WeightGrad&, const WinogradBlocking&, int64_t segment,
                               float* v, float* a, void* scratch, int64_t begin, int64_t end);
  void (*winograd_grad_run)(const WeightGrad&, const WinogradBlocking&, int64_t segment,
                            const float* v, const float* a, float* z, void* scratch, int64_t begin,
                            int64_t end);

  int64_t (*depthwise_scratch)(const TapConv&);
  void (*depthwise_run)(const TapConv&, void* scratch, int64_t begin, int64_t end);
  int64_t (*grouped_scratch)(const GroupedJob&, const GroupedBlocking&);
  void (*grouped_run)(const GroupedJob&, const GroupedBlocking&, void* scratch, int64_t begin,
                      int64_t end);

  int64_t (*weight_grad_scratch)(const WeightGrad&, const Blocking&);
  void (*weight_grad_run)(const WeightGrad&, const Blocking&, void* scratch, int64_t begin,
                          int64_t end);
  int64_t (*depthwise_weight_grad_scratch)(const WeightGrad&);
  void (*depthwise_weight_grad_run)(const WeightGrad&, void* scratch, int64_t begin, int64_t end);
  int64_t (*grouped_grad_scratch)(const WeightGrad&, const GroupedBlocking&);
  void (*grouped_grad_run)(const WeightGrad&, const GroupedBlocking&, void* scratch, int64_t begin,
                           int64_t end);

  // db[k] = sum over n, p, q of dy, for k in [begin, end).
  void (*bias_grad_run)(const View& dy, DType dtype, void* db, int64_t begin, int64_t end);

  // to[i] = from[i], as a storage type of float arithmetic.
  void (*narrow_row)(DType dtype, const float* from, void* to, int64_t count);

  const uint32_t (*tiles_ran)[kTileVectors];  // see tile.inl: by kind and vectors
  const uint32_t* row_tiles_ran;              // see row_tile.inl: in float and double
  const uint32_t* dot_tiles_ran;              // see conv_dots.inl
  const uint32_t* axpy_tiles_ran;             // see conv_axpy.inl
  const uint32_t (*grouped_ran)[2];  // in float, double and float groups; forward by pixels and
                                     // taps, then weight gradient by kind and run
  bool pairs;
  bool couples;  // there are dot products of bfloat16, if the processor has them (bf16_dots)
  double (*fma_peak)(int64_t iterations);  // FLOPs done, for calibration

  int64_t (*pool_scratch)(const PoolJob&);
  void (*max_pool_run)(const PoolJob&, void* scratch, int64_t begin, int64_t end);
  void (*max_pool_grad_run)(const PoolJob&, void* scratch, int64_t begin, int64_t end);
  void (*max_pool_gather_run)(const PoolJob&, int64_t begin, int64_t end);
  void (*avg_pool_run)(const PoolJob&, void* scratch, int64_t begin, int64_t end);
  void (*avg_pool_grad_run)(const PoolJob&, void* scratch, int64_t begin, int64_t end);

  void (*pair_run)(const PairJob&, int64_t begin, int64_t end);
};

}  // namespace fastconv
