#include "choice.h"

#include <string.h>

#include <atomic>
#include <map>
#include <mutex>
#include <shared_mutex>

#include "error.h"

namespace fastconv {
namespace {

struct Key {
  ConvProblem problem;
  Backend backend;
  Direction direction;
  bool operator<(const Key& other) const { return memcmp(this, &other, sizeof *this) < 0; }
};
static_assert(sizeof(Key) == 18 * sizeof(int64_t) + 4 * sizeof(int32_t), "compared byte by byte");

Key key_of(const ConvProblem& problem, const Capabilities& caps, Direction direction) {
  Key key = {problem, caps.backend, direction};
  key.problem.activation = Activation::none;
  return key;
}

std::shared_mutex lock;
std::map<Key, const PlanRow*> choices;
std::atomic<bool> any{false};  // most processes have none, and pay one load

}  // namespace

void choose(const ConvProblem& problem, const Capabilities& caps, Direction direction,
            const PlanRow* row) {
  if (row) {
    const char* refusal = row->refuse(problem, caps, direction);
    check(row->backend == caps.backend && !refusal, "fastconv: ", row->name,
          " cannot be chosen for this problem: ", refusal ? refusal : "another backend's");
  }
  const std::lock_guard<std::shared_mutex> guard(lock);
  if (row)
    choices[key_of(problem, caps, direction)] = row;
  else
    choices.erase(key_of(problem, caps, direction));
  any = !choices.empty();
}

void forget_choices() {
  const std::lock_guard<std::shared_mutex> guard(lock);
  choices.clear();
  any = false;
}

const PlanRow* choice(const ConvProblem& problem, const Capabilities& caps, Direction direction) {
  if (!any.load(std::memory_order_relaxed)) return nullptr;
  const std::shared_lock<std::shared_mutex> guard(lock);
  const auto found = choices.find(key_of(problem, caps, direction));
  return found == choices.end() ? nullptr : found->second;
}

const PlanRow& chosen(const ConvProblem& problem, const Capabilities& caps, Direction direction) {
  const PlanRow* row = choice(problem, caps, direction);
  return row ? *row : plan(problem, caps, direction);
}

}  // namespace fastconv
