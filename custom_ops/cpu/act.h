// An activation as the kernels take it.
#pragma once

#include "core/activation.h"
#include "cpu/kernels/f32.h"

namespace perfonnx {

// activation: opened, or null for none. Must live as long as the result is used.
inline Act act_of(const Activation* activation) {
  if (activation == nullptr) return Act{};
  return Act{1, activation->negative_slope, activation->slopes_or_null(), activation->clip_min, activation->clip_max};
}

}  // namespace perfonnx
