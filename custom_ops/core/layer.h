// The constants of a layer: what a node of a model says of a convolution.
#pragma once

#include <cstdint>
#include <string>

#include "core/activation.h"
#include "core/geometry.h"

namespace perfonnx {

// What a node may say of Winograd's algorithm: tiles of at most so many outputs along an edge, 0 for none.
constexpr std::int64_t kLargestTile = 4;

// The weights of a Conv: W [outputs, inputs of a group, kernel height, kernel width] and B [outputs] or null.
struct ConvConstants {
  std::string layer;           // what messages call it
  std::string implementation;  // of its product, instead of the best that applies; empty: that
  const float* weights = nullptr;
  const float* bias = nullptr;
  std::int64_t outputs = 0;
  std::int64_t inputs = 0;
  std::int64_t groups = 1;
  ConvGeometry geometry;
  Activation activation;
  std::int64_t largest_tile = kLargestTile;
};

// The constants of the radius-adaptive form beside those of the convolution.
struct RadiusConstants {
  const float* alpha_weights = nullptr;  // [channels of X]
  float alpha_bias = 0.0F;
  const float* ring_bias = nullptr;  // [outputs] or null
  float center_gain = 0.0F;
};

}  // namespace perfonnx
