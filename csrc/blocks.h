// Memory of large results on the CPU, kept when they are freed.
//
// Malloc has blocks of more than 32 MiB from the system each time and gives them back, and the
// system clears what it hands out: 205 MiB take 30 ms so, in huge pages; to write them 8. So a
// freed block stays mapped, marked as the system's to take (MADV_FREE), for the next result that
// fills at least half of it. Zen 4, a batch of 16, ms: 3->64 @224 46 -> 28, VGG 16 1570 -> 1470,
// its training step 5720 -> 5090. Blocks of 4 MiB and more gained no more, and cost a batch of 1 up
// to 3 %.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

namespace fastconv {

constexpr size_t kKeptResult = size_t{32} << 20;  // beyond it

// A tensor of `bytes` in such a block: false where nothing is to be kept, this torch has no
// tensors of others' memory (before 2.11), or the system none. NOTE its storage can't be resized.
bool tensor_in_block(int64_t dims, const int64_t* size, const int64_t* stride, int32_t dtype,
                     size_t bytes, AtenTensorHandle* made);
bool keeps_blocks();

size_t kept_bytes();             // of freed blocks
void release_blocks();           // those to the system
void limit_blocks(size_t most);  // bytes kept at most; at first a quarter of the memory. 0: none

}  // namespace fastconv
