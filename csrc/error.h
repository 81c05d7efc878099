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

inline std::string shape(const int64_t* sizes, int n) {
  std::ostringstream text;
  text << "[";
  for (int i = 0; i < n; ++i) text << (i ? ", " : "") << sizes[i];
  text << "]";
  return text.str();
}

}  // namespace fastconv
