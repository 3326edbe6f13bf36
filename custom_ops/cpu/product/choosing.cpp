#include "cpu/product/choosing.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <utility>
#include <vector>

#include "core/error.h"

namespace perfonnx {

std::string exactness_obstacle() {
  const char* value = std::getenv("PERFONNX_EXACTNESS");
  if (value == nullptr || *value == '\0') return {};
  if (std::string(value) == "strict") return "PERFONNX_EXACTNESS is strict";
  throw Error("environment variable PERFONNX_EXACTNESS=" + std::string(value) + ": use strict, or unset it");
}

Choice choose(const ProductLayer& layer, const std::string& only) {
  Choice best;
  const auto pass_over = [&](const Implementation& other, const std::string& reason) {
    best.passed_over += (best.passed_over.empty() ? "not " : ", not ") + std::string(other.name()) + ": " + reason;
  };
  std::vector<std::pair<const Implementation*, double>> costs;
  for (const Implementation* implementation : implementations()) {
    const bool named = only == implementation->name();
    if (!only.empty() && !named) continue;
    std::string reason = implementation->obstacle(layer);
    if (named && !reason.empty()) throw Error("implementation '" + only + "' does not apply: " + reason);
    if (reason.empty() && !named) reason = implementation->drawback(layer);
    if (!reason.empty()) {
      pass_over(*implementation, reason);
      continue;
    }
    Offer offer = implementation->offer(layer);
    costs.emplace_back(implementation, offer.cost);
    if (best.implementation != nullptr && offer.cost >= best.offer.cost) continue;
    best.implementation = implementation;
    best.offer = std::move(offer);
  }
  if (best.implementation == nullptr) throw Error("there is no implementation '" + only + "'");
  for (const auto& [implementation, cost] : costs) {
    if (implementation == best.implementation) continue;
    char times[32];
    std::snprintf(times, sizeof(times), "%.2f", best.offer.cost > 0 ? cost / best.offer.cost : 1.0);
    pass_over(*implementation, "by estimate it takes " + std::string(times) + " times as long");
  }
  return best;
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
