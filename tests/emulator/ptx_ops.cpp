// What each opcode does: PTX ISA manual, "Instruction Set".
#include <cmath>

#include <type_traits>

#include "../../csrc/cuda/ptx.cuh"
#include "engine.h"
#include "ptx.h"

namespace emulator::ptx {
namespace {

namespace wrapped = fastconv::cuda::ptx;  // the instructions that the sources' wrappers stand for

// An instruction of a result of type D from sources a, b, c of type S.
#define FASTCONV_PTX(opcode, D, S, expression)                                   \
  table[opcode] = [](Frame& f, const Instruction& i) {                           \
    [[maybe_unused]] const S a = get<S>(f, i.slot[1]), b = get<S>(f, i.slot[2]), \
                             c = get<S>(f, i.slot[3]);                           \
    set<D>(f, i.slot[0], static_cast<D>(expression));                            \
  }

template <class T>
T checked(T divisor) {
  if (divisor == 0) fail("an integer is divided by zero");
  return divisor;
}

template <class T>
using Wide =
    std::conditional_t<sizeof(T) == 8,
                       std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>,
                       std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>>;
template <class T>
using Twice =
    std::conditional_t<sizeof(T) == 2, std::conditional_t<std::is_signed_v<T>, int32_t, uint32_t>,
                       std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>>;

template <class T>
void integers(Table& table, const std::string& type) {
  using U = std::make_unsigned_t<T>;
  FASTCONV_PTX("add." + type, U, U, a + b);
  FASTCONV_PTX("sub." + type, U, U, a - b);
  FASTCONV_PTX("mul.lo." + type, U, U, uint64_t(a) * b);
  FASTCONV_PTX("mad.lo." + type, U, U, uint64_t(a) * b + c);
  FASTCONV_PTX("mul.hi." + type, T, T, Wide<T>(a) * b >> 8 * sizeof(T));
  FASTCONV_PTX("div." + type, T, T, Wide<T>(a) / checked(b));
  FASTCONV_PTX("rem." + type, T, T, Wide<T>(a) % checked(b));
  FASTCONV_PTX("min." + type, T, T, a < b ? a : b);
  FASTCONV_PTX("max." + type, T, T, a > b ? a : b);
  FASTCONV_PTX("neg." + type, U, U, -a);
  FASTCONV_PTX("abs." + type, U, T, a < 0 ? -U(a) : U(a));
  table["shr." + type] = [](Frame& f, const Instruction& i) {
    const uint32_t by = get<uint32_t>(f, i.slot[2]), most = 8 * sizeof(T);
    const T a = get<T>(f, i.slot[1]);
    set<T>(f, i.slot[0], by < most ? T(a >> by) : a < 0 ? T(-1) : T(0));
  };
  if constexpr (sizeof(T) < 8) {
    FASTCONV_PTX("mul.wide." + type, Twice<T>, T, Twice<T>(a) * Twice<T>(b));
    table["mad.wide." + type] = [](Frame& f, const Instruction& i) {
      using W = std::make_unsigned_t<Twice<T>>;
      const W product = W(Twice<T>(get<T>(f, i.slot[1]))) * W(Twice<T>(get<T>(f, i.slot[2])));
      set<W>(f, i.slot[0], product + get<W>(f, i.slot[3]));
    };
  }
}

template <class T>
void bits(Table& table, const std::string& type) {
  FASTCONV_PTX("and." + type, T, T, a & b);
  FASTCONV_PTX("or." + type, T, T, a | b);
  FASTCONV_PTX("xor." + type, T, T, a ^ b);
  FASTCONV_PTX("not." + type, T, T, ~a);
  FASTCONV_PTX("setp.eq." + type, bool, T, a == b);
  FASTCONV_PTX("setp.ne." + type, bool, T, a != b);
  table["shl." + type] = [](Frame& f, const Instruction& i) {
    const uint32_t by = get<uint32_t>(f, i.slot[2]);
    set<T>(f, i.slot[0], by < 8 * sizeof(T) ? T(uint64_t(get<T>(f, i.slot[1])) << by) : T(0));
  };
}

template <class T>
void any_type(Table& table, const std::string& type) {
  FASTCONV_PTX("mov." + type, T, T, a);
  table["selp." + type] = [](Frame& f, const Instruction& i) {
    set<T>(f, i.slot[0], get<T>(f, i.slot[get<bool>(f, i.slot[3]) ? 1 : 2]));
  };
}

template <class T>
void compare(Table& table, const std::string& type) {
  FASTCONV_PTX("setp.eq." + type, bool, T, a == b);
  FASTCONV_PTX("setp.ne." + type, bool, T, a != b && a == a && b == b);
  FASTCONV_PTX("setp.lt." + type, bool, T, a < b);
  FASTCONV_PTX("setp.le." + type, bool, T, a <= b);
  FASTCONV_PTX("setp.gt." + type, bool, T, a > b);
  FASTCONV_PTX("setp.ge." + type, bool, T, a >= b);
}

template <class T>
void floats(Table& table, const std::string& type) {
  compare<T>(table, type);
  FASTCONV_PTX("setp.equ." + type, bool, T, !(a < b || a > b));
  FASTCONV_PTX("setp.neu." + type, bool, T, a != b);
  FASTCONV_PTX("setp.ltu." + type, bool, T, !(a >= b));
  FASTCONV_PTX("setp.leu." + type, bool, T, !(a > b));
  FASTCONV_PTX("setp.gtu." + type, bool, T, !(a <= b));
  FASTCONV_PTX("setp.geu." + type, bool, T, !(a < b));
  FASTCONV_PTX("setp.num." + type, bool, T, a == a && b == b);
  FASTCONV_PTX("setp.nan." + type, bool, T, a != a || b != b);
  for (const char* rounded : {".", ".rn."}) {
    FASTCONV_PTX("add" + (rounded + type), T, T, a + b);
    FASTCONV_PTX("sub" + (rounded + type), T, T, a - b);
    FASTCONV_PTX("mul" + (rounded + type), T, T, a * b);
  }
  FASTCONV_PTX("div.rn." + type, T, T, a / b);
  FASTCONV_PTX("rcp.rn." + type, T, T, T(1) / a);
  FASTCONV_PTX("fma.rn." + type, T, T, std::fma(a, b, c));
  FASTCONV_PTX("neg." + type, T, T, -a);
  FASTCONV_PTX("abs." + type, T, T, std::fabs(a));
  FASTCONV_PTX("min." + type, T, T, std::fmin(a, b));
  FASTCONV_PTX("max." + type, T, T, std::fmax(a, b));
  FASTCONV_PTX("max.NaN." + type, T, T, a != a ? a : b != b ? b : std::fmax(a, b));
}

// Of integers: cut, or extended by the source's sign.
template <class D, class S>
void convert(Table& table, const std::string& to, const std::string& from) {
  FASTCONV_PTX("cvt." + to + "." + from, D, S, a);
}
template <class S>
void convert_from(Table& table, const std::string& from) {
  convert<int16_t, S>(table, "s16", from), convert<uint16_t, S>(table, "u16", from);
  convert<int32_t, S>(table, "s32", from), convert<uint32_t, S>(table, "u32", from);
  convert<int64_t, S>(table, "s64", from), convert<uint64_t, S>(table, "u64", from);
  FASTCONV_PTX("cvt.rn.f32." + from, float, S, a);
  FASTCONV_PTX("cvt.rn.f64." + from, double, S, a);
}

// To minus infinity: exact in double but for sums of very different size, which are rounded twice.
float fma_down(float a, float b, float c) {
  const double exact = double(a) * b + c;
  const float v = float(exact);
  return v > exact ? nextafterf(v, -INFINITY) : v;
}
float flushed(float v) { return fabsf(v) < 0x1p-126f ? copysignf(0, v) : v; }

uint32_t permuted(uint64_t bytes, uint32_t selector) {
  uint32_t made = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t pick = selector >> 4 * i & 15;
    uint32_t byte = bytes >> 8 * (pick & 7) & 0xff;
    if (pick & 8) byte = byte & 0x80 ? 0xff : 0;
    made |= byte << 8 * i;
  }
  return made;
}
// `length` bits from `at` on, extended by the last of them or by zeros.
template <class T>
T extracted(T from, uint32_t at, uint32_t length) {
  at &= 255, length &= 255;
  const int64_t wide = at < 32 ? int64_t(from) >> at : from < 0 ? -1 : 0;
  if (length == 0) return 0;
  const int above = length < 32 ? 64 - int(length) : 32;
  return std::is_signed_v<T> ? T(int64_t(uint64_t(wide) << above) >> above)
                             : T(uint64_t(wide) << above >> above);
}
uint32_t inserted(uint32_t field, uint32_t into, uint32_t at, uint32_t length) {
  at &= 255, length &= 255;
  const uint64_t mask = length < 32 ? (uint64_t(1) << length) - 1 : 0xffffffff;
  return at < 32 ? uint32_t((into & ~(mask << at)) | ((field & mask) << at)) : into;
}

void of_words(Table& table) {
  FASTCONV_PTX("cvta.to.global.u64", uint64_t, uint64_t, a);
  FASTCONV_PTX("cvt.rna.tf32.f32", uint32_t, float, wrapped::cvt_rna_tf32(a));
  FASTCONV_PTX("cvt.sat.f32.f32", float, float, a > 0 ? a < 1 ? a : 1.f : 0.f);
  FASTCONV_PTX("cvt.f64.f32", double, float, a);
  FASTCONV_PTX("cvt.rn.f32.f64", float, double, a);
  FASTCONV_PTX("fma.rm.f32", float, float, fma_down(a, b, c));
  FASTCONV_PTX("ex2.approx.ftz.f32", float, float, flushed(exp2f(flushed(a))));
  FASTCONV_PTX("ex2.approx.f32", float, float, exp2f(a));
  FASTCONV_PTX("abs.ftz.f32", float, float, flushed(fabsf(a)));
  FASTCONV_PTX("div.full.f32", float, float, a / b);  // to two units in the last place
  FASTCONV_PTX("shf.l.wrap.b32", uint32_t, uint32_t, (uint64_t(b) << 32 | a) << (c & 31) >> 32);
  FASTCONV_PTX("shf.r.wrap.b32", uint32_t, uint32_t, (uint64_t(b) << 32 | a) >> (c & 31));
  FASTCONV_PTX("prmt.b32", uint32_t, uint32_t, permuted(uint64_t(b) << 32 | a, c));
  FASTCONV_PTX("bfe.u32", uint32_t, uint32_t, extracted(a, b, c));
  FASTCONV_PTX("bfe.s32", int32_t, int32_t, extracted(a, uint32_t(b), uint32_t(c)));
  table["bfi.b32"] = [](Frame& f, const Instruction& i) {
    auto v = [&](int k) { return get<uint32_t>(f, i.slot[k]); };
    set(f, i.slot[0], inserted(v(1), v(2), v(3), v(4)));
  };
  FASTCONV_PTX("not.pred", bool, bool, !a);
  FASTCONV_PTX("and.pred", bool, bool, a&& b);
  FASTCONV_PTX("or.pred", bool, bool, a || b);
  FASTCONV_PTX("xor.pred", bool, bool, a != b);
  FASTCONV_PTX("mov.pred", bool, bool, a);
}

Table make_table() {
  Table table;
  integers<int16_t>(table, "s16"), integers<uint16_t>(table, "u16");
  integers<int32_t>(table, "s32"), integers<uint32_t>(table, "u32");
  integers<int64_t>(table, "s64"), integers<uint64_t>(table, "u64");
  compare<int16_t>(table, "s16"), compare<uint16_t>(table, "u16");
  compare<int32_t>(table, "s32"), compare<uint32_t>(table, "u32");
  compare<int64_t>(table, "s64"), compare<uint64_t>(table, "u64");
  bits<uint16_t>(table, "b16"), bits<uint32_t>(table, "b32"), bits<uint64_t>(table, "b64");
  for (const char* kind : {"b", "u", "s", "f"}) {
    any_type<uint16_t>(table, kind + std::string("16"));
    any_type<uint32_t>(table, kind + std::string("32"));
    any_type<uint64_t>(table, kind + std::string("64"));
  }
  floats<float>(table, "f32"), floats<double>(table, "f64");
  convert_from<int16_t>(table, "s16"), convert_from<uint16_t>(table, "u16");
  convert_from<int32_t>(table, "s32"), convert_from<uint32_t>(table, "u32");
  convert_from<int64_t>(table, "s64"), convert_from<uint64_t>(table, "u64");
  of_words(table), add_halves(table), add_memory(table), add_matrices(table);
  // The halves of a register to two, or two to one.
  table["unpack.b32.2"] = [](Frame& f, const Instruction& i) {
    const uint32_t whole = get<uint32_t>(f, i.slot[2]);
    set(f, i.slot[0], uint16_t(whole)), set(f, i.slot[1], uint16_t(whole >> 16));
  };
  table["unpack.b64.2"] = [](Frame& f, const Instruction& i) {
    const uint64_t whole = get<uint64_t>(f, i.slot[2]);
    set(f, i.slot[0], uint32_t(whole)), set(f, i.slot[1], uint32_t(whole >> 32));
  };
  table["pack.b32.2"] = [](Frame& f, const Instruction& i) {
    const uint32_t low = get<uint16_t>(f, i.slot[1]), high = get<uint16_t>(f, i.slot[2]);
    set(f, i.slot[0], low | high << 16);
  };
  table["pack.b64.2"] = [](Frame& f, const Instruction& i) {
    const uint64_t low = get<uint32_t>(f, i.slot[1]), high = get<uint32_t>(f, i.slot[2]);
    set(f, i.slot[0], low | high << 32);
  };
  return table;
}

}  // namespace

Run find_run(const std::string& opcode) {
  static const Table table = make_table();
  const auto found = table.find(opcode);
  return found == table.end() ? nullptr : found->second;
}

}  // namespace emulator::ptx
