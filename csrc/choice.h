// Algorithms that were measured as the fastest on this machine (fastconv.tune), for the callers of
// the planner: plan() itself stays a pure function of the problem.
#pragma once
#include "plan.h"

namespace fastconv {

// From now on `row` runs the problem, whatever its activation; null: what the planner says. Throws
// where the row refuses the problem.
void choose(const ConvProblem& problem, const Capabilities& caps, Direction direction,
            const PlanRow* row);
void forget_choices();

// The row chosen for the problem; null where none was.
const PlanRow* choice(const ConvProblem& problem, const Capabilities& caps, Direction direction);
// That, else plan()'s.
const PlanRow& chosen(const ConvProblem& problem, const Capabilities& caps, Direction direction);

}  // namespace fastconv
