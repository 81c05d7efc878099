// Memory of the emulated device: guarded global buffers, poisoned shared memory, asynchronous
// copies that land at the wait, faults turned into reports, and the counter of bank conflicts.
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>

#include "engine.h"
#include "memory.h"

namespace emulator {

BankCount bank_count;

namespace {

constexpr size_t kPage = 4096;
constexpr int kPoison = 0xff;                      // NaN in half, bf16 and float
constexpr int64_t kMostPoison = int64_t(1) << 30;  // bytes of a buffer that are poisoned

struct Buffer {
  char *region, *data;
  size_t region_bytes, bytes;
  std::string name;
};
std::vector<Buffer> buffers;
size_t last_hit;

char* shared_region;
constexpr size_t kSharedRegion = 256 << 10;

struct sigaction previous_segv, previous_bus;
stack_t previous_stack;
alignas(16) char fault_stack[64 << 10];

size_t round_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

// "24 bytes past the end of buffer input (4096 bytes)", for the nearest buffer.
std::string describe_address(const void* p) {
  const char* c = static_cast<const char*>(p);
  for (const Buffer& b : buffers) {
    if (c < b.region || c >= b.region + b.region_bytes) continue;
    char text[200];
    if (c < b.data)
      snprintf(text, sizeof text, "%zd bytes before buffer %s (%zu bytes)", b.data - c,
               b.name.c_str(), b.bytes);
    else if (c >= b.data + b.bytes)
      snprintf(text, sizeof text, "%zd bytes past the end of buffer %s (%zu bytes)",
               c - (b.data + b.bytes), b.name.c_str(), b.bytes);
    else
      snprintf(text, sizeof text, "at byte %zd of buffer %s (%zu bytes)", c - b.data,
               b.name.c_str(), b.bytes);
    return text;
  }
  char text[64];
  snprintf(text, sizeof text, "at %p, in no buffer", p);
  return text;
}

void on_fault(int signal, siginfo_t* info, void* context) {
  if (!current) {  // not a kernel's fault: let it happen again under the old handler
    restore_fault_handler();
    return;
  }
  (void)signal;
  const char* verb = "access to memory";
#if defined(__x86_64__)
  const ucontext_t* state = static_cast<const ucontext_t*>(context);
  verb = state->uc_mcontext.gregs[REG_ERR] & 2 ? "write" : "read";
#else
  (void)context;
#endif
  if (stack_holds(info->si_addr)) fail("stack overflow");
  if (info->si_addr >= shared_region && info->si_addr < shared_region + kSharedRegion + kPage)
    fail("%s past the end of shared memory (%d bytes)", verb, block.shared_bytes);
  fail("%s %s", verb, describe_address(info->si_addr).c_str());
}

}  // namespace

// ---- Global memory ----

void* allocate(int64_t bytes, bool right, const char* name) {
  const size_t room = round_up(std::max<int64_t>(bytes, 1), kPage);
  void* region = mmap(nullptr, room + 2 * kPage, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (region == MAP_FAILED) return nullptr;
  Buffer b;
  b.region = static_cast<char*>(region);
  b.region_bytes = room + 2 * kPage;
  b.bytes = bytes;
  b.name = name;
  b.data = b.region + kPage + (right ? room - round_up(bytes, 16) : 0);
  // Buffers that are wide for the sake of their offsets stay untouched, but for the canaries.
  if (bytes <= kMostPoison) {
    memset(b.region + kPage, kPoison, room);
  } else {
    memset(b.region + kPage, kPoison, b.data - b.region - kPage);
    memset(b.data + bytes, kPoison, b.region + kPage + room - (b.data + bytes));
  }
  mprotect(b.region, kPage, PROT_NONE);
  mprotect(b.region + kPage + room, kPage, PROT_NONE);
  buffers.push_back(b);
  return b.data;
}

void admit(void* data, int64_t bytes, const char* name) {
  buffers.push_back({nullptr, static_cast<char*>(data), 0, size_t(bytes), name});
}

void dismiss() {
  buffers.erase(
      std::remove_if(buffers.begin(), buffers.end(), [](const Buffer& b) { return !b.region; }),
      buffers.end());
  last_hit = 0;
}

void release(void* data) {
  for (size_t i = 0; i < buffers.size(); ++i) {
    if (buffers[i].data != data) continue;
    munmap(buffers[i].region, buffers[i].region_bytes);
    buffers.erase(buffers.begin() + i);
    last_hit = 0;
    return;
  }
}

bool check_canaries() {
  for (const Buffer& b : buffers) {
    if (!b.region) continue;
    const char* end = b.region + b.region_bytes - kPage;
    for (const char* c = b.region + kPage; c < end; ++c) {
      if (c == b.data) c += b.bytes;
      if (c < end && *c != char(kPoison)) {
        error = std::string("kernel ") + block.kernel + ": wrote " + describe_address(c);
        return false;
      }
    }
  }
  return true;
}

void check_global(const void* p, int bytes, bool write, const char* what) {
  const char* c = static_cast<const char*>(p);
  if (uintptr_t(p) % bytes)
    fail("%s of %d bytes, misaligned, %s", what, bytes, describe_address(p).c_str());
  for (size_t i = 0; i <= buffers.size(); ++i) {
    const size_t at = i ? i - 1 : last_hit;
    if (at >= buffers.size()) continue;
    const Buffer& b = buffers[at];
    if (c >= b.data && c + bytes <= b.data + b.bytes) {
      last_hit = at;
      return;
    }
  }
  if (options.any_memory) return;
  fail("%s: %s of %d bytes %s", what, write ? "write" : "read", bytes, describe_address(p).c_str());
}

// ---- Shared memory ----

bool prepare_shared(int bytes) {
  if (!shared_region) {
    void* region = mmap(nullptr, kSharedRegion + kPage, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (region == MAP_FAILED) return false;
    shared_region = static_cast<char*>(region);
    mprotect(shared_region + kSharedRegion, kPage, PROT_NONE);
  }
  block.shared_bytes = bytes;
  block.shared = shared_region + kSharedRegion - round_up(bytes, 16);
  return true;
}

void poison_shared() { memset(block.shared, kPoison, round_up(block.shared_bytes, 16)); }

void* shared_memory() { return block.shared; }

uint32_t shared_address(const void* p) {
  const ptrdiff_t offset = static_cast<const char*>(p) - block.shared;
  if (offset < 0 || offset > block.shared_bytes) fail("shared_address of what is not shared");
  return kSharedBase + uint32_t(offset);
}

char* shared_bytes_at(uint32_t address, int bytes, const char* what) {
  const int64_t offset = int64_t(address) - kSharedBase;
  if (address % bytes)
    fail("%s of %d bytes at shared offset %lld: misaligned", what, bytes,
         static_cast<long long>(offset));
  if (offset < 0 || offset + bytes > block.shared_bytes)
    fail("%s of %d bytes at shared offset %lld, outside the %d bytes of shared memory", what, bytes,
         static_cast<long long>(offset), block.shared_bytes);
  return block.shared + offset;
}

// ---- cp.async: the destination is poison until this thread waits ----

void cp_async(uint32_t to, const void* from, int bytes, bool valid) {
  memset(shared_bytes_at(to, bytes, "cp.async"), kPoison, bytes);
  if (valid) check_global(from, bytes, false, "cp.async");
  if (uintptr_t(from) % bytes) fail("cp.async of %d bytes: misaligned source", bytes);
  note_shared_access(to, bytes);
  current->copies.push_back({to, from, bytes, valid});
}

void cp_async_commit_group() { current->group_ends.push_back(int(current->copies.size())); }

void cp_async_wait_group(int pending) {
  Thread& t = *current;
  const int landing = int(t.group_ends.size()) - pending;
  if (landing <= 0) return;
  const int count = t.group_ends[landing - 1];
  for (int i = 0; i < count; ++i) {
    const Copy& copy = t.copies[i];
    char* to = shared_bytes_at(copy.to, copy.bytes, "cp.async");
    if (copy.valid)
      memcpy(to, copy.from, copy.bytes);
    else
      memset(to, 0, copy.bytes);
  }
  t.copies.erase(t.copies.begin(), t.copies.begin() + count);
  t.group_ends.erase(t.group_ends.begin(), t.group_ends.begin() + landing);
  for (int& end : t.group_ends) end -= count;
}

// ---- Bank conflicts ----

// 32 banks of 4 bytes. An instruction is served in phases of as many lanes as make 128 bytes; a
// phase takes as many cycles as the busiest bank has different words.
void count_phase(const uint32_t* addresses, int lanes, int bytes) {
  uint32_t words[32][32];
  int used[32] = {}, cycles = 0;
  for (int l = 0; l < lanes; ++l)
    for (int b = 0; b < bytes; b += 4) {
      const uint32_t word = (addresses[l] + b) / 4, bank = word % 32;
      if (std::find(words[bank], words[bank] + used[bank], word) == words[bank] + used[bank])
        words[bank][used[bank]++] = word;
      cycles = std::max(cycles, used[bank]);
    }
  bank_count.phases += 1;
  bank_count.cycles += cycles;
}

void note_shared_access(uint32_t address, int bytes) {
  if (options.count_banks) current->accesses.push_back({address, bytes});
}

// Lanes do not run in step here, so the i-th access of each since they last met is taken for one
// instruction; where lanes diverge the count is only an estimate.
void flush_shared_accesses(Warp& warp) {
  if (!options.count_banks) return;
  size_t most = 0;
  for (int l = 0; l < 32; ++l)
    if (warp.existing >> l & 1)
      most = std::max(most, thread_at(warp.index * 32 + l).accesses.size());
  for (size_t i = 0; i < most; ++i) {
    uint32_t addresses[32];
    int lanes = 0, bytes = 4;
    auto serve = [&] {
      if (lanes) count_phase(addresses, lanes, bytes);
      lanes = 0;
    };
    for (int l = 0; l < 32; ++l) {
      if (!(warp.existing >> l & 1)) continue;
      const std::vector<SharedAccess>& accesses = thread_at(warp.index * 32 + l).accesses;
      if (i < accesses.size()) {
        bytes = std::max(4, accesses[i].bytes);
        addresses[lanes++] = accesses[i].address;
      }
      if ((l + 1) * bytes % 128 == 0) serve();
    }
    serve();
  }
  for (int l = 0; l < 32; ++l)
    if (warp.existing >> l & 1) thread_at(warp.index * 32 + l).accesses.clear();
}

// ---- Faults ----

void install_fault_handler() {
  stack_t stack = {};
  stack.ss_sp = fault_stack;
  stack.ss_size = sizeof fault_stack;
  sigaltstack(&stack, &previous_stack);
  struct sigaction action = {};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;  // the handler does not return
  sigaction(SIGSEGV, &action, &previous_segv);
  sigaction(SIGBUS, &action, &previous_bus);
}

void restore_fault_handler() {
  sigaction(SIGSEGV, &previous_segv, nullptr);
  sigaction(SIGBUS, &previous_bus, nullptr);
  sigaltstack(&previous_stack, nullptr);
}

}  // namespace emulator
