#include "cpu.h"

#include <stdlib.h>
#include <string.h>

#include <atomic>
#include <memory>
#include <new>
#include <vector>

#include "../error.h"
#include "../pages.h"

namespace fastconv {

extern const KernelTable kernels_baseline;
#ifdef FASTCONV_X86
// Weak: null where a test build leaves them out (FASTCONV_BUILD_ISAS).
extern const KernelTable kernels_avx2 __attribute__((weak));
extern const KernelTable kernels_avx512 __attribute__((weak));
extern const KernelTable kernels_wide __attribute__((weak));
#endif

namespace {

struct Isa {
  const KernelTable* table;
  bool by_default;  // false: only where FASTCONV_ISA names it
};

// Those this processor runs, narrow to wide.
std::vector<Isa> isas() {
  std::vector<Isa> found = {{&kernels_baseline, true}};
#ifdef FASTCONV_X86
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
  if (avx2 && &kernels_wide) found.push_back({&kernels_wide, false});
  if (avx2 && &kernels_avx2) found.push_back({&kernels_avx2, true});
  if (avx2 && avx512 && &kernels_avx512) found.push_back({&kernels_avx512, true});
#endif
  return found;
}

const KernelTable* find_isa(const std::string& name) {
  const KernelTable* chosen = nullptr;
  for (const Isa& isa : isas())
    if (name.empty() ? isa.by_default : name == isa.table->isa) chosen = isa.table;
  check(chosen, "FASTCONV_ISA=", name, " is not available here; choose one of ", cpu_isas());
  return chosen;
}

std::atomic<const KernelTable*> current{nullptr};
std::atomic<bool> bf16_dots_wanted{true};

// Tables of a processor without the instruction have it as two FMAs.
bool has_bf16_dots(const KernelTable& table) {
#ifdef FASTCONV_X86
  if (&table == &kernels_avx512) return __builtin_cpu_supports("avx512bf16");
#endif
  return table.couples;
}

}  // namespace

std::string cpu_isas() {
  std::string names;
  for (const Isa& isa : isas()) names += (names.empty() ? "" : " ") + std::string(isa.table->isa);
  return names;
}

namespace {

void grouped_tiles(const KernelTable& table, std::vector<std::pair<std::string, bool>>& tiles) {
  constexpr const char* kOf[3] = {" float32 depthwise", " float64 depthwise", " float32 groups"};
  constexpr int kKinds = std::size(kGroupedTaps);
  constexpr const char* kGrads[kGroupedGradKinds] = {"1 vector", "2 vectors", "2 channels",
                                                     "4 channels"};
  for (int of = 0; of < (table.panel_f32 >= 16 ? 3 : 2); ++of) {
    const std::string name = table.isa + std::string(kOf[of]);
    for (size_t size = 0; size < std::size(kGroupedPixels); ++size)
      for (int kind = 0; kind < (of == 2 ? kGroupTaps : kKinds); ++kind)
        tiles.emplace_back(name + " tile " + std::to_string(kGroupedPixels[size]) + ", " +
                               std::to_string(kGroupedTaps[kind].taps) + " taps of stride " +
                               std::to_string(kGroupedTaps[kind].stride),
                           table.grouped_ran[of][0] >> (size * kKinds + kind) & 1);
    for (int kind = 0; kind < kGroupedGradKinds; ++kind)
      for (int run = 0; run < kGroupedRuns && (kind >= 2) == (of == 2); ++run)
        tiles.emplace_back(
            name + " weight_grad of " + kGrads[kind] + ", " + std::to_string(run + 1) + " taps",
            table.grouped_ran[of][1] >> (kind * kGroupedRuns + run) & 1);
  }
}

}  // namespace

std::vector<std::pair<std::string, bool>> cpu_tiles() {
  std::vector<std::pair<std::string, bool>> tiles;
  constexpr const char* kKinds[kTileKinds] = {"tile", "weight_grad tile", "weight_grad row tile",
                                              "couples tile", "couples weight_grad row tile"};
  for (const Isa& isa : isas())
    for (int kind = 0; kind < (has_bf16_dots(*isa.table) ? kTileKinds : kTileKinds - 2); ++kind)
      for (int width = 0; width < (isa.table->pairs ? kTileVectors : 2); ++width)
        for (int bit = 0; bit < 32; ++bit)
          if (bit % 16 < kTileOperands && (bit < 16 || kind < kTileKinds - 2))
            tiles.emplace_back(std::string(isa.table->isa) +
                                   (bit < 16 ? " float32 " : " float64 ") + kKinds[kind] + " " +
                                   std::to_string(bit % 16 + 1) + " of " +
                                   std::to_string(width + 1) + " vectors",
                               isa.table->tiles_ran[kind][width] >> bit & 1);
  for (const Isa& isa : isas())
    for (int f64 = 0; f64 < 2; ++f64)
      for (int bit = 0; bit < (isa.table->pairs ? 32 : 16); ++bit)
        if (bit % 8 < kTileOperands)
          tiles.emplace_back(std::string(isa.table->isa) + (f64 ? " float64" : " float32") +
                                 " row tile " + std::to_string(bit % 8 + 1) + " of " +
                                 std::to_string(bit / 8 + 1) + " vectors",
                             isa.table->row_tiles_ran[f64] >> bit & 1);
  constexpr const char* kFew[] = {" float32 ", " couples ", " float64 "};  // by groups of 8 bits
  for (const Isa& isa : isas())
    for (bool dots : {true, false})
      for (int bit = 0; bit < 24; ++bit)
        if (bit % 8 < kTileOperands && (bit / 8 != 1 || (dots && has_bf16_dots(*isa.table))))
          tiles.emplace_back(
              isa.table->isa + std::string(kFew[bit / 8]) + (dots ? "dot" : "axpy") + " tile " +
                  std::to_string(bit % 8 + 1),
              *(dots ? isa.table->dot_tiles_ran : isa.table->axpy_tiles_ran) >> bit & 1);
  for (const Isa& isa : isas()) grouped_tiles(*isa.table, tiles);
  return tiles;
}

void set_cpu_isa(const std::string& name) { current = find_isa(name); }

const KernelTable& cpu_kernels() {
  const KernelTable* table = current.load(std::memory_order_relaxed);
  if (!table) {
    const char* name = getenv("FASTCONV_ISA");
    table = find_isa(name ? name : "");
    current = table;
  }
  return *table;
}

bool cpu_bf16_dots() { return bf16_dots_wanted && has_bf16_dots(cpu_kernels()); }
void set_bf16_dots(bool wanted) { bf16_dots_wanted = wanted; }

bool poison_scratch = false;

void* scratch(Slot slot, size_t bytes) {
  struct Free {
    void operator()(void* p) const { free(p); }
  };
  struct Buffer {
    std::unique_ptr<void, Free> memory;
    size_t size = 0;
  };
  static thread_local Buffer buffers[3];
  Buffer& b = buffers[static_cast<int>(slot)];
  constexpr size_t kept = size_t{64} << 20;
  if (bytes > b.size || (b.size > kept && bytes < b.size / 2)) {
    b.memory.reset();
    b.size = 0;
    const size_t page = bytes < kHugePage ? 4096 : kHugePage;
    const size_t rounded = (bytes + page - 1) / page * page;
    b.memory.reset(aligned_alloc(page, rounded));
    if (!b.memory) throw std::bad_alloc();
    want_huge_pages(b.memory.get(), rounded);
    b.size = rounded;
  }
  if (poison_scratch && bytes) memset(b.memory.get(), 0xff, bytes);
  return b.memory.get();
}

}  // namespace fastconv
