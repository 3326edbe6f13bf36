#include "core/half.h"

#include "cpu/isa.h"
#include "cpu/kernels/f16.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
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

constexpr HalfKernels kBaseline{widen_neon, narrow_neon};

#else

constexpr HalfKernels kBaseline{widen_each, narrow_each};

#endif

#if defined(__x86_64__)

constexpr HalfKernels kF16c{widen_f16c, narrow_f16c};
constexpr HalfKernels kAvx512{widen_avx512, narrow_avx512};

// Only asked where AVX2 is available, and with it the operating system's support for the registers.
bool has_f16c() {
  unsigned a = 0;
  unsigned b = 0;
  unsigned c = 0;
  unsigned d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}

#endif

const HalfKernels& chosen() {
  static const HalfKernels& kernels = half_kernels(default_kernels().name);
  return kernels;
}

// Bits and Half have the same layout, and Half is read through its own member type.
static_assert(sizeof(Half) == sizeof(std::uint16_t) && alignof(Half) == alignof(std::uint16_t), "Half is its bits");

}  // namespace

const HalfKernels& half_kernels(const std::string& isa) {
  [[maybe_unused]] const std::string name = kernels_by_name(isa).name;
#if defined(__x86_64__)
  if (name == "avx512") return kAvx512;
  if (name == "avx2" && has_f16c()) return kF16c;
#endif
  return kBaseline;
}

void widen(const Half* from, std::size_t count, float* to) {
  chosen().widen(reinterpret_cast<const std::uint16_t*>(from), count, to);
}

void narrow(const float* from, std::size_t count, Half* to) {
  chosen().narrow(from, count, reinterpret_cast<std::uint16_t*>(to));
}

}  // namespace perfonnx
