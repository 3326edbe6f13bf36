#include "core/kernel_taps.h"

#include <algorithm>
#include <cstddef>
#include <numeric>

namespace perfonnx {
namespace {

// One axis of the smallest kernel that has some places of another.
class TrimmedAxis {
 public:
  // places: of `size`, in any order.
  TrimmedAxis(const std::vector<std::int64_t>& places, std::int64_t size)
      : first_(*std::min_element(places.begin(), places.end())) {
    const std::int64_t last = *std::max_element(places.begin(), places.end());
    std::int64_t step = 0;
    for (const std::int64_t place : places) step = std::gcd(step, place - first_);
    step_ = std::max<std::int64_t>(step, 1);
    count_ = (last - first_) / step_ + 1;
    behind_ = size - 1 - last;
  }

  std::int64_t count() const noexcept { return count_; }
  std::int64_t place(std::int64_t old) const noexcept { return (old - first_) / step_; }

  void apply(int axis, ConvGeometry* geometry) const noexcept {
    const std::int64_t dilation = geometry->dilations[axis];
    geometry->kernel[axis] = count_;
    geometry->pads[axis] -= first_ * dilation;
    geometry->pads[axis + 2] -= behind_ * dilation;
    geometry->dilations[axis] = count_ > 1 ? step_ * dilation : 1;
  }

 private:
  std::int64_t first_;
  std::int64_t step_;
  std::int64_t count_;
  std::int64_t behind_;
};

}  // namespace

std::vector<std::int32_t> taps_with_weights(const ConvConstants& conv) {
  const std::int64_t taps = conv.geometry.taps();
  std::vector<std::int32_t> without = all_taps(conv.geometry);
  const float* const end = conv.weights + conv.outputs * conv.inputs * taps;
  for (const float* pair = conv.weights; pair != end && !without.empty(); pair += taps) {
    const auto weighs = [&](std::int32_t tap) { return pair[tap] != 0.0F; };
    without.erase(std::remove_if(without.begin(), without.end(), weighs), without.end());
  }
  std::vector<std::int32_t> found;
  auto next = without.begin();
  for (std::int32_t tap = 0; tap < taps; ++tap) {
    if (next != without.end() && *next == tap) {
      ++next;
    } else {
      found.push_back(tap);
    }
  }
  if (found.empty()) found.push_back(0);  // a product has a tap
  return found;
}

TrimmedConv::TrimmedConv(const ConvConstants& conv) : conv_(conv) {
  const std::int64_t all = conv.geometry.checked().taps();
  const std::int64_t width = conv.geometry.kernel[1];
  const std::vector<std::int32_t> old = taps_with_weights(conv);
  if (static_cast<std::int64_t>(old.size()) == all) {
    taps_ = old;
    return;
  }
  std::vector<std::int64_t> lines;
  std::vector<std::int64_t> columns;
  for (const std::int32_t tap : old) {
    lines.push_back(tap / width);
    columns.push_back(tap % width);
  }
  const TrimmedAxis down(lines, conv.geometry.kernel[0]);
  const TrimmedAxis across(columns, width);
  for (std::size_t i = 0; i < old.size(); ++i) {
    taps_.push_back(static_cast<std::int32_t>(down.place(lines[i]) * across.count() + across.place(columns[i])));
  }
  down.apply(0, &conv_.geometry);
  across.apply(1, &conv_.geometry);
  const std::int64_t pairs = conv.outputs * conv.inputs;
  weights_.reserve(static_cast<std::size_t>(pairs) * old.size());
  for (std::int64_t pair = 0; pair < pairs; ++pair) {
    for (const std::int32_t tap : old) weights_.push_back(conv.weights[pair * all + tap]);
  }
  conv_.weights = weights_.data();
}

}  // namespace perfonnx
