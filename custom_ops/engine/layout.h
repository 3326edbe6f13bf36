// Between NCHW maps and rows.
#pragma once

#include <cstdint>

#include "engine/common.h"
#include "engine/half.h"
#include "engine/plan.h"

namespace perfonnx {

enum class Element { kFloat, kHalf };

// X [images, channels, pixels] -> rows [images, pixels, channels] in float.
void nchw_to_rows(const void* x, Element element, std::int64_t images, std::int64_t channels, std::int64_t pixels,
                  float* rows, Context& context);

// X [images, channels, pixels] -> rows [images, count, channels] of X's own type: pixel sites[i], or i where sites is
// null.
void compact(const void* x, Element element, std::int64_t images, std::int64_t channels, std::int64_t pixels,
             const std::int32_t* sites, std::int64_t count, void* rows, Context& context);

// Conversions of `count` elements.
void to_floats(const Half* from, std::int64_t count, float* to, Context& context);
void from_floats(const float* from, std::int64_t count, Half* to, Context& context);

// Rows of sites [images, sites, row_stride] -> Y [images, channels, positions]:
//   Y = act(sum over k of weight * row), a missing row counting as 0 -- or, where a fill is given, fill[channel] as it
//   is at the positions that have no row.
struct ExpandArgs {
  const void* rows;
  Element row_element;
  std::int64_t row_stride;
  std::int64_t images;
  std::int64_t sites;
  std::int64_t channels;
  const Interpolation* interpolation;
  const Activation* activation;  // null: none
  const float* fill;             // [channels]; null: zeros, through the activation
};
void expand(const ExpandArgs& args, void* y, Element element, Context& context);

}  // namespace perfonnx
