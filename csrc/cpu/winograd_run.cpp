#include "winograd_run.h"

#include <algorithm>
#include <atomic>

#include "../error.h"
#include "conv_run.h"

namespace fastconv {
namespace {

std::atomic<TileSize> winograd_tile{};    // set_winograd_tile's
thread_local bool largest_tiles = false;  // set_winograd_6x6's

TileWish tile_wish() { return {winograd_tile, largest_tiles}; }

int64_t whole_lines(int64_t bytes) { return ceil_div(bytes, 64) * 64; }

}  // namespace

void set_winograd_tile(int rows, int cols) {
  const TileSize tile = {rows, cols};
  bool found = rows == 0 && cols == 0;
  for (const TileSize& t : {kSmallTile, kMixedTile, kLargeTile, kLargestTile})
    found |= t.rows == rows && t.cols == cols;
  check(found, "fastconv: Winograd's tiles are of 2 x 2, 4 x 2, 4 x 4 or 6 x 6, got ", rows, " x ",
        cols);
  winograd_tile = tile;
}

bool set_winograd_6x6(bool allowed) {
  const bool before = largest_tiles;
  largest_tiles = allowed;
  return before;
}

WinogradBlocking winograd_blocking(const TapConv& job, bool kept) {
  // Parts of a folded batch have one form, whose weights are kept or made once.
  return winograd_blocking(job, cpu_kernels().panel_f32, torch::stable::get_num_threads(), kept,
                           job.folded ? TileWish{} : tile_wish());
}

void pack_winograd(const TapConv& job, const WinogradBlocking& b, float* u) {
  const KernelTable& kernels = cpu_kernels();
  parallel_tasks(panel_pairs(job), flops(job), [&](int64_t begin, int64_t end) {
    kernels.winograd_pack(job, b, u, scratch(Slot::own, kernels.winograd_scratch(job, b)), begin,
                          end);
  });
}

void run_winograd(const TapConv& job, const float* u) {
  const KernelTable& kernels = cpu_kernels();
  const WinogradBlocking b = winograd_blocking(job, u != nullptr);
  const double work = flops(job);
  const bool pack = b.packed && !u;
  const int64_t u_size = pack ? panel_pairs(job) * b.chunks * b.u_chunk : 0;
  // Where several tasks share a block, they share its inputs.
  const int64_t v_size = b.panel_blocks > 1 ? b.blocks * b.form.points() * b.v_point : 0;
  float* shared = (float*)scratch(Slot::shared, (u_size + v_size) * sizeof(float));
  float* v = v_size ? shared + u_size : nullptr;
  auto own = [&] { return scratch(Slot::own, kernels.winograd_scratch(job, b)); };
  if (pack) pack_winograd(job, b, shared), u = shared;
  if (v)
    parallel_tasks(b.blocks * ceil_div(job.C, b.lanes), work, [&](int64_t begin, int64_t end) {
      kernels.winograd_inputs(job, b, v, own(), begin, end);
    });
  parallel_tasks(b.tasks, work, [&](int64_t begin, int64_t end) {
    kernels.winograd_run(job, b, u, v, own(), begin, end);
  });
}

void run_winograd_grad(const WeightGrad& job, double work) {
  const KernelTable& kernels = cpu_kernels();
  const WinogradBlocking b =
      winograd_grad_blocking(job, kernels.panel_f32, torch::stable::get_num_threads(),
                             job.folded ? TileWish{} : tile_wish());
  const int64_t panels = ceil_div(job.K, kernels.panel_f32), points = b.form.points();
  const int64_t v_size = b.segment * points * b.v_point;
  const int64_t a_size = b.segment * points * panels * b.a_point;
  const int64_t z_size = b.segments > 1 ? b.tasks * b.panels * points * b.m_point : 0;
  float* v = (float*)scratch(Slot::shared, (v_size + a_size + z_size) * sizeof(float));
  float *a = v + v_size, *z = z_size ? a + a_size : nullptr;
  auto own = [&] { return scratch(Slot::own, kernels.winograd_grad_scratch(job, b)); };
  for (int64_t segment = 0; segment < b.segments; ++segment) {
    const int64_t blocks = min64(b.segment, b.blocks - segment * b.segment);
    const int64_t items = blocks * (ceil_div(job.C, b.lanes) + 2 * panels);
    parallel_tasks(items, work, [&](int64_t begin, int64_t end) {
      kernels.winograd_grad_inputs(job, b, segment, v, a, own(), begin, end);
    });
    parallel_tasks(b.tasks, work, [&](int64_t begin, int64_t end) {
      kernels.winograd_grad_run(job, b, segment, v, a, z, own(), begin, end);
    });
  }
}

namespace {

// Calls f(first image, images) for parts of a batch, whose X it makes at `to`.
template <class Job, class F>
void by_folded_images(const Job& job, const Fold& f, void* to, F run) {
  const int64_t size = element_bytes(job.dtype);
  for (int64_t n = 0, images; n < job.N; n += images) {
    images = min64(f.images, job.N - n);
    Unfolded x = {(const char*)job.x + n * job.xs[0] * size,
                  {},
                  job.C,
                  job.H,
                  job.W,
                  -job.rows.offset,
                  -job.cols.offset,
                  size};
    std::copy_n(job.xs, 4, x.xs);
    parallel_tasks(images * f.H, (double)images * f.image(),
                   [&](int64_t begin, int64_t end) { fold_rows(x, f, to, begin, end); });
    run(n, images);
  }
}

// `w` is room for the folded weights.
void pack_folded(const TapConv& job, const Fold& f, void* w, float* u) {
  TapConv part = folded(job, f);
  fold_weights(job.w, job.ws + 1, job.K, job.C, job.R, job.S, f, element_bytes(job.dtype), w);
  part.w = w;
  pack_winograd(part, winograd_blocking(part, true), u);
}

}  // namespace

void pack_folded(const TapConv& job, float* u) {
  const Fold f = fold_of(job, cpu_lanes());
  const int64_t bytes = job.K * f.C * f.taps * f.taps * element_bytes(job.dtype);
  pack_folded(job, f, scratch(Slot::folded, bytes), u);
}

bool run_folded(const TapConv& job, const float* u) {
  const Fold f = fold_of(job, cpu_lanes());
  const int64_t size = element_bytes(job.dtype), taps = f.taps * f.taps;
  TapConv part = folded(job, f);
  const WinogradBlocking b = winograd_blocking(part, true);
  const int64_t u_bytes = u ? 0 : whole_lines(panel_pairs(part) * b.chunks * b.u_chunk * 4);
  const int64_t w_bytes = u ? 0 : whole_lines(job.K * f.C * taps * size);
  char* room = (char*)scratch(Slot::folded, u_bytes + w_bytes + f.images * f.image() * size);
  char* const x = room + u_bytes + w_bytes;
  if (!u) pack_folded(job, f, room + u_bytes, (float*)room), u = (float*)room;
  int not_finite = 0;
  part.x = x, part.not_finite = &not_finite;
  by_folded_images(job, f, x, [&](int64_t n, int64_t count) {
    part.N = count;
    part.y = (char*)job.y + n * job.ys[0] * size;
    if (job.residual) part.residual = (const char*)job.residual + n * job.rs[0] * size;
    run_winograd(part, u);
  });
  return !not_finite;
}

bool run_folded_grad(const WeightGrad& job, double work) {
  const Fold f = fold_of(job, cpu_lanes());
  const int64_t R = job.rows.count, S = job.cols.count, size = element_bytes(job.dtype);
  const int64_t count = job.K * job.C * R * S;
  const bool narrow = job.dtype != DType::f32;
  const int64_t part_bytes = whole_lines(job.K * f.C * f.taps * f.taps * 4);
  const int64_t sum_bytes = narrow ? whole_lines(count * 4) : 0;
  char* const room =
      (char*)scratch(Slot::folded, part_bytes + sum_bytes + f.images * f.image() * size);
  char* const x = room + part_bytes + sum_bytes;
  float* const sum = narrow ? (float*)(room + part_bytes) : (float*)job.dw;
  int not_finite = 0;
  WeightGrad part = folded(job, f);
  part.x = x, part.dw = room, part.not_finite = &not_finite;
  by_folded_images(job, f, x, [&](int64_t n, int64_t images) {
    part.N = images;
    part.dy = (const char*)job.dy + n * job.dys[0] * size;
    run_winograd_grad(part, work);
    unfold_grad((const float*)room, job.K, job.C, R, S, f, n > 0, sum);
  });
  if (narrow) cpu_kernels().narrow_row(job.dtype, sum, job.dw, count);
  return !not_finite;
}

}  // namespace fastconv
