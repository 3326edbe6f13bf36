// The element types of tensors.
//
// IEEE 754 binary16 is its bits, converted here one at a time for any machine: rounding to nearest, ties to even, and a
// NaN becomes a quiet one that keeps the upper bits of its payload, as the conversion instructions of x86-64 and
// AArch64 do it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <type_traits>

namespace perfonnx {

struct Half {
  std::uint16_t bits;
};

// Exact. Uses no subnormal floats on the way, so that a thread that flushes them to zero gets the same result.
inline float to_float(Half h) noexcept {
  const std::uint32_t sign = static_cast<std::uint32_t>(h.bits & 0x8000U) << 16;
  const std::uint32_t rest = h.bits & 0x7FFFU;
  std::uint32_t bits = 0;
  if (rest >= 0x7C00U) {  // infinity, NaN
    bits = 0x7F800000U | ((rest & 0x3FFU) << 13) | (rest > 0x7C00U ? 0x400000U : 0U);
  } else if (rest >= 0x0400U) {
    bits = (rest << 13) + ((127U - 15U) << 23);
  } else {  // 2^-14 * (1 + m / 2^10) - 2^-14 is exact
    const std::uint32_t shifted_bits = 0x38800000U | (rest << 13);
    float shifted = 0.0F;
    std::memcpy(&shifted, &shifted_bits, sizeof shifted);
    shifted -= 0x1p-14F;
    std::memcpy(&bits, &shifted, sizeof bits);
  }
  bits |= sign;
  float result = 0.0F;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

// What is too large becomes infinite.
inline Half to_half(float f) noexcept {
  std::uint32_t bits = 0;
  std::memcpy(&bits, &f, sizeof bits);
  const std::uint32_t sign = bits >> 16 & 0x8000U;
  const std::uint32_t rest = bits & 0x7FFFFFFFU;
  std::uint32_t half = 0;
  if (rest >= 0x7F800000U) {
    half = 0x7C00U | (rest >> 13 & 0x3FFU) | (rest > 0x7F800000U ? 0x200U : 0U);
  } else if (rest >= 0x47800000U) {  // 2^16 and above
    half = 0x7C00U;
  } else if (rest >= 0x38800000U) {  // 2^-14 and above; a carry out of the mantissa is the next exponent, or infinity
    half = (rest - ((127U - 15U) << 23) + 0xFFFU + (rest >> 13 & 1U)) >> 13;
  } else if (rest >= 0x33000000U) {  // 2^-25 and above: a subnormal half
    const std::uint32_t shift = 126U - (rest >> 23);
    const std::uint32_t mantissa = (rest & 0x7FFFFFU) | 0x800000U;
    half = mantissa >> shift;
    const std::uint32_t lost = mantissa & ((1U << shift) - 1U);
    const std::uint32_t tie = 1U << (shift - 1U);
    if (lost > tie || (lost == tie && (half & 1U) != 0)) ++half;
  }
  return Half{static_cast<std::uint16_t>(sign | half)};
}

inline float to_float(float f) noexcept { return f; }
template <typename T>
T from_float(float f) noexcept;
template <>
inline float from_float<float>(float f) noexcept {
  return f;
}
template <>
inline Half from_float<Half>(float f) noexcept {
  return to_half(f);
}

enum class Element { kFloat, kHalf };

// function(T()) for the type T of an element; std::logic_error for one that nobody knows.
template <typename Function>
auto with_type_of(Element element, const Function& function) {
  switch (element) {
    case Element::kFloat:
      return function(float());
    case Element::kHalf:
      return function(Half());
  }
  throw std::logic_error("an element type that nobody knows");
}

// Where element number `index` of a tensor lies.
template <typename Data>
Data* element_at(Data* data, Element element, std::int64_t index) {
  using Byte = std::conditional_t<std::is_const_v<Data>, const char, char>;
  const auto bytes = with_type_of(element, [](auto value) { return static_cast<std::int64_t>(sizeof value); });
  return static_cast<Byte*>(data) + index * bytes;
}

}  // namespace perfonnx
