// Arithmetic of f16 and bf16, by way of float32, which holds every value: alone, and ("x2") of the
// low and the high half of a register.
#include <cmath>
#include <functional>

#include "../../csrc/cuda/ptx.cuh"
#include "engine.h"
#include "ptx.h"

namespace emulator::ptx {
namespace {

namespace wrapped = fastconv::cuda::ptx;
using fastconv::cuda::bf16;
using fastconv::cuda::half;

template <class T>
float half_of(const Frame& f, int32_t slot, int which = 0) {
  return wrapped::to_float(T{uint16_t(get<uint32_t>(f, slot) >> 16 * which)});
}

struct Unordered {
  bool operator()(float a, float b) const { return a != a || b != b; }
};
template <class T, class Compare>
void compare(Table& table, const std::string& name, const std::string& type) {
  table["setp." + name + "." + type] = [](Frame& f, const Instruction& i) {
    set(f, i.slot[0], Compare()(half_of<T>(f, i.slot[1]), half_of<T>(f, i.slot[2])));
  };
  table["setp." + name + "." + type + "x2"] = [](Frame& f, const Instruction& i) {  // p|q, a, b
    for (int h = 0; h < 2; ++h)
      set(f, i.slot[h], Compare()(half_of<T>(f, i.slot[2], h), half_of<T>(f, i.slot[3], h)));
  };
}

struct Add {
  float operator()(float a, float b, float) const { return a + b; }
};
struct Subtract {
  float operator()(float a, float b, float) const { return a - b; }
};
struct Multiply {
  float operator()(float a, float b, float) const { return a * b; }
};
struct MultiplyAdd {  // rounded to float32 in between, to odd: no second rounding of a tie
  float operator()(float a, float b, float c) const {
    const double exact = double(a) * b + c;
    const float near = float(exact);
    uint32_t bits = wrapped::float_bits(near);
    if (near == exact || !std::isfinite(near) || bits & 1) return near;
    return wrapped::bits_float((exact > near) == (near > 0) ? bits + 1 : bits - 1);
  }
};
struct Maximum {
  float operator()(float a, float b, float) const { return std::fmax(a, b); }
};
struct MaximumOrNan {
  float operator()(float a, float b, float) const {
    return a != a ? a : b != b ? b : std::fmax(a, b);
  }
};
template <class T, class Op>
void arithmetic(Table& table, const std::string& name, const std::string& type) {
  table[name + "." + type] = [](Frame& f, const Instruction& i) {
    auto v = [&](int k) { return half_of<T>(f, i.slot[k]); };
    set(f, i.slot[0], wrapped::from_float<T>(Op()(v(1), v(2), v(3))));
  };
  table[name + "." + type + "x2"] = [](Frame& f, const Instruction& i) {
    uint32_t made = 0;
    for (int h = 0; h < 2; ++h) {
      auto v = [&](int k) { return half_of<T>(f, i.slot[k], h); };
      made |= uint32_t(wrapped::from_float<T>(Op()(v(1), v(2), v(3))).bits) << 16 * h;
    }
    set(f, i.slot[0], made);
  };
}

template <class T>
void halves(Table& table, const std::string& type) {
  compare<T, std::equal_to<float>>(table, "eq", type);
  compare<T, std::less<float>>(table, "lt", type);
  compare<T, std::less_equal<float>>(table, "le", type);
  compare<T, std::greater<float>>(table, "gt", type);
  compare<T, std::greater_equal<float>>(table, "ge", type);
  compare<T, std::not_equal_to<float>>(table, "neu", type);
  compare<T, Unordered>(table, "nan", type);
  for (const std::string rounded : {"", ".rn"}) {
    arithmetic<T, Add>(table, "add" + rounded, type);
    arithmetic<T, Subtract>(table, "sub" + rounded, type);
    arithmetic<T, Multiply>(table, "mul" + rounded, type);
  }
  arithmetic<T, MultiplyAdd>(table, "fma.rn", type);
  arithmetic<T, Maximum>(table, "max", type);
  arithmetic<T, MaximumOrNan>(table, "max.NaN", type);
  table["cvt.f32." + type] = [](Frame& f, const Instruction& i) {
    set(f, i.slot[0], half_of<T>(f, i.slot[1]));
  };
  table["cvt.rn." + type + ".f32"] = [](Frame& f, const Instruction& i) {
    set(f, i.slot[0], wrapped::from_float<T>(get<float>(f, i.slot[1])));
  };
  table["cvt.rn." + type + "x2.f32"] = [](Frame& f, const Instruction& i) {  // d, high, low
    const T high = wrapped::from_float<T>(get<float>(f, i.slot[1]));
    const T low = wrapped::from_float<T>(get<float>(f, i.slot[2]));
    set(f, i.slot[0], uint32_t(high.bits) << 16 | low.bits);
  };
}

}  // namespace

void add_halves(Table& table) { halves<half>(table, "f16"), halves<bf16>(table, "bf16"); }

}  // namespace emulator::ptx
