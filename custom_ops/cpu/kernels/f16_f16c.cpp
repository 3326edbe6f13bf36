// F16C: 8 conversions at once. All processors with AVX2 known today have it, but it has a bit of its own.
//
// Architecture: x86_64, flags: -mavx -mf16c
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

namespace perfonnx {
namespace {

constexpr size_t kVector = 8;

inline __attribute__((always_inline)) void widen_vector(const uint16_t* from, float* to) {
  _mm256_storeu_ps(to, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}

inline __attribute__((always_inline)) void narrow_vector(const float* from, uint16_t* to) {
  constexpr int kNearestEven = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(_mm256_loadu_ps(from), kNearestEven));
}

}  // namespace
}  // namespace perfonnx

#include "cpu/kernels/f16_body.h"

namespace perfonnx {

extern constexpr F16Kernels kF16F16c = {widen_all, narrow_all};

}  // namespace perfonnx
