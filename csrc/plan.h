// The choice of an algorithm: pure, problem and capabilities in, plan out.
#pragma once
#include <vector>

#include "problem.h"

namespace fastconv {

enum class Backend : int32_t { cpu = 0, cuda = 1 };

struct Capabilities {
  Backend backend;
  bool tf32;  // of CUDA: float32 products may be made in tf32
  // Of the CPU: rows refuse what was measured as slower or less exact than another row's. False: to
  // measure that (bench/thresholds.py).
  bool measured_rules = true;
  int64_t lanes = 16;      // of the CPU: float32 in a vector
  bool bf16_dots = false;  // of the CPU: it has dot products of bfloat16
};

enum class Algorithm : int32_t {
  conv1x1,
  stem,
  depthwise,
  grouped,
  winograd,
  implicit_gemm,
  direct
};

struct PlanRow {
  const char* name;
  Backend backend;
  Algorithm algorithm;
  // Null where the row takes the problem, else the reason, in words.
  const char* (*refuse)(const ConvProblem&, const Capabilities&, Direction);
};

// Of CUDA: what fills channels up to whole chunks (cuda/conv_params.h).
inline bool is_implicit_gemm(const PlanRow& row) {
  return row.backend == Backend::cuda &&
         (row.algorithm == Algorithm::conv1x1 || row.algorithm == Algorithm::implicit_gemm);
}

struct Candidate {
  const PlanRow* row;
  const char* refusal;  // null: this row runs
};

const std::vector<PlanRow>& plan_table();

// A register of the rows that ran in this process: tests fail on one that never did.
void mark_ran(const PlanRow& row, Direction direction);
bool has_run(const PlanRow& row, Direction direction);

// The first row that takes the problem; throws where none does.
const PlanRow& plan(const ConvProblem& problem, const Capabilities& caps, Direction direction);

// Every row of the backend up to and past the chosen one, with its refusal.
std::vector<Candidate> explain(const ConvProblem& problem, const Capabilities& caps,
                               Direction direction);

}  // namespace fastconv
