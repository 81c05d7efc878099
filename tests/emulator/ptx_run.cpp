// Kernels executed from PTX instead of what g++ made of their sources, chosen by the address of the
// latter; see ptx.py.
#include <alloca.h>
#include <string.h>

#include <stdexcept>
#include <unordered_map>

#include "engine.h"
#include "ptx.h"

namespace emulator {
namespace ptx {
namespace {

std::map<std::string, Kernel> kernels;
std::unordered_map<const void*, Kernel*> chosen;

void fill_special(const Kernel& k, uint64_t* slots) {
  const uint3 tid = thread_index, ctaid = block_index;
  const dim3 ntid = block_size, nctaid = grid_size;
  const struct {
    const char* name;
    unsigned x, y, z;
  } all[] = {{"%tid.", tid.x, tid.y, tid.z},
             {"%ctaid.", ctaid.x, ctaid.y, ctaid.z},
             {"%ntid.", ntid.x, ntid.y, ntid.z},
             {"%nctaid.", nctaid.x, nctaid.y, nctaid.z}};
  for (const Special& s : k.specials)
    for (const auto& one : all)
      if (s.name.rfind(one.name, 0) == 0)
        slots[s.slot] = s.name.back() == 'x' ? one.x : s.name.back() == 'y' ? one.y : one.z;
}

void run_thread(const Kernel& k, const void* const* arguments) {
  const size_t bytes = k.slots.size() * sizeof(uint64_t);
  Frame f = {static_cast<uint64_t*>(alloca(bytes)), 0};
  memcpy(f.slots, k.slots.data(), bytes);
  fill_special(k, f.slots);
  for (size_t i = 0; i < k.parameters.size(); ++i)
    f.slots[k.parameters[i]] = reinterpret_cast<uint64_t>(arguments[i]);
  const Instruction* code = k.code.data();
  while (f.next >= 0) {
    const Instruction& i = code[f.next++];
    if (i.guard < 0 || (f.slots[i.guard] & 1) != i.unless) i.run(f, i);
  }
}

const char* launch(Kernel& kernel, const char* name, dim3 grid, dim3 block, int shared_bytes,
                   const void* const* arguments) {
  kernel.ran = true;
  struct Call {
    const Kernel& kernel;
    const void* const* arguments;
  } call = {kernel, arguments};
  auto body = [](void* c) {
    const Call& call = *static_cast<Call*>(c);
    run_thread(call.kernel, call.arguments);
  };
  return emulator::launch(name, grid, block, shared_bytes, body, &call);
}

}  // namespace
}  // namespace ptx

const char* launch_ptx(const char* name, const CompiledKernel& compiled, dim3 grid, dim3 block,
                       int shared_bytes) {
  const auto found = ptx::chosen.find(compiled.address);
  if (found == ptx::chosen.end()) return kNotPtx;
  return ptx::launch(*found->second, name, grid, block, shared_bytes, compiled.arguments);
}

}  // namespace emulator

#define EXPORT extern "C" __attribute__((visibility("default")))
using namespace emulator;

// Adds a text's kernels, their names after `prefix`; null, or what could not be read.
EXPORT const char* emulator_ptx_parse(const char* text, const char* prefix) {
  static std::string error;
  try {
    for (auto& [name, kernel] : ptx::parse(text)) ptx::kernels[prefix + name] = std::move(kernel);
  } catch (const std::runtime_error& problem) {
    error = problem.what();
    return error.c_str();
  }
  return nullptr;
}

// The kernel that g++ compiled to `address` is executed from PTX from now on; null: from what g++
// made, all of them.
EXPORT int emulator_ptx_choose(const char* name, const void* address) {
  if (!name) return ptx::chosen.clear(), 0;
  const auto found = ptx::kernels.find(name);
  if (found == ptx::kernels.end()) return -1;
  ptx::chosen[address] = &found->second;
  return 0;
}

// Whether a kernel has been executed from PTX.
EXPORT int emulator_ptx_ran(const char* name) {
  const auto found = ptx::kernels.find(name);
  return found != ptx::kernels.end() && found->second.ran;
}

// Runs a kernel of a text; `arguments` point at its parameters. Null, or what went wrong.
EXPORT const char* emulator_ptx_launch(const char* name, const uint32_t grid[3], int32_t threads,
                                       int32_t shared_bytes, const void* const* arguments) {
  const auto found = ptx::kernels.find(name);
  if (found == ptx::kernels.end()) return "there is no such kernel";
  return ptx::launch(found->second, name, {grid[0], grid[1], grid[2]}, threads, shared_bytes,
                     arguments);
}
