// Runs a kernel on host memory: blocks one after another, the threads of a block as fibers.
//
// A fiber runs until it has to wait (barrier, warp operation, exit) and then switches straight to
// the next ready one: the lowest, the highest or a random one, by options.order. A missing barrier
// gives different results under different orders. When nothing is ready and not everything has
// exited, the block is stuck, and the report says who waits where.
#include "engine.h"

#include <stdarg.h>
#include <stdio.h>
#include <sys/mman.h>

#include <algorithm>

#if !defined(__x86_64__) || defined(EMULATOR_UCONTEXT)
#include <ucontext.h>
#endif

namespace emulator {

uint3 thread_index, block_index;
dim3 block_size, grid_size;
Options options;
Block block;
Thread* current;
std::string error;
std::vector<std::string> launch_log;

namespace {

constexpr int kMaxThreads = 1024, kMaxWarps = kMaxThreads / 32;
constexpr size_t kStackBytes = 128 << 10, kGuardBytes = 4096;

Thread threads[kMaxThreads];
Warp warps[kMaxWarps];
uint32_t ready_warps;
uint32_t random_state;
char* stacks;
void* main_stack_pointer;
void (*kernel_body)(void*);
void* kernel_context;

}  // namespace

// Saves the registers a callee must keep, stores the stack pointer, loads another one: 9 ns, where
// swapcontext makes two system calls.
#if defined(__x86_64__) && !defined(EMULATOR_UCONTEXT)
extern "C" void emulator_switch(void** save, void* load);
asm(R"(
.text
.globl emulator_switch
.hidden emulator_switch
.type emulator_switch, @function
emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulator_switch, .-emulator_switch
)");

static void* new_stack(char* top, void (*entry)()) {
  void** sp = reinterpret_cast<void**>(top) - 8;  // six registers, the entry, a null return address
  memset(sp, 0, 8 * sizeof(void*));
  sp[6] = reinterpret_cast<void*>(entry);
  return sp;
}
#else
static void emulator_switch(void** save, void* load) {
  ucontext_t here;  // on the stack that goes to sleep
  *save = &here;
  swapcontext(&here, static_cast<ucontext_t*>(load));
}

static void* new_stack(char* top, void (*entry)()) {
  ucontext_t* start = reinterpret_cast<ucontext_t*>(top - (sizeof(ucontext_t) + 63) / 64 * 64);
  getcontext(start);
  start->uc_stack.ss_sp = top - kStackBytes;
  start->uc_stack.ss_size = reinterpret_cast<char*>(start) - (top - kStackBytes);
  makecontext(start, entry, 0);
  return start;
}
#endif

namespace {

uint32_t random_below(uint32_t n) {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 17;
  random_state ^= random_state << 5;
  return uint32_t(uint64_t(random_state) * n >> 32);
}

int pick(uint32_t set) {
  if (options.order == Order::ascending) return __builtin_ctz(set);
  if (options.order == Order::descending) return 31 - __builtin_clz(set);
  for (int skip = random_below(__builtin_popcount(set)); skip > 0; --skip) set &= set - 1;
  return __builtin_ctz(set);
}

void set_ready(Warp& warp, uint32_t lanes) {
  warp.ready |= lanes;
  ready_warps |= 1u << warp.index;
}

Thread* take_next() {
  if (!ready_warps) return nullptr;
  Warp& warp = warps[pick(ready_warps)];
  const int lane = pick(warp.ready);
  warp.ready &= ~(1u << lane);
  if (!warp.ready) ready_warps &= ~(1u << warp.index);
  return &threads[warp.index * 32 + lane];
}

std::string where(const Thread& t) {
  char text[160];
  snprintf(text, sizeof text, "kernel %s, block (%u, %u, %u), thread (%u, %u, %u)", block.kernel,
           block.index.x, block.index.y, block.index.z, t.index.x, t.index.y, t.index.z);
  return text;
}

const char* base_name(const char* path) {
  const char* slash = strrchr(path, '/');
  return slash ? slash + 1 : path;
}

// Who waits where, when nothing is ready.
std::string describe_deadlock() {
  char text[256];
  snprintf(text, sizeof text, "kernel %s, block (%u, %u, %u): deadlock; %d of %d threads exited",
           block.kernel, block.index.x, block.index.y, block.index.z, block.threads - block.alive,
           block.threads);
  std::string report = text;
  if (block.at_barrier) {
    snprintf(text, sizeof text, "; %d wait at __syncthreads %s:%d", block.at_barrier,
             base_name(block.barrier_file), block.barrier_line);
    report += text;
  }
  for (int w = 0; w * 32 < block.threads; ++w)
    for (int g = 0; g < warps[w].gathering_count; ++g) {
      const Gathering& gathering = warps[w].gatherings[g];
      snprintf(text, sizeof text, "; warp %d: lanes 0x%x wait in %s for lanes 0x%x", w,
               gathering.arrived, gathering.op->name, gathering.mask & ~gathering.arrived);
      report += text;
    }
  return report;
}

void resume(Thread* next) {
  current = next;
  thread_index = next->index;
}

// The current fiber waits (it was made ready before, or another one will do that).
void wait() {
  Thread* self = current;
  Thread* next = take_next();
  if (next == self) return;
  if (!next) {
    error = describe_deadlock();
    abandon();
  }
  resume(next);
  emulator_switch(&self->stack_pointer, next->stack_pointer);
}

void thread_main() {
  kernel_body(kernel_context);
  Thread* self = current;
  flush_shared_accesses(*self->warp);
  self->warp->alive &= ~(1u << self->lane);
  --block.alive;
  Thread* next = take_next();
  if (!next && block.alive) error = describe_deadlock();
  if (!next) abandon();
  resume(next);
  emulator_switch(&self->stack_pointer, next->stack_pointer);
  __builtin_unreachable();
}

void start_block(uint3 index) {
  block.index = block_index = index;
  block.alive = block.threads;
  block.at_barrier = 0;
  poison_shared();
  ready_warps = 0;
  for (int w = 0; w * 32 < block.threads; ++w) {
    Warp& warp = warps[w];
    const int lanes = std::min(32, block.threads - w * 32);
    warp.index = w;
    warp.existing = warp.alive = lanes == 32 ? ~0u : (1u << lanes) - 1;
    warp.ready = 0;
    warp.gathering_count = 0;
    set_ready(warp, warp.existing);
  }
  for (int t = 0; t < block.threads; ++t) {
    Thread& thread = threads[t];
    const unsigned x = block_size.x, y = block_size.y;
    thread.index = {t % x, t / x % y, t / (x * y)};
    thread.linear = t;
    thread.lane = t % 32;
    thread.warp = &warps[t / 32];
    thread.copies.clear();
    thread.group_ends.clear();
    thread.accesses.clear();
    thread.stack_pointer = new_stack(stacks + (t + 1) * (kStackBytes + kGuardBytes), thread_main);
  }
  resume(take_next());
  emulator_switch(&main_stack_pointer, current->stack_pointer);
  current = nullptr;
}

bool prepare_stacks() {
  if (stacks) return true;
  const size_t each = kStackBytes + kGuardBytes;
  void* region = mmap(nullptr, kMaxThreads * each, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (region == MAP_FAILED) return false;
  stacks = static_cast<char*>(region);
  for (int t = 0; t < kMaxThreads; ++t) mprotect(stacks + t * each, kGuardBytes, PROT_NONE);
  return true;
}

// What a GPU refuses before it starts anything.
const char* launch_refusal(dim3 grid, dim3 size, int shared_bytes) {
  const int limit = options.arch == 80 ? 163 : options.arch < 90 ? 99 : 227;
  const uint64_t count = uint64_t(size.x) * size.y * size.z;
  if (count == 0 || count > kMaxThreads || size.x > 1024 || size.y > 1024 || size.z > 64)
    return "a block has 1 to 1024 threads";
  if (!grid.x || !grid.y || !grid.z) return "the grid is empty";
  if (grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535) return "the grid is too large";
  if (shared_bytes < 0 || shared_bytes > limit << 10)
    return "more shared memory than a block may have";
  return nullptr;
}

}  // namespace

Thread& thread_at(int linear) { return threads[linear]; }
Warp& warp_at(int index) { return warps[index]; }

bool stack_holds(const void* p) {
  const char* c = static_cast<const char*>(p);
  return stacks && c >= stacks && c < stacks + kMaxThreads * (kStackBytes + kGuardBytes);
}

void abandon() {
  void* dropped;
  emulator_switch(&dropped, main_stack_pointer);
  __builtin_unreachable();
}

void fail(const char* format, ...) {
  char text[512];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  error = (current ? where(*current) + ": " : std::string()) + text;
  if (current) abandon();
  __builtin_trap();  // only kernels call this
}

void barrier(const char* file, int line) {
  if (block.at_barrier && (block.barrier_line != line || strcmp(block.barrier_file, file) != 0))
    fail("divergent __syncthreads at %s:%d, while %d threads wait at %s:%d", base_name(file), line,
         block.at_barrier, base_name(block.barrier_file), block.barrier_line);
  block.barrier_file = file;
  block.barrier_line = line;
  // Threads that have exited never arrive: the block is stuck, and says so.
  if (++block.at_barrier == block.threads) {
    block.at_barrier = 0;
    for (int w = 0; w * 32 < block.threads; ++w) {
      flush_shared_accesses(warps[w]);
      set_ready(warps[w], warps[w].existing);
    }
  }
  wait();
}

void collective(const WarpOp& op, uint32_t mask, void* args) {
  Warp& warp = *current->warp;
  const uint32_t bit = 1u << current->lane;
  mask &= warp.existing;
  if (!(mask & bit)) fail("%s: lane %d is not in its own mask 0x%x", op.name, current->lane, mask);
  int g = 0;
  while (g < warp.gathering_count && !(warp.gatherings[g].mask & mask)) ++g;
  Gathering& gathering = warp.gatherings[g];
  if (g == warp.gathering_count) {
    gathering = {mask, 0, &op};
    ++warp.gathering_count;
  } else if (gathering.op != &op || gathering.mask != mask) {
    fail("divergent warp: %s over lanes 0x%x, while lanes 0x%x wait in %s over 0x%x", op.name, mask,
         gathering.arrived, gathering.op->name, gathering.mask);
  }
  warp.args[current->lane] = args;
  gathering.arrived |= bit;
  if (gathering.arrived == mask) {
    flush_shared_accesses(warp);
    if (op.run) op.run(warp.args, mask);
    gathering = warp.gatherings[--warp.gathering_count];
    set_ready(warp, mask);
  }
  wait();
}

const char* launch(const char* name, dim3 grid, dim3 size, int shared_bytes, void (*body)(void*),
                   void* context) {
  error.clear();
  launch_log.push_back(name);
  block.kernel = name;
  current = nullptr;
  if (const char* refusal = launch_refusal(grid, size, shared_bytes)) {
    char text[256];
    snprintf(text, sizeof text,
             "kernel %s: %s (grid %u x %u x %u, block %u x %u x %u, %d bytes of shared memory)",
             name, refusal, grid.x, grid.y, grid.z, size.x, size.y, size.z, shared_bytes);
    error = text;
    return error.c_str();
  }
  if (!prepare_stacks() || !prepare_shared(shared_bytes)) return "the emulator is out of memory";
  grid_size = grid;
  block_size = size;
  block.threads = size.x * size.y * size.z;
  kernel_body = body;
  kernel_context = context;
  random_state = options.seed * 2654435761u | 1;

  const int64_t blocks = int64_t(grid.x) * grid.y * grid.z;
  std::vector<int64_t> sequence(blocks);
  for (int64_t i = 0; i < blocks; ++i) sequence[i] = i;
  if (options.order == Order::descending) std::reverse(sequence.begin(), sequence.end());
  if (options.order == Order::random)
    for (int64_t i = blocks - 1; i > 0; --i) std::swap(sequence[i], sequence[random_below(i + 1)]);
  install_fault_handler();
  for (int64_t b : sequence) {
    start_block({unsigned(b % grid.x), unsigned(b / grid.x % grid.y),
                 unsigned(b / (int64_t(grid.x) * grid.y))});
    if (!error.empty()) break;
  }
  restore_fault_handler();
  if (error.empty()) check_canaries();
  return error.empty() ? nullptr : error.c_str();
}

}  // namespace emulator
