// What the two radius-adaptive operators read of a node beside the convolution.
#pragma once

#include <vector>

#include "ort/api.h"

namespace perfonnx::ort {

// W_alpha, B_alpha and B_ring, and center_gain; owns the floats that `radius` points to.
struct RadiusInputs {
  RadiusInputs(const KernelInfo& info, const ConvConstants& conv);
  RadiusConstants radius;

 private:
  std::vector<float> alpha_weights_;
  std::vector<float> ring_bias_;
};

}  // namespace perfonnx::ort
