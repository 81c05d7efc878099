// Loads, stores and asynchronous copies; jumps and barriers.
#include "../../csrc/cuda/ptx.cuh"
#include "engine.h"
#include "ptx.h"

namespace emulator::ptx {
namespace {

void load(Frame& f, const Instruction& i, const char* from) {
  for (int e = 0; e < i.count; ++e, from += i.bytes) {
    uint64_t v = 0;
    memcpy(&v, from, i.bytes);
    const int above = 64 - 8 * i.bytes;
    if (i.sign) v = uint64_t(int64_t(v << above) >> above);
    f.slots[i.slot[e]] = v;
  }
}
void store(const Frame& f, const Instruction& i, char* to) {
  for (int e = 0; e < i.count; ++e) memcpy(to + e * i.bytes, f.slots + i.slot[1 + e], i.bytes);
}
// What the k-th operand points at.
char* global(const Frame& f, const Instruction& i, int k) {
  return reinterpret_cast<char*>(get<uint64_t>(f, i.slot[k]) + int64_t(i.offset[k]));
}

// to, from, bytes, and how many of them are read: all or none.
void copy_async(Frame& f, const Instruction& i) {
  const uint32_t bytes = get<uint32_t>(f, i.slot[2]), read = get<uint32_t>(f, i.slot[3]);
  if (read != 0 && read != bytes) fail("cp.async of %u bytes of which %u are read", bytes, read);
  cp_async(shared_operand(f, i, 0), global(f, i, 1), int(bytes), read != 0);
}

}  // namespace

void add_memory(Table& table) {
  table["ld.param"] = [](Frame& f, const Instruction& i) { load(f, i, global(f, i, i.count)); };
  table["ld.global"] = [](Frame& f, const Instruction& i) {
    const char* from = global(f, i, i.count);
    check_global(from, i.count * i.bytes, false, "ld.global");
    load(f, i, from);
  };
  table["st.global"] = [](Frame& f, const Instruction& i) {
    char* to = global(f, i, 0);
    check_global(to, i.count * i.bytes, true, "st.global");
    store(f, i, to);
  };
  table["ld.shared"] = [](Frame& f, const Instruction& i) {
    const uint32_t at = shared_operand(f, i, i.count);
    load(f, i, shared_bytes_at(at, i.count * i.bytes, "ld.shared"));
    note_shared_access(at, i.count * i.bytes);
  };
  table["st.shared"] = [](Frame& f, const Instruction& i) {
    const uint32_t at = shared_operand(f, i, 0);
    store(f, i, shared_bytes_at(at, i.count * i.bytes, "st.shared"));
    note_shared_access(at, i.count * i.bytes);
  };
  table["cp.async.cg.shared.global"] = table["cp.async.ca.shared.global"] = copy_async;
  table["cp.async.commit_group"] = [](Frame&, const Instruction&) { cp_async_commit_group(); };
  table["cp.async.wait_group"] = [](Frame& f, const Instruction& i) {
    cp_async_wait_group(get<int32_t>(f, i.slot[0]));
  };
  table["bra"] = [](Frame& f, const Instruction& i) { f.next = i.target; };
  table["ret"] = [](Frame& f, const Instruction&) { f.next = -1; };
  // NOTE one barrier of the source may be several here, so that where it stands says nothing.
  table["bar.sync"] = [](Frame&, const Instruction&) { barrier("the PTX", 0); };
  table["bar.warp.sync"] = [](Frame& f, const Instruction& i) {
    fastconv::cuda::ptx::syncwarp(get<uint32_t>(f, i.slot[0]));
  };
}

}  // namespace emulator::ptx
