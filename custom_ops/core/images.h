// Batches of maps as tensors.
#pragma once

#include <cstdint>
#include <string>

#include "core/element.h"
#include "core/geometry.h"

namespace perfonnx {

// bool [height, width], true at the sites.
struct Mask {
  const bool* data = nullptr;
  std::int64_t height = 0;
  std::int64_t width = 0;
  std::int64_t positions() const noexcept { return height * width; }
};

// A batch of images X [images, channels, height, width].
struct Images {
  const void* data = nullptr;
  Element element = Element::kFloat;
  std::int64_t images = 0;
  std::int64_t channels = 0;
  std::int64_t height = 0;
  std::int64_t width = 0;

  std::string shape_text() const;
  // What to say where they are, or give, a map of one size and the layer was made for another.
  std::string misfit(const char* what, const MapSize& given, const MapSize& made_for) const;
  // Throws Error for a negative or too large dimension.
  void check_size() const;
  // The same, and where the convolution expects another number of channels.
  void check_channels(std::int64_t expected) const;
};

}  // namespace perfonnx
