// The state of the running block, shared by the emulator's own files.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <string>
#include <vector>

#include "emulator.h"

namespace emulator {

enum class Order : int32_t { ascending = 0, descending = 1, random = 2 };

// Set by the tests through abi.cpp.
struct Options {
  Order order = Order::ascending;
  uint32_t seed = 1;
  int32_t arch = 90;  // 80, 86, 89 or 90: decides how much shared memory a block may have
  int32_t count_banks = 0;
  int32_t any_memory = 0;  // global accesses outside the buffers are let through
};
extern Options options;

// Of shared memory: a phase is what the hardware can serve in one cycle at best (128 bytes); each
// further cycle is a bank conflict.
struct BankCount {
  int64_t phases, cycles;
};
extern BankCount bank_count;

// The names of the kernels launched since abi.cpp last cleared it.
extern std::vector<std::string> launch_log;

constexpr uint32_t kSharedBase = 1024;  // not 0, so that offset and address are not mixed up

struct Copy {
  uint32_t to;
  const void* from;
  int bytes;
  bool valid;
};
struct SharedAccess {
  uint32_t address;
  int bytes;
};

struct Warp;
struct Thread {
  void* stack_pointer;
  uint3 index;
  int linear, lane;
  Warp* warp;
  std::vector<Copy> copies;     // cp.async not landed, oldest first
  std::vector<int> group_ends;  // committed groups: index into copies past each
  std::vector<SharedAccess> accesses;
};
// Lanes that wait for each other in one operation.
struct Gathering {
  uint32_t mask, arrived;
  const WarpOp* op;
};
struct Warp {
  int index;
  uint32_t existing, alive, ready;
  void* args[32];
  Gathering gatherings[32];
  int gathering_count;
};
struct Block {
  const char* kernel;
  uint3 index;
  int threads, alive, at_barrier;
  const char* barrier_file;  // where those at_barrier wait
  int barrier_line;
  char* shared;  // ends at a page that cannot be accessed
  int shared_bytes;
};
extern Block block;
extern Thread* current;  // null outside a launch
Thread& thread_at(int linear);
Warp& warp_at(int index);

// Ends the launch: from a fiber or a signal handler, with the report already in `error`.
[[noreturn]] void abandon();
extern std::string error;

// To float32 toward zero, as tensor cores round (warp.cpp).
float cut(double v);

// memory.cpp
bool prepare_shared(int bytes);
void poison_shared();
void install_fault_handler();
void restore_fault_handler();
std::string describe_fault();
bool check_canaries();  // false: `error` says which buffer was written past its end
void flush_shared_accesses(Warp& warp);
bool stack_holds(const void* p);

}  // namespace emulator
