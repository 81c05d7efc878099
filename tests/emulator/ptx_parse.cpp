// From PTX text to decoded kernels. Grammar: PTX ISA manual, "Syntax" and "Instructions".
#include <ctype.h>
#include <string.h>

#include <stdexcept>

#include "engine.h"
#include "ptx.h"

namespace emulator::ptx {
namespace {

constexpr uint64_t kPoison = 0xffffffffffffffff;
constexpr size_t kLeastOperands = 4;

bool of_name(char c) { return isalnum(c) || (c && strchr("_$%.", c)); }

// Comments become spaces, so that lines can be counted.
std::string without_comments(std::string text) {
  for (size_t i = 0; i + 1 < text.size(); ++i) {
    const bool line = text[i] == '/' && text[i + 1] == '/';
    if (!line && !(text[i] == '/' && text[i + 1] == '*')) continue;
    size_t end = line ? text.find('\n', i) : text.find("*/", i) + 2;
    if (end > text.size()) end = text.size();
    for (; i < end; ++i)
      if (text[i] != '\n') text[i] = ' ';
  }
  return text;
}

class Parser {
 public:
  explicit Parser(const std::string& text) : text_(without_comments(text)) {}

  std::map<std::string, Kernel> kernels() {
    std::map<std::string, Kernel> found;
    find_shared();
    for (size_t at; (at = text_.find(".entry ", at_)) != std::string::npos;) {
      at_ = at + 7;
      Kernel kernel = one();
      found.emplace(kernel.name, std::move(kernel));
    }
    return found;
  }

 private:
  [[noreturn]] void refuse(const std::string& what) const {
    throw std::runtime_error("PTX line " + std::to_string(line()) + ": " + what);
  }
  int line() const {
    for (; counted_ < at_; ++counted_) line_ += text_[counted_] == '\n';
    return line_;
  }
  void skip_space() {
    while (at_ < text_.size() && isspace(text_[at_])) ++at_;
  }
  std::string name() {
    skip_space();
    const size_t start = at_;
    while (of_name(text_[at_]) || text_.compare(at_, 2, "::") == 0)
      at_ += text_[at_] == ':' ? 2 : 1;
    return text_.substr(start, at_ - start);
  }
  bool take(char c) {
    skip_space();
    if (at_ >= text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  void must_take(char c) {
    if (!take(c)) refuse(std::string("expected ") + c + " before " + text_.substr(at_, 40));
  }

  // Dynamic shared memory, whatever it is called, begins where the emulator's does.
  void find_shared() {
    const std::string mark = ".extern .shared";
    for (size_t at = 0; (at = text_.find(mark, at)) != std::string::npos; ++at) {
      const size_t end = text_.find('[', at), start = text_.find_last_of(" \t", end) + 1;
      shared_.push_back(text_.substr(start, end - start));
    }
  }

  Kernel one() {
    Kernel k;
    k.name = name();
    kernel_ = &k;
    names_.clear(), constants_.clear(), labels_.clear(), jumps_.clear();
    for (const std::string& s : shared_) names_[s] = add_slot(kSharedBase);
    must_take('(');
    while (!take(')')) {
      const std::string word = name();
      if (word.rfind(k.name + "_param_", 0) == 0)
        k.parameters.push_back(names_[word] = add_slot(kPoison));
      else if (word.empty())
        ++at_;  // of a size or a comma
    }
    at_ = text_.find('{', at_) + 1;
    for (int depth = 1; depth > 0;) {
      if (take('}'))
        --depth;
      else if (take('{'))
        ++depth;
      else
        statement();
    }
    for (const auto& [index, label] : jumps_) {
      const auto found = labels_.find(label);
      if (found == labels_.end()) refuse("no label " + label + " in " + k.name);
      k.code[index].target = found->second;
    }
    return k;
  }

  void statement() {
    Instruction made;
    if (take('@')) {
      made.unless = take('!');
      made.guard = slot_of(name());
    }
    std::string opcode = name();
    if (opcode == ".reg") return registers();
    if (opcode.empty()) refuse("not a statement: " + text_.substr(at_, 40));
    if (opcode[0] == '.') {  // a directive
      at_ = text_.find_first_of(";\n", at_) + 1;
      return;
    }
    if (take(':')) {
      labels_[opcode] = int(kernel_->code.size());
      return;
    }
    if (opcode == "bra" || opcode == "bra.uni") {
      jumps_.emplace_back(kernel_->code.size(), name());
      opcode = "bra";
      must_take(';');
    } else {
      operands(opcode, made);
    }
    memory_access(opcode, made);
    made.run = find_run(opcode);
    if (!made.run) refuse("no instruction " + opcode);
    kernel_->code.push_back(made);
  }

  // .reg .b32 %r<72>; or .reg .b32 a, b;
  void registers() {
    name();
    do {
      const std::string prefix = name();
      if (!take('<')) {
        names_[prefix] = add_slot(kPoison);
        continue;
      }
      const int count = std::stoi(name());
      for (int i = 0; i < count; ++i) names_[prefix + std::to_string(i)] = add_slot(kPoison);
      must_take('>');
    } while (take(','));
    must_take(';');
  }

  void operands(std::string& opcode, Instruction& made) {
    int vectors[2] = {1, 1}, operand = 0;
    auto one = [&](int32_t slot, int32_t offset = 0) {
      made.slot.push_back(slot), made.offset.push_back(offset);
    };
    while (!take(';')) {
      if (take('[')) {
        const int32_t slot = slot_of(name());
        int32_t offset = 0;
        if (take('+')) offset = int32_t(number());
        must_take(']');
        one(slot, offset);
      } else if (take('{')) {
        int elements = 0;
        while (!take('}')) one(value()), take(','), ++elements;
        if (operand < 2) vectors[operand] = elements;
      } else {
        one(value());
      }
      if (!take('|'))
        take(','), ++operand;
      else if (opcode.rfind("shfl.", 0) == 0)
        opcode += ".p";  // whether the lane was there
    }
    if (opcode.rfind("mov.", 0) == 0 && vectors[0] + vectors[1] > 2)
      opcode = (vectors[0] > 1 ? "unpack" : "pack") + opcode.substr(3) + "." +
               std::to_string(vectors[0] * vectors[1]);
    if (opcode.rfind("wgmma.mma_async", 0) == 0 && vectors[1] > 1) opcode += ".registers";
    while (made.slot.size() < kLeastOperands) one(0);  // read and not used
  }

  // ld.global.v2.f32 becomes ld.global of two elements of four bytes.
  void memory_access(std::string& opcode, Instruction& made) {
    if (opcode.rfind("ld.", 0) != 0 && opcode.rfind("st.", 0) != 0) return;
    const size_t own = opcode.find("::cta");  // the default
    if (own != std::string::npos) opcode.erase(own, 5);
    const size_t type = opcode.rfind('.');
    made.bytes = int16_t(std::stoi(opcode.substr(type + 2)) / 8);
    made.sign = opcode[type + 1] == 's';
    opcode.resize(type);
    const size_t vector = opcode.rfind(".v");
    if (vector != std::string::npos && vector + 3 == opcode.size()) {
      made.count = int16_t(opcode[vector + 2] - '0');
      opcode.resize(vector);
    }
  }

  int64_t number() {
    const bool negative = take('-');
    const std::string digits = name();
    if (digits.empty() || !isdigit(digits[0])) refuse("not a number: " + digits);
    const int64_t v = int64_t(std::stoull(digits, nullptr, 0));
    return negative ? -v : v;
  }
  // A register or a constant: an integer, 0f and 0d before the bits of a floating-point number.
  int32_t value() {
    skip_space();
    if (text_[at_] != '-' && !isdigit(text_[at_])) return slot_of(name());
    if (text_.compare(at_, 2, "0f") == 0 || text_.compare(at_, 2, "0d") == 0)
      return constant(std::stoull(name().substr(2), nullptr, 16));
    return constant(uint64_t(number()));
  }
  int32_t constant(uint64_t bits) {
    const auto [at, fresh] = constants_.emplace(bits, 0);
    if (fresh) at->second = add_slot(bits);
    return at->second;
  }
  int32_t slot_of(const std::string& word) {
    const auto found = names_.find(word);
    if (found != names_.end()) return found->second;
    const int32_t slot = names_[word] = add_slot(kPoison);
    for (const char* special : {"%tid.", "%ntid.", "%ctaid.", "%nctaid."})
      if (word.rfind(special, 0) == 0) return kernel_->specials.push_back({word, slot}), slot;
    if (word != "_") refuse("unknown name " + word);  // that takes what nobody wants
    return slot;
  }
  int32_t add_slot(uint64_t value) {
    kernel_->slots.push_back(value);
    return int32_t(kernel_->slots.size()) - 1;
  }

  const std::string text_;
  size_t at_ = 0;
  mutable size_t counted_ = 0;
  mutable int line_ = 1;
  std::vector<std::string> shared_;
  Kernel* kernel_ = nullptr;
  std::map<std::string, int32_t> names_;  // slots
  std::map<uint64_t, int32_t> constants_;
  std::map<std::string, int> labels_;
  std::vector<std::pair<size_t, std::string>> jumps_;
};

}  // namespace

std::map<std::string, Kernel> parse(const std::string& text) { return Parser(text).kernels(); }

}  // namespace emulator::ptx
