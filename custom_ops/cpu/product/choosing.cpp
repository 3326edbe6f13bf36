#include "cpu/product/choosing.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "core/error.h"

namespace perfonnx {

std::string exactness_obstacle() {
  const char* value = std::getenv("PERFONNX_EXACTNESS");
  if (value == nullptr || *value == '\0') return {};
  if (std::string(value) == "strict") return "PERFONNX_EXACTNESS is strict";
  throw Error("environment variable PERFONNX_EXACTNESS=" + std::string(value) + ": use strict, or unset it");
}

double Implementation::cost(const ProductLayer& layer) const {
  return Estimate(layer).directly(static_cast<std::int64_t>(layer.grid->sites.size()));
}

Estimate::Estimate(const ProductLayer& layer)
    : taps_(static_cast<double>(layer.shape.taps)),
      inputs_(static_cast<double>(layer.shape.inputs)),
      channels_(static_cast<double>(layer.shape.input_channels())),
      outputs_(static_cast<double>(layer.shape.outputs)) {
  const auto vector = static_cast<double>(layer.kernels.f32->vector);
  padded_ = std::ceil(outputs_ / vector) * vector;
}

double Estimate::directly(std::int64_t sites, double factor) const {
  if (sites == 0) return 0;
  return together(static_cast<double>(sites) * factor * site(), read(taps_ * weights()));
}

double Estimate::together(double multiplies, double reading) {
  return std::max(multiplies, reading) + kOverlap * std::min(multiplies, reading);
}

}  // namespace perfonnx
