// The boundary to the conversions that are compiled per instruction set; see f32.h for why it is this narrow.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace perfonnx {

#if defined(__x86_64__)
void widen_f16c(const uint16_t* from, size_t count, float* to);
void narrow_f16c(const float* from, size_t count, uint16_t* to);
void widen_avx512(const uint16_t* from, size_t count, float* to);
void narrow_avx512(const float* from, size_t count, uint16_t* to);
#endif

}  // namespace perfonnx
