// The emulator's C interface, for ctypes (__init__.py).
#include <string.h>

#include "engine.h"
#include "memory.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT void emulator_configure(const emulator::Options* options) { emulator::options = *options; }

EXPORT void* emulator_allocate(int64_t bytes, int32_t right, const char* name) {
  return emulator::allocate(bytes, right, name);
}
EXPORT void emulator_release(void* data) { emulator::release(data); }
EXPORT void emulator_admit(void* data, int64_t bytes, const char* name) {
  emulator::admit(data, bytes, name);
}
EXPORT void emulator_dismiss() { emulator::dismiss(); }

// Shared-memory phases and the cycles they took, counted since the last call.
EXPORT void emulator_take_bank_count(int64_t counts[2]) {
  counts[0] = emulator::bank_count.phases;
  counts[1] = emulator::bank_count.cycles;
  emulator::bank_count = {};
}

// The names of the kernels launched since the last call, one a line.
EXPORT const char* emulator_take_log() {
  static std::string lines;
  lines.clear();
  for (const std::string& name : emulator::launch_log) lines += name + "\n";
  emulator::launch_log.clear();
  return lines.c_str();
}
