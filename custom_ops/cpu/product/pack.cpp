#include "cpu/product/pack.h"

#include <algorithm>

namespace perfonnx {

PackedPanels::PackedPanels(const ProductLayer& layer)
    : shape_(layer.shape),
      kernels_(layer.kernels.f32),
      panels_(ceil_div(shape_.outputs_per_group(), panel_width())),
      stride_(shape_.taps * shape_.inputs * panel_width()) {
  const std::int64_t width = panel_width();
  const std::int64_t per_group = shape_.outputs_per_group();
  const auto all_panels = static_cast<std::size_t>(shape_.groups * panels_);
  weights_ = AlignedArray<float>(checked_product(all_panels, static_cast<std::size_t>(stride_)));
  bias_ = AlignedArray<float>(checked_product(all_panels, static_cast<std::size_t>(width)));
  std::fill_n(bias_.data(), bias_.size(), 0.0F);
  float* out = weights_.data();
  for (std::int64_t g = 0; g < shape_.groups; ++g) {
    for (std::int64_t panel = 0; panel < panels_; ++panel) {
      const std::int64_t first = panel * width;
      const std::int64_t here = std::min(width, per_group - first);
      const float* source = layer.weights + (g * per_group + first) * shape_.inputs * shape_.taps;
      for (std::int64_t t = 0; t < shape_.taps; ++t) {
        for (std::int64_t c = 0; c < shape_.inputs; ++c) {
          for (std::int64_t j = 0; j < width; ++j) {
            *out++ = j < here ? source[(j * shape_.inputs + c) * shape_.taps + t] : 0.0F;
          }
        }
      }
      if (layer.bias != nullptr) {
        std::copy_n(layer.bias + g * per_group + first, here, bias_.data() + (g * panels_ + panel) * width);
      }
    }
  }
}

PackedTaps::PackedTaps(const ProductLayer& layer) : shape_(layer.shape), kernels_(layer.kernels.f32) {
  const auto vector = static_cast<std::int64_t>(kernels_->vector);
  stride_ = ceil_div(shape_.outputs, vector) * vector;
  weights_ =
      AlignedArray<float>(checked_product(static_cast<std::size_t>(shape_.taps), static_cast<std::size_t>(stride_)));
  bias_ = AlignedArray<float>(static_cast<std::size_t>(stride_));
  std::fill_n(weights_.data(), weights_.size(), 0.0F);
  std::fill_n(bias_.data(), bias_.size(), 0.0F);
  for (std::int64_t m = 0; m < shape_.outputs; ++m) {
    for (std::int64_t t = 0; t < shape_.taps; ++t) {
      weights_.data()[t * stride_ + m] = layer.weights[m * shape_.taps + t];
    }
    if (layer.bias != nullptr) bias_.data()[m] = layer.bias[m];
  }
}

}  // namespace perfonnx
