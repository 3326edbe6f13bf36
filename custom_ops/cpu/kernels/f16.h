// The boundary to the conversions of binary16 that are compiled per instruction set; see f32.h for why it is this
// narrow.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace perfonnx {

struct F16Kernels {
  void (*widen)(const uint16_t* from, size_t count, float* to);
  void (*narrow)(const float* from, size_t count, uint16_t* to);
};

}  // namespace perfonnx
