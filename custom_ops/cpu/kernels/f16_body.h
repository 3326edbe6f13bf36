// Conversions of arrays, from those of one vector. A file that includes this has defined, with internal linkage (see
// f32.h), kVector, widen_vector and narrow_vector.

#include "cpu/kernels/f16.h"

namespace perfonnx {
namespace {

inline void widen_all(const uint16_t* from, size_t count, float* to) {
  size_t i = 0;
  for (; i + kVector <= count; i += kVector) widen_vector(from + i, to + i);
  if (i == count) return;
  uint16_t halves[kVector] = {};
  float floats[kVector];
  for (size_t j = i; j < count; ++j) halves[j - i] = from[j];
  widen_vector(halves, floats);
  for (size_t j = i; j < count; ++j) to[j] = floats[j - i];
}

inline void narrow_all(const float* from, size_t count, uint16_t* to) {
  size_t i = 0;
  for (; i + kVector <= count; i += kVector) narrow_vector(from + i, to + i);
  if (i == count) return;
  float floats[kVector] = {};
  uint16_t halves[kVector];
  for (size_t j = i; j < count; ++j) floats[j - i] = from[j];
  narrow_vector(floats, halves);
  for (size_t j = i; j < count; ++j) to[j] = halves[j - i];
}

}  // namespace
}  // namespace perfonnx
