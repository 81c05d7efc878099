// PTX, as nvcc leaves it, executed thread by thread on the emulator: a decoded kernel and its
// parts. What it shows beyond the sources compiled by g++: the text of every inline instruction,
// and what nvcc made of the code around it.
#pragma once
#include <stdint.h>
#include <string.h>

#include <map>
#include <string>
#include <vector>

namespace emulator::ptx {

// Registers, special registers, constants and addresses of parameters, 64 bits each.
struct Frame {
  uint64_t* slots;
  int next;  // the instruction; negative: the thread has ended
};

struct Instruction;
using Run = void (*)(Frame&, const Instruction&);

struct Instruction {
  Run run;
  int32_t guard = -1;  // the slot of its predicate
  bool unless = false;
  bool sign = false;             // what is loaded is extended by its sign
  int16_t count = 1, bytes = 0;  // of a load or store: elements of so many bytes
  int32_t target = 0;            // of a branch
  // Operands in their order, those of vectors too: slots, and what is added to an address.
  std::vector<int32_t> slot, offset;
};

struct Special {
  std::string name;  // %tid.x
  int32_t slot;
};

struct Kernel {
  std::string name;
  std::vector<Instruction> code;
  std::vector<uint64_t> slots;      // at the start: registers are poison
  std::vector<int32_t> parameters;  // their slots, which take the addresses of arguments
  std::vector<Special> specials;
  bool ran = false;
};

// The kernels of a text. Throws std::runtime_error, with the line, at what it does not know.
std::map<std::string, Kernel> parse(const std::string& text);

// How an opcode runs, its operands split off; null: unknown.
Run find_run(const std::string& opcode);
using Table = std::map<std::string, Run>;
void add_halves(Table& table);    // ptx_halves.cpp: arithmetic of 16-bit types
void add_memory(Table& table);    // ptx_memory.cpp: loads, stores, copies; jumps and barriers
void add_matrices(Table& table);  // ptx_matrix.cpp: what a warp does together

template <class T>
T get(const Frame& f, int32_t slot) {
  T v;
  memcpy(&v, f.slots + slot, sizeof v);
  return v;
}
template <class T>
void set(Frame& f, int32_t slot, T v) {
  uint64_t bits = 0;
  memcpy(&bits, &v, sizeof v);
  f.slots[slot] = bits;
}
// The address in shared memory that the k-th operand is.
inline uint32_t shared_operand(const Frame& f, const Instruction& i, int k) {
  return get<uint32_t>(f, i.slot[k]) + uint32_t(i.offset[k]);
}

}  // namespace emulator::ptx
