// One way to refuse: check(condition, parts...) throws std::runtime_error (torch: RuntimeError).
#pragma once
#include <sstream>
#include <stdexcept>
#include <string>

namespace fastconv {

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

template <class... Parts>
void check(bool condition, const Parts&... parts) {
  if (!condition) fail(parts...);
}

// Sizes as a part of a message: written only where it is, not on every call (2 us of text).
struct Shape {
  const int64_t* sizes;
  int n;
};

inline Shape shape(const int64_t* sizes, int n) { return {sizes, n}; }

inline std::ostream& operator<<(std::ostream& to, const Shape& shape) {
  to << "[";
  for (int i = 0; i < shape.n; ++i) to << (i ? ", " : "") << shape.sizes[i];
  return to << "]";
}

}  // namespace fastconv
