#include "cpu/half.h"

#include "cpu/isa.h"

namespace perfonnx {
namespace {

const F16Kernels& chosen() {
  static const F16Kernels& kernels = *default_kernels().f16;
  return kernels;
}

// Half is read through its own member type.
static_assert(sizeof(Half) == sizeof(std::uint16_t) && alignof(Half) == alignof(std::uint16_t), "Half is its bits");

}  // namespace

void widen(const Half* from, std::size_t count, float* to) {
  chosen().widen(reinterpret_cast<const std::uint16_t*>(from), count, to);
}

void narrow(const float* from, std::size_t count, Half* to) {
  chosen().narrow(from, count, reinterpret_cast<std::uint16_t*>(to));
}

}  // namespace perfonnx
