// Global memory of the emulated device, for abi.cpp.
#pragma once
#include <stdint.h>

namespace emulator {

// `bytes` of poison between two pages that cannot be accessed; it ends (right) or begins at one.
// The address is a multiple of 16, so up to 15 bytes of canary may follow.
void* allocate(int64_t bytes, bool right, const char* name);
void release(void* data);

// Memory of others that the next launches may use, until dismiss(); around it is nothing to check.
void admit(void* data, int64_t bytes, const char* name);
void dismiss();

void count_phase(const uint32_t* addresses, int lanes, int bytes);

}  // namespace emulator
