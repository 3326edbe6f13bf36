#include "cpu/product/gather.h"

#include <algorithm>

namespace perfonnx {
namespace {

// `count` floats of which `readable` lie behind each other. Most counts are small, where a call would cost more than
// the copy; so up to kCopy - 1 floats too many are written.
constexpr std::int64_t kCopy = 16;
static_assert(kGatherDepth + kCopy <= kGatherStride, "a copy would write into the inputs of the next site");
inline void copy_floats(const float* from, std::int64_t count, std::int64_t readable, float* to) {
  if (count >= 4 * kCopy) {
    std::copy_n(from, count, to);
  } else if (count + kCopy - 1 <= readable) {
    for (std::int64_t i = 0; i < count; i += kCopy) std::copy_n(from + i, kCopy, to + i);
  } else {
    for (std::int64_t i = 0; i < count; ++i) to[i] = from[i];
  }
}

}  // namespace

void gather(const ProductRun& run, const WeightShape& shape, const Sites& sites, const GatheredPart& part, float* out) {
  const std::int64_t inputs = shape.inputs;
  const std::int64_t channels = shape.input_channels();
  const bool mergeable = shape.groups == 1;
  const std::int64_t first_tap = part.begin / inputs;
  const std::int64_t first_input = part.begin % inputs;
  const float* const data_end = run.input.data + run.input.images * run.input.rows_per_image * channels;
  sites.for_each_site(part.first, part.count, [&](std::int64_t p, const float* image, const std::int32_t* rows) {
    float* to = out + p * kGatherStride;
    std::int64_t tap = first_tap;
    std::int64_t input = first_input;
    for (std::int64_t left = part.end - part.begin; left > 0; ++tap, input = 0) {
      std::int64_t length = std::min(inputs - input, left);
      const std::int64_t offset = part.group * inputs + input;
      if (rows[tap] < 0) {
        copy_floats(run.input.zero_row + offset, length, length, to);
      } else {
        const float* from = image + (rows[tap] - run.input.first_row) * channels + offset;
        // Neighbouring taps often read neighbouring rows.
        while (mergeable && length < left && rows[tap + 1] == rows[tap] + 1) {
          ++tap;
          length = std::min(length + inputs, left);
        }
        copy_floats(from, length, data_end - from, to);
      }
      to += length;
      left -= length;
    }
  });
}

}  // namespace perfonnx
