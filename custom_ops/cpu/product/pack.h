// Weights of a convolution in the order the kernels read them. Packed once, read by every run.
#pragma once

#include <cstdint>

#include "cpu/product/implementation.h"

namespace perfonnx {

// Panels [groups][panels][taps][inputs][panel width], the last panel of a group padded with zeros.
class PackedPanels {
 public:
  explicit PackedPanels(const ProductLayer& layer);

  const WeightShape& shape() const noexcept { return shape_; }
  const F32Kernels& kernels() const noexcept { return *kernels_; }
  std::int64_t panels_per_group() const noexcept { return panels_; }
  std::int64_t panel_width() const noexcept { return static_cast<std::int64_t>(kernels_->panel); }
  const float* panel(std::int64_t group, std::int64_t panel) const noexcept {
    return weights_.data() + (group * panels_ + panel) * stride_;
  }
  const float* bias(std::int64_t group, std::int64_t panel) const noexcept {
    return bias_.data() + (group * panels_ + panel) * panel_width();
  }
  const AlignedArray<float>& data() const noexcept { return weights_; }

 private:
  WeightShape shape_;
  const F32Kernels* kernels_;
  std::int64_t panels_;
  std::int64_t stride_;  // floats of a panel
  AlignedArray<float> weights_;
  AlignedArray<float> bias_;
};

// Of a depthwise layer: rows [taps][channels padded to whole vectors].
class PackedTaps {
 public:
  explicit PackedTaps(const ProductLayer& layer);

  const WeightShape& shape() const noexcept { return shape_; }
  const F32Kernels& kernels() const noexcept { return *kernels_; }
  std::int64_t stride() const noexcept { return stride_; }  // floats of a tap
  const float* bias() const noexcept { return bias_.data(); }
  const AlignedArray<float>& data() const noexcept { return weights_; }

 private:
  WeightShape shape_;
  const F32Kernels* kernels_;
  std::int64_t stride_;
  AlignedArray<float> weights_;
  AlignedArray<float> bias_;
};

}  // namespace perfonnx
