#include "cpu/pack.h"

#include <algorithm>

namespace perfonnx {

PackedWeights::PackedWeights(const float* weights, const float* bias, const WeightShape& shape,
                             const KernelSet& kernels)
    : shape_(shape), kernels_(&kernels), depthwise_(false) {
  if (shape.outputs < 1 || shape.inputs < 1 || shape.taps < 1) {
    throw Error("input 'W': no dimension may be 0");
  }
  if (shape.groups < 1 || shape.outputs % shape.groups != 0) {
    throw Error("attribute 'group': " + std::to_string(shape.groups) + " does not divide the " +
                std::to_string(shape.outputs) + " output channels of W");
  }
  const std::int64_t width = panel_width();
  depthwise_ = shape.inputs == 1 && shape.outputs == shape.groups && shape.groups > 1;
  if (depthwise_) {
    const std::int64_t vector = static_cast<std::int64_t>(kernels.vector);
    stride_ = ceil_div(shape.outputs, vector) * vector;
    panels_ = 1;
    weights_ =
        AlignedArray<float>(checked_product(static_cast<std::size_t>(shape.taps), static_cast<std::size_t>(stride_)));
    bias_ = AlignedArray<float>(static_cast<std::size_t>(stride_));
    std::fill_n(weights_.data(), weights_.size(), 0.0F);
    std::fill_n(bias_.data(), bias_.size(), 0.0F);
    for (std::int64_t m = 0; m < shape.outputs; ++m) {
      for (std::int64_t t = 0; t < shape.taps; ++t) weights_.data()[t * stride_ + m] = weights[m * shape.taps + t];
      if (bias != nullptr) bias_.data()[m] = bias[m];
    }
    return;
  }
  const std::int64_t per_group = outputs_per_group();
  panels_ = ceil_div(per_group, width);
  stride_ = shape.taps * shape.inputs * width;
  const auto all_panels = static_cast<std::size_t>(shape.groups * panels_);
  weights_ = AlignedArray<float>(checked_product(all_panels, static_cast<std::size_t>(stride_)));
  bias_ = AlignedArray<float>(checked_product(all_panels, static_cast<std::size_t>(width)));
  std::fill_n(bias_.data(), bias_.size(), 0.0F);
  float* out = weights_.data();
  for (std::int64_t g = 0; g < shape.groups; ++g) {
    for (std::int64_t panel = 0; panel < panels_; ++panel) {
      const std::int64_t first = panel * width;
      const std::int64_t here = std::min(width, per_group - first);
      const float* source = weights + (g * per_group + first) * shape.inputs * shape.taps;
      for (std::int64_t t = 0; t < shape.taps; ++t) {
        for (std::int64_t c = 0; c < shape.inputs; ++c) {
          for (std::int64_t j = 0; j < width; ++j) {
            *out++ = j < here ? source[(j * shape.inputs + c) * shape.taps + t] : 0.0F;
          }
        }
      }
      if (bias != nullptr) {
        std::copy_n(bias + g * per_group + first, here, bias_.data() + (g * panels_ + panel) * width);
      }
    }
  }
}

}  // namespace perfonnx
