// The geometry of a convolution and of maps.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/error.h"

namespace perfonnx {

// Height and width of a map, from the model's constants. Throws Error, naming the input, for a negative or too large
// one.
struct MapSize {
  std::int64_t height = 0;
  std::int64_t width = 0;

  std::int64_t positions() const noexcept { return height * width; }
  std::string text() const;
  const MapSize& checked(const char* name) const;
};

// The spatial attributes of a Conv. pads are top, left, bottom, right.
struct ConvGeometry {
  std::int64_t kernel[2] = {1, 1};
  std::int64_t strides[2] = {1, 1};
  std::int64_t pads[4] = {0, 0, 0, 0};
  std::int64_t dilations[2] = {1, 1};

  std::int64_t taps() const noexcept { return kernel[0] * kernel[1]; }
  // Size of the output along axis 0 (height) or 1 (width) for an input of that size; 0 where the kernel does not fit.
  std::int64_t output_size(int axis, std::int64_t input) const noexcept;
  MapSize output_size(const MapSize& input) const noexcept {
    return {output_size(0, input.height), output_size(1, input.width)};
  }
  // Itself. Throws Error for values no convolution has, or so large that sums of them would overflow.
  const ConvGeometry& checked() const;
};

// Most entries of a table that is made of a model's constants (1 GiB).
inline constexpr std::int64_t kMostEntries = std::int64_t{1} << 28;
// Throws Error, naming the input, where `count` places with `each` entries each are more than that.
void check_entries(const char* name, std::int64_t count, std::int64_t each);

// Every kernel position, flat: 0, 1, 2, ...
std::vector<std::int32_t> all_taps(const ConvGeometry& geometry);

// Positions (flat, row-major) at which mask is true.
std::vector<std::int32_t> sites_of_mask(const bool* mask, std::int64_t height, std::int64_t width);

}  // namespace perfonnx
