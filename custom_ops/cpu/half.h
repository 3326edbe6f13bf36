// IEEE 754 binary16 to float and back, many at once with what this machine has. All ways give the bits of the
// conversions in core/element.h.
#pragma once

#include <cstddef>

#include "core/element.h"

namespace perfonnx {

// `count` elements. The arrays may not overlap.
void widen(const Half* from, std::size_t count, float* to);
void narrow(const float* from, std::size_t count, Half* to);

}  // namespace perfonnx
