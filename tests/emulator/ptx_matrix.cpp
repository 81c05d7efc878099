// What the threads of a warp do together: shuffles, matrices in shared memory, products of them.
//
// wgmma belongs to four warps, each of which makes 16 rows of the result from those rows of a and
// all of b: so here a warp makes its own, when it issues the instruction.
#include "../../csrc/cuda/ptx.cuh"
#include "engine.h"
#include "ptx.h"

namespace emulator::ptx {
namespace {

namespace wrapped = fastconv::cuda::ptx;  // the instructions that the sources' wrappers stand for
using fastconv::cuda::bf16;
using fastconv::cuda::half;

// d, a, lanes, clamp, mask: of whole warps only. kPredicate: d|p, where p is that the lane exists.
enum Lanes { kAcross, kTo };
template <Lanes kLanes, bool kPredicate>
void shuffle(Frame& f, const Instruction& i) {
  const int32_t* from = i.slot.data() + 1 + kPredicate;
  const int lanes = get<int32_t>(f, from[1]);
  const int lane = kLanes == kAcross ? wrapped::lane_id() ^ lanes : lanes;
  if (get<uint32_t>(f, from[2]) != 31) fail("shfl.sync of a part of the warp");
  const uint32_t mask = get<uint32_t>(f, from[3]);
  set(f, i.slot[0], wrapped::shfl_bits(get<uint32_t>(f, from[0]), lane & 31, mask));
  if (kPredicate) set(f, i.slot[1], true);
}

template <void (*kLoad)(uint32_t (&)[4], uint32_t)>
void load_four(Frame& f, const Instruction& i) {
  uint32_t d[4];
  kLoad(d, shared_operand(f, i, 4));
  for (int e = 0; e < 4; ++e) set(f, i.slot[e], d[e]);
}

// Of an accumulator of 4 words, a of 4 and b of 2.
template <void (*kMultiply)(float (&)[4], const uint32_t (&)[4], const uint32_t*)>
void multiply(Frame& f, const Instruction& i) {
  float d[4];
  uint32_t a[4], b[2];
  for (int e = 0; e < 4; ++e) d[e] = get<float>(f, i.slot[10 + e]);
  for (int e = 0; e < 4; ++e) a[e] = get<uint32_t>(f, i.slot[4 + e]);
  for (int e = 0; e < 2; ++e) b[e] = get<uint32_t>(f, i.slot[8 + e]);
  kMultiply(d, a, b);
  for (int e = 0; e < 4; ++e) set(f, i.slot[e], d[e]);
}

// ---- What only Triton's kernels use: all lanes of a warp, over their frames ----

struct Lane {
  Frame* frame;
  const Instruction* instruction;
};
template <void (*kRun)(Frame* const*, const Instruction&)>
void run_lanes(void* const* args, uint32_t) {
  Frame* frames[32];
  for (int lane = 0; lane < 32; ++lane) frames[lane] = static_cast<Lane*>(args[lane])->frame;
  kRun(frames, *static_cast<Lane*>(args[0])->instruction);
}
template <void (*kRun)(Frame* const*, const Instruction&)>
void in_step(Frame& f, const Instruction& i) {
  static const WarpOp op = {"a matrix instruction", run_lanes<kRun>};
  Lane lane = {&f, &i};
  collective(op, 0xffffffff, &lane);
}

// kCount matrices of 8 x 8 elements of 16 bits: lane 8 i + j has the address of row j of matrix i,
// lane l elements (l / 4, 2 (l % 4)) and the next of each.
template <int kCount, bool kTrans, bool kStore>
void move_matrices(Frame* const* f, const Instruction& i) {
  for (int m = 0; m < kCount; ++m)
    for (int lane = 0; lane < 32; ++lane)
      for (int e = 0; e < 2; ++e) {
        int row = lane / 4, column = lane % 4 * 2 + e;
        if (kTrans) std::swap(row, column);
        const uint32_t at = shared_operand(*f[8 * m + row], i, kStore ? 0 : kCount);
        char* element = shared_bytes_at(at, 16, kStore ? "stmatrix" : "ldmatrix") + 2 * column;
        char* own = reinterpret_cast<char*>(f[lane]->slots + i.slot[kStore + m]) + 2 * e;
        memcpy(kStore ? element : own, kStore ? own : element, 2);
      }
}

// d = a b + c of float64, of kRows x 8, b kDepth x 8: PTX ISA manual, "Matrix Fragments for
// mma.m8n8k4" and "... mma.m16n8k4, m16n8k8 and m16n8k16 with .f64".
template <int kRows, int kDepth>
void multiply_f64(Frame* const* f, const Instruction& i) {
  constexpr int kD = kRows / 4, kA = kRows / 8 * kDepth / 4, kB = kDepth / 4;
  double d[32][kD];
  for (int lane = 0; lane < 32; ++lane)
    for (int e = 0; e < kD; ++e) {
      const int column = lane % 4 * 2 + e % 2;
      d[lane][e] = get<double>(*f[lane], i.slot[kD + kA + kB + e]);
      for (int k = 0; k < kDepth; ++k) {
        const int a = k / 4 * (kRows / 8) + e / 2, b = k / 4;
        d[lane][e] += get<double>(*f[lane / 4 * 4 + k % 4], i.slot[kD + a]) *
                      get<double>(*f[4 * column + k % 4], i.slot[kD + kA + b]);
      }
    }
  for (int lane = 0; lane < 32; ++lane)
    for (int e = 0; e < kD; ++e) set(*f[lane], i.slot[e], d[lane][e]);
}

// A matrix in shared memory as a descriptor says: PTX ISA manual, "Matrix Descriptor" and
// "Strides". Rows run along M or N. `major`: the depth lies along memory, else the rows do.
struct Described {
  uint64_t bits;
  bool depth_major;
  int bytes;  // of an element

  const char* at(int row, int k) const {
    const uint32_t start = (bits & 0x3fff) << 4, leading = (bits >> 16 & 0x3fff) << 4,
                   stride = (bits >> 32 & 0x3fff) << 4;
    const int mode = bits >> 62 & 3, width = mode ? 256 >> mode : 16;  // bytes side by side
    const int along = (depth_major ? k : row) * bytes, across = depth_major ? row : k;
    // Eight lines of `width` bytes; such blocks lie `stride` apart across, and along where the
    // matrix is wider: without a swizzle the two are the other way round along rows.
    const bool crossed = mode == 0 && !depth_major;
    uint32_t address = start + across % 8 * width + across / 8 * (crossed ? leading : stride);
    address += along % width + along / width * (crossed ? stride : leading);
    if (mode == 1) address ^= address >> 3 & 0x70;
    if (mode == 2) address ^= address >> 3 & 0x30;
    if (mode == 3) address ^= address >> 3 & 0x10;
    return shared_bytes_at(address, bytes, "wgmma");
  }
};

template <class T>
double value_at(const char* p) {
  T v;
  memcpy(&v, p, sizeof v);
  if constexpr (sizeof(T) == 4)
    return wrapped::bits_float(wrapped::float_bits(v) & ~0x1fffu);  // of tf32
  else
    return wrapped::to_float(v);
}

// D is [64][N] in N / 2 registers, then a (a descriptor, or 4 registers), b's descriptor, the
// predicate that D is added, signs of a and b and, of 16 bits, whether each lies along its rows.
template <class T, int N, bool kRegisters>
void warpgroup_multiply(Frame* const* f, const Instruction& i) {
  constexpr int kDepth = 32 / sizeof(T), kA = N / 2, kB = kA + (kRegisters ? 4 : 1);
  constexpr int kPerWord = 4 / sizeof(T);
  auto flag = [&](int k) { return sizeof(T) == 2 && get<int32_t>(*f[0], i.slot[k]) != 0; };
  const Described b = {get<uint64_t>(*f[0], i.slot[kB]), !flag(kB + (kRegisters ? 4 : 5)),
                       sizeof(T)};
  const Described a = {get<uint64_t>(*f[0], i.slot[kA]), !flag(kB + 4), sizeof(T)};
  const int first = 16 * (current->warp->index % 4);
  double left[16][kDepth], right[N][kDepth];
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < kDepth; ++k) {
      if (!kRegisters) {
        left[row][k] = value_at<T>(a.at(first + row, k));
        continue;
      }
      const int word = row / 8 + k / (kDepth / 2) * 2, place = k % (kDepth / 2);
      const Frame& of = *f[row % 8 * 4 + place / kPerWord];
      const char* bytes = reinterpret_cast<const char*>(of.slots + i.slot[kA + word]);
      left[row][k] = value_at<T>(bytes + place % kPerWord * sizeof(T));
    }
  for (int n = 0; n < N; ++n)
    for (int k = 0; k < kDepth; ++k) right[n][k] = value_at<T>(b.at(n, k));
  const bool adds = get<bool>(*f[0], i.slot[kB + 1]);
  for (int lane = 0; lane < 32; ++lane)
    for (int e = 0; e < N / 2; ++e) {
      const int row = lane / 4 + e / 2 % 2 * 8, column = e / 4 * 8 + lane % 4 * 2 + e % 2;
      double sum = adds ? get<float>(*f[lane], i.slot[e]) : 0;
      for (int k = 0; k < kDepth; ++k) sum += left[row][k] * right[column][k];
      set(*f[lane], i.slot[e], cut(sum));
    }
}

template <class T, int N>
void add_warpgroup(Table& table, const std::string& type) {
  const std::string name = "wgmma.mma_async.sync.aligned.m64n" + std::to_string(N) + "k" +
                           std::to_string(32 / sizeof(T)) + ".f32." + type + "." + type;
  table[name] = in_step<warpgroup_multiply<T, N, false>>;
  table[name + ".registers"] = in_step<warpgroup_multiply<T, N, true>>;
}
template <class T>
void add_warpgroups(Table& table, const std::string& type) {
  add_warpgroup<T, 16>(table, type), add_warpgroup<T, 32>(table, type);
  add_warpgroup<T, 64>(table, type), add_warpgroup<T, 128>(table, type);
  add_warpgroup<T, 256>(table, type);
}

}  // namespace

void add_matrices(Table& table) {
  table["shfl.sync.bfly.b32"] = shuffle<kAcross, false>;
  table["shfl.sync.bfly.b32.p"] = shuffle<kAcross, true>;
  table["shfl.sync.idx.b32"] = shuffle<kTo, false>;
  table["shfl.sync.idx.b32.p"] = shuffle<kTo, true>;
  const std::string ld = "ldmatrix.sync.aligned.m8n8.", st = "stmatrix.sync.aligned.m8n8.";
  table[ld + "x4.shared.b16"] = load_four<wrapped::ldmatrix_x4>;
  table[ld + "x4.trans.shared.b16"] = load_four<wrapped::ldmatrix_x4_trans>;
  table[ld + "x1.shared.b16"] = in_step<move_matrices<1, false, false>>;
  table[ld + "x2.shared.b16"] = in_step<move_matrices<2, false, false>>;
  table[ld + "x2.trans.shared.b16"] = in_step<move_matrices<2, true, false>>;
  table[st + "x1.shared.b16"] = in_step<move_matrices<1, false, true>>;
  table[st + "x2.shared.b16"] = in_step<move_matrices<2, false, true>>;
  table[st + "x4.shared.b16"] = in_step<move_matrices<4, false, true>>;
  table[st + "x2.trans.shared.b16"] = in_step<move_matrices<2, true, true>>;
  table[st + "x4.trans.shared.b16"] = in_step<move_matrices<4, true, true>>;
  const std::string mma = "mma.sync.aligned.";
  table[mma + "m16n8k16.row.col.f32.f16.f16.f32"] = multiply<wrapped::mma_m16n8k16<half>>;
  table[mma + "m16n8k16.row.col.f32.bf16.bf16.f32"] = multiply<wrapped::mma_m16n8k16<bf16>>;
  table[mma + "m16n8k8.row.col.f32.tf32.tf32.f32"] = multiply<wrapped::mma_m16n8k8_tf32>;
  table[mma + "m8n8k4.row.col.f64.f64.f64.f64"] = in_step<multiply_f64<8, 4>>;
  table[mma + "m16n8k4.row.col.f64.f64.f64.f64"] = in_step<multiply_f64<16, 4>>;
  table[mma + "m16n8k8.row.col.f64.f64.f64.f64"] = in_step<multiply_f64<16, 8>>;
  table[mma + "m16n8k16.row.col.f64.f64.f64.f64"] = in_step<multiply_f64<16, 16>>;
  add_warpgroups<half>(table, "f16"), add_warpgroups<bf16>(table, "bf16");
  add_warpgroups<float>(table, "tf32");
  for (const char* kind : {"fence", "commit_group", "wait_group"})  // done when it was issued
    table[std::string("wgmma.") + kind + ".sync.aligned"] = [](Frame&, const Instruction&) {};
  table["fence.proxy.async.shared::cta"] = [](Frame&, const Instruction&) {};
}

}  // namespace emulator::ptx
