// What the two radius-adaptive operators read of a node beside the convolution.
#pragma once

#include <vector>

#include "ort/api.h"

namespace perfonnx::ort {

// Inputs 3 (W_alpha), 4 (B_alpha) and 5 (B_ring), and center_gain; owns the floats that `radius` points to.
struct RadiusInputs {
  RadiusInputs(const KernelInfo& info, const ConvConstants& conv);
  RadiusConstants radius;

 private:
  std::vector<float> alpha_weights_;
  std::vector<float> ring_bias_;
};

}  // namespace perfonnx::ort
