// Global memory of the emulated device, for abi.cpp.
#pragma once
#include <stdint.h>

namespace emulator {

// `bytes` of poison between two pages that cannot be accessed; it ends (right) or begins at one.
// The address is a multiple of 16, so up to 15 bytes of canary may follow.
void* allocate(int64_t bytes, bool right, const char* name);
void release(void* data);

void count_phase(const uint32_t* addresses, int lanes, int bytes);

}  // namespace emulator
