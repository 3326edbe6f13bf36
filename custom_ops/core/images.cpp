#include "core/images.h"

#include <limits>

namespace perfonnx {

std::string Images::shape_text() const {
  return "[" + std::to_string(images) + ", " + std::to_string(channels) + ", " + std::to_string(height) + ", " +
         std::to_string(width) + "]";
}

std::string Images::misfit(const char* what, const MapSize& given, const MapSize& made_for) const {
  return "input 'X': shape " + shape_text() + " " + what + " " + given.text() + ", but the layer was made for " +
         made_for.text() + "; rewrite the model for this size (--input-shape)";
}

void Images::check_channels(std::int64_t expected) const {
  if (channels != expected) {
    throw Error("input 'X': shape " + shape_text() + " has " + std::to_string(channels) +
                " channels, but W and group expect " + std::to_string(expected));
  }
  check_size();
}

void Images::check_size() const {
  constexpr std::int64_t kLargest = std::numeric_limits<std::int32_t>::max();
  if (images < 0 || images > kLargest || height < 0 || width < 0 || height > kLargest || width > kLargest ||
      (width > 0 && height > kLargest / width)) {
    throw Error("input 'X': shape " + shape_text() + " is too large: at most 2^31 - 1 images of 2^31 - 1 pixels");
  }
}

}  // namespace perfonnx
