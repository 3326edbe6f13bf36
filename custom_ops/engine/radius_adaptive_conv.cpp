#include <algorithm>
#include <utility>

#include "engine/half.h"
#include "engine/operators.h"

namespace perfonnx {
namespace {

constexpr std::size_t kCachedTables = 16;
constexpr std::int64_t kTurned = 64;  // positions: a run of them in every channel of the map

// rows [count, channels], of positions `first` to `first + count` of a batch (image * positions + position), to their
// places in Y [images, channels, positions].
template <typename T>
void turn(const float* rows, std::int64_t channels, std::int64_t positions, std::int64_t first, std::int64_t count,
          T* y, Context& context) {
  for_each_item(context, ceil_div(count, kTurned), [&](std::int64_t number) {
    const std::int64_t end = std::min(count, (number + 1) * kTurned);
    for (std::int64_t begin = number * kTurned; begin < end;) {
      const std::int64_t image = (first + begin) / positions;
      const std::int64_t q = (first + begin) % positions;
      const std::int64_t here = std::min(end - begin, positions - q);  // up to the end of the image
      T* to = y + image * channels * positions + q;
      for (std::int64_t c = 0; c < channels; ++c) {
        const float* from = rows + begin * channels + c;
        for (std::int64_t i = 0; i < here; ++i) to[c * positions + i] = from_float<T>(from[i * channels]);
      }
      begin += here;
    }
  });
}

}  // namespace

struct RadiusAdaptiveConv::Tables {
  std::int64_t height;
  std::int64_t width;
  RadiusTables rows;
};

RadiusAdaptiveConv::RadiusAdaptiveConv(const ConvConstants& conv, const RadiusConstants& radius,
                                       const KernelSet& kernels)
    : geometry_(conv.geometry.checked()), activation_(conv.activation.opened()), product_(conv, radius, kernels) {}

void RadiusAdaptiveConv::check(const Images& x) const {
  x.check_channels(product_.input_channels());
  constexpr std::int64_t kLargest = std::numeric_limits<std::int32_t>::max();
  const std::int64_t columns = width(x);
  if (columns > 0 && height(x) > kLargest / columns) {
    throw Error("input 'X': shape " + x.shape_text() + " gives a map of more than 2^31 - 1 positions");
  }
}

std::shared_ptr<const RadiusAdaptiveConv::Tables> RadiusAdaptiveConv::tables(std::int64_t height,
                                                                             std::int64_t width) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (const auto& entry : cache_) {
    if (entry->height == height && entry->width == width) return entry;
  }
  const std::int64_t columns = geometry_.output_size(1, width);
  std::vector<std::int32_t> sites(static_cast<std::size_t>(geometry_.output_size(0, height) * columns));
  for (std::size_t q = 0; q < sites.size(); ++q) sites[q] = static_cast<std::int32_t>(q);
  auto made = std::make_shared<const Tables>(
      Tables{height, width, make_radius_tables(geometry_, height, width, sites, columns)});
  if (cache_.size() >= kCachedTables) cache_.erase(cache_.begin());
  cache_.push_back(made);
  return made;
}

void RadiusAdaptiveConv::run(const Images& x, void* y, Context& context) const {
  check(x);
  const std::int64_t positions = height(x) * width(x);
  if (x.images == 0 || positions == 0) return;
  const std::shared_ptr<const Tables> table = tables(x.height, x.width);
  const std::int64_t pixels = x.height * x.width;
  const Activation* activation = activation_.is_identity() ? nullptr : &activation_;

  Scratch<float> rows(context, static_cast<std::size_t>(x.images * pixels * x.channels));
  nchw_to_rows(x.data, x.element, x.images, x.channels, pixels, rows.data(), context);
  const InputRows input{rows.data(), x.images, pixels, product_.zero_row()};
  product_.for_each_block(input, table->rows, context, [&](std::int64_t first, std::int64_t count, Context& inside) {
    Scratch<float> block(inside, checked_product(static_cast<std::size_t>(count), static_cast<std::size_t>(outputs())));
    product_.run(input, table->rows, first, count, activation, block.data(), inside);
    if (x.element == Element::kHalf) {
      turn(block.data(), outputs(), positions, first, count, static_cast<Half*>(y), inside);
    } else {
      turn(block.data(), outputs(), positions, first, count, static_cast<float*>(y), inside);
    }
  });
}

}  // namespace perfonnx
