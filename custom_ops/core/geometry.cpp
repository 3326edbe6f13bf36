#include "core/geometry.h"

#include <algorithm>
#include <limits>

namespace perfonnx {
namespace {

constexpr std::int64_t kLargest = std::numeric_limits<std::int32_t>::max();

void check_range(const char* name, const std::int64_t* values, int count, std::int64_t least) {
  for (int i = 0; i < count; ++i) {
    if (values[i] < least || values[i] > kLargest) {
      throw Error("attribute '" + std::string(name) + "': " + std::to_string(values[i]) + " is not between " +
                  std::to_string(least) + " and " + std::to_string(kLargest));
    }
  }
}

}  // namespace

std::int64_t ConvGeometry::output_size(int axis, std::int64_t input) const noexcept {
  const std::int64_t room =
      input + pads[axis] + pads[axis + 2] - dilations[axis] * (kernel[axis] - 1) - 1;  // floor, also below zero
  return room < 0 ? 0 : room / strides[axis] + 1;
}

const ConvGeometry& ConvGeometry::checked() const {
  check_range("kernel_shape", kernel, 2, 1);
  check_range("strides", strides, 2, 1);
  check_range("pads", pads, 4, 0);
  check_range("dilations", dilations, 2, 1);
  if (taps() > kLargest) throw Error("attribute 'kernel_shape': the kernel has more than 2^31 - 1 taps");
  return *this;
}

void check_entries(const char* name, std::int64_t count, std::int64_t each) {
  if (count > kMostEntries / std::max<std::int64_t>(each, 1)) {
    throw Error("input '" + std::string(name) + "': " + std::to_string(count) + " positions with " +
                std::to_string(each) + " entries each make a table of more than 2^28; split the map");
  }
}

std::string MapSize::text() const { return std::to_string(height) + " x " + std::to_string(width); }

const MapSize& MapSize::checked(const char* name) const {
  if (height < 0 || width < 0 || height > kLargest || width > kLargest || (width > 0 && height > kLargest / width)) {
    throw Error("input '" + std::string(name) + "': a map of " + text() +
                " is none of 0 to 2^31 - 1 positions; give its height and width");
  }
  return *this;
}

std::vector<std::int32_t> all_taps(const ConvGeometry& geometry) {
  std::vector<std::int32_t> taps(static_cast<std::size_t>(geometry.taps()));
  for (std::size_t t = 0; t < taps.size(); ++t) taps[t] = static_cast<std::int32_t>(t);
  return taps;
}

std::vector<std::int32_t> sites_of_mask(const bool* mask, std::int64_t height, std::int64_t width) {
  std::vector<std::int32_t> sites;
  const std::int64_t positions = height * width;
  sites.reserve(static_cast<std::size_t>(std::count(mask, mask + positions, true)));
  for (std::int64_t q = 0; q < positions; ++q) {
    if (mask[q]) sites.push_back(static_cast<std::int32_t>(q));
  }
  return sites;
}

}  // namespace perfonnx
