// What the torch side of every CPU op needs: the kernels of this machine, scratch memory.
#pragma once
#include <stddef.h>

#include <string>
#include <utility>
#include <vector>

#include "jobs.h"

namespace fastconv {

// The kernels in use: the widest ISA the processor has, or the one FASTCONV_ISA names.
const KernelTable& cpu_kernels();
// Whether dot products of bfloat16 are used; set_bf16_dots(false): not even where there are some.
bool cpu_bf16_dots();
void set_bf16_dots(bool wanted);
inline int64_t cpu_lanes() { return cpu_kernels().panel_f32 / 2; }  // float32 in a vector
// Every ISA this build has and this processor runs, narrow to wide.
std::string cpu_isas();
// Every register tile of those, by name, and whether it has run in this process.
std::vector<std::pair<std::string, bool>> cpu_tiles();
// Chooses an ISA by name ("" for the default); throws where it is unknown or cannot run here.
void set_cpu_isa(const std::string& name);

// Memory of this thread, 64-byte aligned, kept between calls up to a bound. Slots: `shared` and
// `folded` (fold.h) are read by every thread of a parallel region, `own` belongs to one task.
enum class Slot { shared, folded, own };
extern bool poison_scratch;  // tests: fill with NaN before each use
void* scratch(Slot slot, size_t bytes);

}  // namespace fastconv
