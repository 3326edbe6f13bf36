// The taps of a convolution that have to be read. Where all weights of a tap are zero, whatever stands there is not
// read, be it infinite or no number.
#pragma once

#include <cstdint>
#include <vector>

#include "core/layer.h"

namespace perfonnx {

// Kernel positions (flat, ascending) that have weights other than zero; the first one where there are none.
std::vector<std::int32_t> taps_with_weights(const ConvConstants& conv);

// A convolution of the smallest kernel that has those taps. Its maps are of the same size, and its pads may be
// negative.
class TrimmedConv {
 public:
  // Throws Error where the geometry is none.
  explicit TrimmedConv(const ConvConstants& conv);
  TrimmedConv(const TrimmedConv&) = delete;
  TrimmedConv& operator=(const TrimmedConv&) = delete;

  // Its weights are [outputs, inputs, taps().size()].
  const ConvConstants& conv() const noexcept { return conv_; }
  // Kernel positions that have weights, flat and ascending.
  const std::vector<std::int32_t>& taps() const noexcept { return taps_; }

 private:
  ConvConstants conv_;
  std::vector<std::int32_t> taps_;
  std::vector<float> weights_;
};

}  // namespace perfonnx
