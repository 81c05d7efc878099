#include "blocks.h"

#include <unistd.h>

#include <atomic>
#include <mutex>
#include <vector>

#include "pages.h"

// Of torch 2.11 and newer, where the tensor's end calls `deleter`.
extern "C" __attribute__((weak)) AOTITorchError
torch_from_blob(void* data, int64_t ndim, const int64_t* sizes, const int64_t* strides,
                int64_t storage_offset, int32_t dtype, int32_t device_type, int32_t device_index,
                AtenTensorHandle* made, int32_t layout, const uint8_t* opaque, int64_t opaque_size,
                void (*deleter)(void* data, void* context), void* context);

namespace fastconv {
namespace {

struct Block {
  char* begin;
  size_t size;  // a multiple of kHugePage, as `begin` is
};

// Operands at one place of their pages, as malloc's are: a store must not look like the address
// of a load that follows.
constexpr size_t kBefore = 64;

std::mutex& lock() {
  static std::mutex& mutex = *new std::mutex;  // never destroyed: tensors may outlive statics
  return mutex;
}
std::vector<Block*>& freed() {  // oldest first
  static std::vector<Block*>& blocks = *new std::vector<Block*>;
  return blocks;
}
std::atomic<size_t> kept{0};
std::atomic<size_t> limit{(size_t)sysconf(_SC_PHYS_PAGES) / 4 * (size_t)sysconf(_SC_PAGE_SIZE)};

void unmap(Block* block) {
  munmap(block->begin, block->size);
  delete block;
}

Block* map(size_t size) {
  void* mapped =
      mmap(nullptr, size + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  char* const from = (char*)mapped;
  char* const begin = (char*)(((uintptr_t)from + kHugePage - 1) / kHugePage * kHugePage);
  char* const end = begin + size;
  if (begin > from) munmap(from, begin - from);
  if (from + kHugePage > begin) munmap(end, from + kHugePage - begin);
  want_huge_pages(begin, size);
  return new Block{begin, size};
}

// The smallest freed block that `size` fits and fills half of, of several the last: it may still be
// in the caches.
Block* take(size_t size) {
  // NOTE never waits: a forked child may have the lock of a thread it does not have.
  const std::unique_lock<std::mutex> locked(lock(), std::try_to_lock);
  if (!locked) return nullptr;
  auto best = freed().end();
  for (auto i = freed().begin(); i != freed().end(); ++i)
    if ((*i)->size >= size && (*i)->size / 2 <= size &&
        (best == freed().end() || (*i)->size <= (*best)->size))
      best = i;
  if (best == freed().end()) return nullptr;
  Block* const block = *best;
  freed().erase(best);
  kept -= block->size;
  return block;
}

// Keeps a block, or as many of the newest as the limit allows.
void put(void*, void* context) {
  Block* block = (Block*)context;
  const size_t most = limit;
  const std::unique_lock<std::mutex> locked(lock(), std::try_to_lock);
  if (!locked || block->size > most || madvise(block->begin, block->size, MADV_FREE))
    return unmap(block);
  size_t oldest = 0;
  for (; kept + block->size > most; ++oldest) {
    kept -= freed()[oldest]->size;
    unmap(freed()[oldest]);
  }
  freed().erase(freed().begin(), freed().begin() + oldest);
  freed().push_back(block);
  kept += block->size;
}

}  // namespace

bool keeps_blocks() { return torch_from_blob && limit; }

bool tensor_in_block(int64_t dims, const int64_t* size, const int64_t* stride, int32_t dtype,
                     size_t bytes, AtenTensorHandle* made) {
  if (!keeps_blocks()) return false;
  const size_t whole = (bytes + kBefore + kHugePage - 1) / kHugePage * kHugePage;
  Block* block = take(whole);
  if (!block && !(block = map(whole))) return false;
  if (!torch_from_blob(block->begin + kBefore, dims, size, stride, 0, dtype,
                       aoti_torch_device_type_cpu(), -1, made, aoti_torch_layout_strided(), nullptr,
                       0, put, block))
    return true;
  unmap(block);
  return false;
}

size_t kept_bytes() { return kept; }

void release_blocks() {
  const std::lock_guard<std::mutex> locked(lock());
  for (Block* block : freed()) unmap(block);
  freed().clear();
  kept = 0;
}

void limit_blocks(size_t most) {
  limit = most;
  if (kept > most) release_blocks();
}

}  // namespace fastconv
