// PERFONNX_VERBOSE=1: what was decided for a layer, said on stderr.
#pragma once

#include <cstdlib>

namespace perfonnx {

inline bool verbose() {
  static const bool on = [] {
    const char* value = std::getenv("PERFONNX_VERBOSE");
    return value != nullptr && *value != '\0' && *value != '0';
  }();
  return on;
}

}  // namespace perfonnx
