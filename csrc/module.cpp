// What torch ops cannot carry, by pybind11: build facts, the processor, the plan.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>

#include "choice.h"
#include "cpu/conv_run.h"
#include "cpu/cpu.h"
#include "cuda/conv_stem.h"
#include "cuda/tile_choice.h"
#include "eager.h"
#include "error.h"
#include "plan.h"
#include "tensor.h"

namespace py = pybind11;

namespace fastconv {
namespace {

using Sizes = std::vector<int64_t>;

ConvProblem problem(const Sizes& input, const Sizes& weight, const Sizes& window,
                    DType dtype = DType::f32) {
  if (input.size() != 4 || weight.size() != 4 || window.size() != 9)
    throw std::invalid_argument("expected 4 input sizes, 4 weight sizes and 9 window numbers");
  return make_conv_problem(input.data(), weight.data(),
                           {window[0], window[1], window[2], window[3], window[4], window[5],
                            window[6], window[7], window[8], 0},
                           dtype);
}

std::pair<int64_t, int64_t> output_size(const Sizes& input, const Sizes& weight,
                                        const Sizes& window) {
  const ConvProblem p = problem(input, weight, window);
  return {p.P, p.Q};
}

std::vector<std::pair<std::string, std::string>> explain_rows(const Sizes& input,
                                                              const Sizes& weight,
                                                              const Sizes& window, int direction,
                                                              int backend, int dtype, bool tf32) {
  std::vector<std::pair<std::string, std::string>> rows;
  const ConvProblem p = problem(input, weight, window, static_cast<DType>(dtype));
  Capabilities caps = cpu_capabilities();
  caps.backend = static_cast<Backend>(backend), caps.tf32 = tf32;
  const PlanRow* best = choice(p, caps, static_cast<Direction>(direction));
  for (const Candidate& c : explain(p, caps, static_cast<Direction>(direction))) {
    const char* refusal = c.refusal;
    if (!refusal && best && c.row < best) refusal = "fastconv.tune measured another as faster";
    rows.emplace_back(c.row->name, refusal ? refusal : "");
  }
  return rows;
}

// Makes an algorithm of the CPU run a problem; "" leaves it to the planner. `measured_rules`: of
// the planner's refusals those count too.
void choose_algorithm(const Sizes& input, const Sizes& weight, const Sizes& window, int direction,
                      int dtype, const std::string& name, bool measured_rules) {
  const PlanRow* row = nullptr;
  for (const PlanRow& each : plan_table())
    if (each.backend == Backend::cpu && each.name == name) row = &each;
  check(row || name.empty(), "fastconv: no algorithm is called ", name);
  choose(problem(input, weight, window, static_cast<DType>(dtype)),
         cpu_capabilities(measured_rules), static_cast<Direction>(direction), row);
}

// What the CUDA planner computes for a direction on a GPU (as Device of tiles.h): tile, splits,
// waves and cycles; "" and 0 where it has no model of them.
std::tuple<std::string, int, float, float> cuda_tile(const Sizes& input, const Sizes& weight,
                                                     const Sizes& window, int direction, int dtype,
                                                     bool tf32, std::array<double, 6> gpu) {
  const ConvProblem p = problem(input, weight, window, static_cast<DType>(dtype));
  const Direction d = static_cast<Direction>(direction);
  const cuda::Device device = {int(gpu[0]), int(gpu[1]),   int(gpu[2]),
                               int(gpu[3]), float(gpu[4]), float(gpu[5])};
  const cuda::Math math = cuda::math_of(p.dtype, tf32);
  switch (plan(p, {Backend::cuda, tf32}, d).algorithm) {
    case Algorithm::conv1x1:
    case Algorithm::implicit_gemm: {
      const cuda::TileChoice c = cuda::choose_tile(cuda::filled(p, math), math, device, d);
      check(c.tile >= 0, "no tile of this GPU takes the problem");
      const cuda::Tile t = cuda::tile_of(math, c.tile, d);
      char name[64];
      snprintf(name, sizeof name, "%dx%dx%d_s%d", t.bm, t.bn, t.bk, t.stages);
      return {name, c.splits, c.waves, c.cycles};
    }
    case Algorithm::stem: {  // its blocks stay and take several tiles
      if (d == Direction::weight_grad)
        return {"64x" + std::to_string(cuda::stem_grad_columns(p.R * p.S * p.C)),
                cuda::stem_grad_splits(p, math, device), 0.f, 0.f};
      const cuda::StemShape s = cuda::stem_shape(p.C, p.R, p.S, p.stride_h, p.stride_w, math);
      const int64_t tiles = cuda::stem_tiles(p) * ((p.K + s.channels - 1) / s.channels);
      return {"8x16x" + std::to_string(s.channels), 1,
              float(tiles) / float(cuda::stem_blocks(s, device)), 0.f};
    }
    default: return {"", 1, 0.f, 0.f};
  }
}

std::vector<std::string> algorithms(Backend backend) {
  std::vector<std::string> names;
  for (const PlanRow& row : plan_table())
    if (row.backend == backend) names.push_back(row.name);
  return names;
}

// Planner rows by direction and register tiles, and whether each has run in this process.
std::vector<std::pair<std::string, bool>> executed() {
  std::vector<std::pair<std::string, bool>> found = cpu_tiles();
  const char* directions[] = {"forward", "input_grad", "weight_grad"};
  for (const PlanRow& row : plan_table())
    for (int d = 0; d < 3 && row.backend == Backend::cpu; ++d)
      found.emplace_back(std::string(row.name) + " " + directions[d],
                         has_run(row, static_cast<Direction>(d)));
  return found;
}

// GFLOP/s of independent FMAs on this core, best of repeated bursts within `seconds`.
double fma_peak_gflops(double seconds) {
  using clock = std::chrono::steady_clock;
  double best = 0;
  const auto end = clock::now() + std::chrono::duration<double>(seconds);
  do {
    const auto start = clock::now();
    const double flops = cpu_kernels().fma_peak(200000);
    const double taken = std::chrono::duration<double>(clock::now() - start).count();
    if (flops / taken > best) best = flops / taken;
  } while (clock::now() < end);
  return best * 1e-9;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "fastconv's native module: importing it registers torch.ops.fastconv";
#ifdef FASTCONV_CUDA
  m.attr("cuda") = true;
#else
  m.attr("cuda") = false;
#endif
  m.attr("compiler") = __VERSION__;
  m.def("cpu_isa", [] { return std::string(cpu_kernels().isa); });
  m.def("cpu_lanes", &cpu_lanes);
  m.def("cpu_isas", &cpu_isas);
  m.def("set_cpu_isa", &set_cpu_isa);
  m.def("bf16_dots", &cpu_bf16_dots);
  m.def("set_bf16_dots", &set_bf16_dots);
  m.def("kept_bytes", &kept_bytes);
  m.def("release_blocks", &release_blocks);
  m.def("limit_blocks", &limit_blocks);
  m.def("set_poison", [](bool on) { poisoned = poison_scratch = on; });
  m.def("conv_output_size", &output_size);
  m.def("explain", &explain_rows);
  m.def("choose", &choose_algorithm, py::arg("input"), py::arg("weight"), py::arg("window"),
        py::arg("direction"), py::arg("dtype"), py::arg("name"), py::arg("measured_rules") = true);
  m.def("forget_choices", &forget_choices);
  m.def("set_winograd_6x6", &set_winograd_6x6);
  m.def("set_winograd_tile", &set_winograd_tile);
  m.def("cuda_tile", &cuda_tile);
  m.def("algorithms", [](int backend) { return algorithms(static_cast<Backend>(backend)); });
  m.def("executed", &executed);
  if (add_eager_calls(m.ptr())) throw py::error_already_set();
  m.def("fma_peak_gflops", &fma_peak_gflops, py::call_guard<py::gil_scoped_release>());
}

}  // namespace fastconv
