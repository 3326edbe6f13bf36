// AVX-512F: 16 conversions at once.
//
// Architecture: x86_64, flags: -mavx512f
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

namespace perfonnx {
namespace {

constexpr size_t kVector = 16;

inline __attribute__((always_inline)) void widen_vector(const uint16_t* from, float* to) {
  _mm512_storeu_ps(to, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
}

inline __attribute__((always_inline)) void narrow_vector(const float* from, uint16_t* to) {
  constexpr int kNearestEven = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph(_mm512_loadu_ps(from), kNearestEven));
}

}  // namespace
}  // namespace perfonnx

#include "cpu/kernels/f16_body.h"

namespace perfonnx {

extern constexpr F16Kernels kF16Avx512 = {widen_all, narrow_all};

}  // namespace perfonnx
