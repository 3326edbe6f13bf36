// What every processor of the architecture has: conversions one at a time on x86-64, four at once on AArch64.
//
// Architecture: any
#include "core/element.h"
#include "cpu/kernels/f16.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace perfonnx {
namespace {

void widen_each(const std::uint16_t* from, std::size_t count, float* to) {
  for (std::size_t i = 0; i < count; ++i) to[i] = to_float(Half{from[i]});
}

void narrow_each(const float* from, std::size_t count, std::uint16_t* to) {
  for (std::size_t i = 0; i < count; ++i) to[i] = to_half(from[i]).bits;
}

#if defined(__aarch64__)

void widen_neon(const std::uint16_t* from, std::size_t count, float* to) {
  std::size_t i = 0;
  for (; i + 4 <= count; i += 4) vst1q_f32(to + i, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from + i))));
  widen_each(from + i, count - i, to + i);
}

void narrow_neon(const float* from, std::size_t count, std::uint16_t* to) {
  std::size_t i = 0;
  for (; i + 4 <= count; i += 4) vst1_u16(to + i, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(from + i))));
  narrow_each(from + i, count - i, to + i);
}

#endif

}  // namespace

#if defined(__aarch64__)
extern constexpr F16Kernels kF16Baseline = {widen_neon, narrow_neon};
#else
extern constexpr F16Kernels kF16Baseline = {widen_each, narrow_each};
#endif

}  // namespace perfonnx
