// pack: the weights of a convolution in the order the kernel reads them.
#pragma once

#include <cstdint>

#include "core/common.h"
#include "cpu/kernels/f32.h"

namespace perfonnx {

// Weights W [outputs, inputs, taps] of a convolution in `groups` groups; inputs counts the channels of one group.
struct WeightShape {
  std::int64_t outputs = 0;
  std::int64_t inputs = 0;
  std::int64_t taps = 0;
  std::int64_t groups = 1;
};

// Packed once, read by every run. Either panels [groups][panels][taps][inputs][panel width], the last panel of a group
// padded with zeros; or, where every group has one input and one output channel, rows [taps][channels padded].
class PackedWeights {
 public:
  // bias [outputs] may be null: zeros. Throws Error where groups does not divide outputs.
  PackedWeights(const float* weights, const float* bias, const WeightShape& shape, const KernelSet& kernels);

  const WeightShape& shape() const noexcept { return shape_; }
  const KernelSet& kernels() const noexcept { return *kernels_; }
  bool depthwise() const noexcept { return depthwise_; }
  std::int64_t input_channels() const noexcept { return shape_.inputs * shape_.groups; }
  std::int64_t outputs_per_group() const noexcept { return shape_.outputs / shape_.groups; }
  std::int64_t panels_per_group() const noexcept { return panels_; }
  std::int64_t panel_width() const noexcept { return static_cast<std::int64_t>(kernels_->panel); }
  // Floats of one panel; of one tap in the depthwise form.
  std::int64_t stride() const noexcept { return stride_; }
  const float* panel(std::int64_t group, std::int64_t panel) const noexcept {
    return weights_.data() + (group * panels_ + panel) * stride_;
  }
  const float* bias(std::int64_t group, std::int64_t panel) const noexcept {
    return bias_.data() + (group * panels_ + panel) * panel_width();
  }
  const AlignedArray<float>& data() const noexcept { return weights_; }

 private:
  WeightShape shape_;
  const KernelSet* kernels_;
  bool depthwise_;
  std::int64_t panels_ = 0;
  std::int64_t stride_ = 0;
  AlignedArray<float> weights_;
  AlignedArray<float> bias_;
};

}  // namespace perfonnx
