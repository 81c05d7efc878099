// Kernels and threads of one convolution on the CPU: one parallel region per step.
#include "conv_run.h"

#include <string.h>

#include <algorithm>
#include <initializer_list>

#include "cpu.h"
#include "grouped_blocking.h"
#include "winograd_run.h"

namespace fastconv {
namespace {

// A 1x1 without padding reads only the pixels it writes: the stride becomes the view's, and dense
// images become one row, of the whole batch where that is dense too. `operands` are the strides of
// everything that the job walks, its input first. An axis of size 1 has any stride, and ends
// nothing: images of one pixel are a row, whatever lies between them.
template <class Job>
void fold_pixels(Job& job, std::initializer_list<int64_t*> operands) {
  job.xs[2] *= job.stride_h, job.xs[3] *= job.stride_w;
  job.stride_h = job.stride_w = 1;
  job.H = job.P, job.W = job.Q;
  auto joined = [&](int axis, int64_t count) {  // to the row
    for (const int64_t* s : operands)
      if (count > 1 && job.Q > 1 && s[axis] != job.Q * s[3]) return false;
    for (int64_t* s : operands)
      if (job.Q == 1) s[3] = s[axis];
    job.W = job.Q *= count;
    return true;
  };
  if (!joined(2, job.P)) return;
  job.H = job.P = 1;
  if (joined(0, job.N)) job.N = 1;
}

// `packed`: of a job whose weights are packed before it runs.
Blocking direct_blocking(const TapConv& job, bool packed) {
  const KernelTable& kernels = cpu_kernels();
  const bool f64 = job.dtype == DType::f64;
  return conv_blocking(job, f64 ? kernels.panel_f64 : kernels.panel_f32, f64 ? 8 : 4,
                       torch::stable::get_num_threads(), packed, cpu_bf16_dots());
}

void pack_direct(const TapConv& job, const Blocking& b, void* packed) {
  parallel_tasks(
      b.along_rows ? job.G * job.K : panel_pairs(job), flops(job),
      [&](int64_t begin, int64_t end) { cpu_kernels().conv_pack(job, b, packed, begin, end); });
}

void run_direct(const TapConv& job, const void* packed) {
  const KernelTable& kernels = cpu_kernels();
  const Blocking b = direct_blocking(job, packed);
  if (b.packed && !packed) {
    const int64_t element = job.dtype == DType::f64 ? 8 : 4;
    void* shared = scratch(Slot::shared, kernels.conv_packed_size(job, b) * element + 64);
    pack_direct(job, b, shared);
    packed = shared;
  }
  parallel_tasks(b.tasks, flops(job), [&](int64_t begin, int64_t end) {
    void* own = scratch(Slot::own, kernels.conv_scratch(job, b));
    kernels.conv_run(job, b, packed, own, begin, end);
  });
}

void run_depthwise(const TapConv& job) {
  const KernelTable& kernels = cpu_kernels();
  parallel_tasks(job.N * job.G * job.K, 20 * flops(job), [&](int64_t begin, int64_t end) {
    void* own = scratch(Slot::own, kernels.depthwise_scratch(job));
    kernels.depthwise_run(job, own, begin, end);
  });
}

void run_phases(const GroupedJob& job) {
  const KernelTable& kernels = cpu_kernels();
  const DType dtype = job.whole.dtype;
  const GroupedBlocking b =
      grouped_blocking(job.whole, job.step_h, panel_of(dtype), dtype == DType::f64 ? 8 : 4,
                       torch::stable::get_num_threads());
  parallel_tasks(b.tasks, 20 * flops(job.whole), [&](int64_t begin, int64_t end) {
    void* own = scratch(Slot::own, kernels.grouped_scratch(job, b));
    kernels.grouped_run(job, b, own, begin, end);
  });
}

// Depthwise too.
void run_grouped(const TapConv& job) {
  const int64_t panel = panel_of(job.dtype);
  if (depthwise_planes(job, panel)) return run_depthwise(job);
  if (grouped_rows(job, panel)) return run_direct(job, nullptr);
  run_phases({job, 1, 1, {job}});
}

void run_grouped_grad(const WeightGrad& job, double work) {
  const KernelTable& kernels = cpu_kernels();
  const int64_t panel = panel_of(job.dtype);
  if (few_lanes(job, panel))
    return parallel_tasks(job.G * job.K, work, [&](int64_t begin, int64_t end) {
      void* own = scratch(Slot::own, kernels.depthwise_weight_grad_scratch(job));
      kernels.depthwise_weight_grad_run(job, own, begin, end);
    });
  const GroupedBlocking b = grouped_grad_blocking(job, panel, job.dtype == DType::f64 ? 8 : 4);
  parallel_tasks(b.tasks, work, [&](int64_t begin, int64_t end) {
    void* own = scratch(Slot::own, kernels.grouped_grad_scratch(job, b));
    kernels.grouped_grad_run(job, b, own, begin, end);
  });
}

// Of a dense output, a piece per task. Where a stride is larger than the kernel most of an input
// gradient is zero, and phase by phase its lines would be written several times.
void zero_outputs(const TapConv& job) {
  constexpr int64_t kPiece = 1 << 20;
  const int64_t size = element_bytes(job.dtype);
  const int64_t bytes = job.N * job.G * job.K * job.P * job.Q * size;
  parallel_tasks(ceil_div(bytes, kPiece), (double)bytes, [&](int64_t begin, int64_t end) {
    memset((char*)job.y + begin * kPiece, 0, min64(end * kPiece, bytes) - begin * kPiece);
  });
}

void run_direct_grad(const WeightGrad& job, double work) {
  const KernelTable& kernels = cpu_kernels();
  const Blocking b = weight_grad_blocking(job, panel_of(job.dtype), job.dtype == DType::f64 ? 8 : 4,
                                          torch::stable::get_num_threads(), cpu_bf16_dots());
  parallel_tasks(b.tasks, work, [&](int64_t begin, int64_t end) {
    void* own = scratch(Slot::own, kernels.weight_grad_scratch(job, b));
    kernels.weight_grad_run(job, b, own, begin, end);
  });
}

// A dilated job as one of images between each other. `operands` are the strides of all it walks.
template <class Job>
void split_phases(Job& job, std::initializer_list<int64_t*> operands) {
  const int64_t h = job.rows.offset_step, w = job.cols.offset_step;
  if (h * w == 1) return;
  job.lattice = {h, w, job.H, job.W, job.P, job.Q};
  job.N *= h * w;
  job.H = ceil_div(job.H, h), job.W = ceil_div(job.W, w);
  job.P = ceil_div(job.P, h), job.Q = ceil_div(job.Q, w);
  job.rows.offset /= h, job.cols.offset /= w;
  job.rows.offset_step = job.cols.offset_step = 1;
  for (int64_t* s : operands) s[2] *= h, s[3] *= w;
}

// The job as its algorithm runs it.
TapConv prepared(TapConv job, const PlanRow& row) {
  if (row.algorithm == Algorithm::winograd && folds(job))
    return folded(job, fold_of(job, cpu_lanes()));
  if (row.algorithm == Algorithm::winograd) split_phases(job, {job.xs, job.ys, job.rs});
  if (row.algorithm == Algorithm::conv1x1)
    fold_pixels(job, {job.xs, job.ys, job.residual ? job.rs : job.ys});
  return job;
}

}  // namespace

Capabilities cpu_capabilities(bool measured_rules) {
  return {Backend::cpu, false, measured_rules, cpu_lanes(), cpu_bf16_dots()};
}

Packing conv_packing(const TapConv& given, const PlanRow& row) {
  const TapConv job = prepared(given, row);
  const int64_t algorithm = static_cast<int64_t>(row.algorithm), lanes = panel_pairs(job);
  switch (row.algorithm) {
    case Algorithm::depthwise:
    case Algorithm::grouped: return {};
    case Algorithm::winograd: {
      const WinogradBlocking b = winograd_blocking(job, true);
      const int64_t order = folds(given) ? given.xs[1] != 1 : 0;  // of folded channels
      return {{algorithm, lanes, b.chunk, b.form.rows.m, b.form.cols.m, 2 * given.stride_h + order,
               job.G, job.K, given.C, given.R, given.S},
              lanes * b.chunks * b.u_chunk};
    }
    default: {
      const Blocking b = direct_blocking(job, true);
      const int64_t chunk = b.along_rows ? 0 : b.chunk;
      return {{algorithm, lanes, chunk, b.couples, 0, 0, job.G, job.K, job.C, job.R, job.S},
              cpu_kernels().conv_packed_size(job, b)};
    }
  }
}

void conv_pack(const TapConv& given, const PlanRow& row, void* packed) {
  const TapConv job = prepared(given, row);
  if (job.folded) {
    pack_folded(given, (float*)packed);
  } else if (row.algorithm == Algorithm::winograd)
    pack_winograd(job, winograd_blocking(job, true), (float*)packed);
  else
    pack_direct(job, direct_blocking(job, true), packed);
}

void conv_run(const TapConv& given, const PlanRow& row, Direction direction, const void* packed) {
  const TapConv job = prepared(given, row);
  if (job.N * job.G * job.K * job.P * job.Q == 0) return;
  mark_ran(row, direction);
  switch (row.algorithm) {
    case Algorithm::depthwise:
    case Algorithm::grouped: return run_grouped(job);
    case Algorithm::winograd:
      if (!job.folded) return run_winograd(job, (const float*)packed);
      if (!run_folded(given, (const float*)packed)) run_direct(given, nullptr);
      return;
    default: return run_direct(job, packed);
  }
}

void conv_run_phases(const TapConv& whole, int64_t step_h, int64_t step_w, const TapConv* phases,
                     const PlanRow& row) {
  const bool grouped = row.algorithm == Algorithm::grouped || row.algorithm == Algorithm::depthwise;
  const int64_t count = step_h * step_w;
  const bool empty = whole.N * whole.G * whole.K * whole.P * whole.Q == 0;
  if (!grouped || count == 1 || count > kMostPhases || empty ||
      few_lanes(whole, panel_of(whole.dtype))) {
    auto has_taps = [](const TapConv& phase) { return phase.rows.count * phase.cols.count > 0; };
    const bool sparse = !empty && !std::all_of(phases, phases + count, has_taps);
    if (sparse) zero_outputs(whole);
    for (int64_t i = 0; i < count; ++i)
      if (!sparse || has_taps(phases[i])) conv_run(phases[i], row, Direction::input_grad, nullptr);
    return;
  }
  mark_ran(row, Direction::input_grad);
  GroupedJob job = {whole, step_h, step_w, {}};
  for (int64_t i = 0; i < count; ++i) job.phases[i] = phases[i];
  run_phases(job);
}

void bias_grad_run(const View& dy, DType dtype, void* db) {
  parallel_tasks(
      dy.size[1], 20.0 * dy.size[0] * dy.size[1] * dy.size[2] * dy.size[3],
      [&](int64_t begin, int64_t end) { cpu_kernels().bias_grad_run(dy, dtype, db, begin, end); });
}

void weight_grad_run(WeightGrad job, const PlanRow& row) {
  const double work =
      2.0 * job.N * job.G * job.K * job.C * job.P * job.Q * job.rows.count * job.cols.count;
  const bool grouped = row.algorithm == Algorithm::depthwise || row.algorithm == Algorithm::grouped;
  const bool winograd = row.algorithm == Algorithm::winograd;
  const bool exchange = exchanges(job, panel_of(job.dtype) / 2);
  mark_ran(row, Direction::weight_grad);
  if (job.db && (grouped || winograd || exchange)) {  // kernels that do not sum it
    View dy = {(void*)job.dy, {job.N, job.G * job.K, job.P, job.Q}, {}};
    std::copy_n(job.dys, 4, dy.stride);
    bias_grad_run(dy, job.dtype, job.db);
    job.db = nullptr;
  }
  if (grouped) return run_grouped_grad(job, 20 * work);
  if (winograd && folds(job)) {
    if (!run_folded_grad(job, work)) run_direct_grad(job, work);
    return;
  }
  if (winograd) {
    split_phases(job, {job.xs, job.dys});
    return run_winograd_grad(job, work);
  }
  if (row.algorithm == Algorithm::conv1x1) fold_pixels(job, {job.xs, job.dys});
  if (!exchange) return run_direct_grad(job, work);
  const int64_t size = element_bytes(job.dtype);
  const int64_t taps = job.rows.count * job.cols.count;
  WeightGrad other = exchanged(job);
  other.dw = scratch(Slot::shared, job.G * job.K * job.C * taps * size);
  run_direct_grad(other, work);
  char* dw = (char*)job.dw;
  for (int64_t k = 0; k < job.G * job.K; ++k)
    for (int64_t c = 0; c < job.C; ++c)
      for (int64_t t = 0; t < taps; ++t, dw += size) {
        const int64_t at = (k / job.K * job.C + c) * job.K + k % job.K;
        memcpy(dw, (const char*)other.dw + ((at + 1) * taps - 1 - t) * size, size);
      }
}

}  // namespace fastconv
