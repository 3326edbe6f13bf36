// The piecewise linear activation that every convolution has.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace perfonnx {

// act(v) = min(max(v < 0 ? negative_slope * slope * v : v, clip_min), clip_max). NaN stays NaN. With a slope of zero a
// negative infinity becomes zero, as in Relu.
struct Activation {
  float negative_slope = 1.0F;
  float clip_min = -std::numeric_limits<float>::max();
  float clip_max = std::numeric_limits<float>::max();
  std::vector<float> slopes;  // one for each output channel, which negative_slope multiplies; empty: all 1

  // As the kernels take it, negative_slope multiplied into the slopes. The largest finite bounds stand for no bound: an
  // infinity passes, as it would without this operator.
  Activation opened() const {
    constexpr float kLargest = std::numeric_limits<float>::max();
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    Activation result{
        negative_slope, clip_min <= -kLargest ? -kInfinity : clip_min, clip_max >= kLargest ? kInfinity : clip_max, {}};
    if (std::any_of(slopes.begin(), slopes.end(), [](float slope) { return slope != 1.0F; })) {
      result.slopes = slopes;
      for (float& slope : result.slopes) slope *= negative_slope;
      result.negative_slope = 1.0F;
    }
    return result;
  }
  bool is_identity() const {
    const Activation open = opened();
    return open.slopes.empty() && open.negative_slope == 1.0F &&
           open.clip_min == -std::numeric_limits<float>::infinity() &&
           open.clip_max == std::numeric_limits<float>::infinity();
  }
  const float* slopes_or_null() const noexcept { return slopes.empty() ? nullptr : slopes.data(); }
  // Of an opened activation.
  float operator()(float v, std::int64_t channel) const noexcept {
    const float slope = slopes.empty() ? negative_slope : slopes[static_cast<std::size_t>(channel)];
    if (v < 0.0F) v = slope == 0.0F ? 0.0F : v * slope;
    v = v < clip_min ? clip_min : v;
    return v > clip_max ? clip_max : v;
  }
};

}  // namespace perfonnx
