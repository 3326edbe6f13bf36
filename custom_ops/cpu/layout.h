// Between NCHW maps and rows.
#pragma once

#include <cstdint>

#include "core/common.h"
#include "core/half.h"
#include "core/plan.h"
#include "cpu/isa.h"

namespace perfonnx {

enum class Element { kFloat, kHalf };

// Pixels `begin` to `end` of every image of X [images, channels, pixels].
struct MapPart {
  const void* data;
  Element element;
  std::int64_t images;
  std::int64_t channels;
  std::int64_t pixels;
  std::int64_t begin;
  std::int64_t end;
};

// -> rows [images, end - begin, channels] in float.
void map_to_rows(const MapPart& part, float* rows, const KernelSet& kernels, Context& context);

// Consecutive positions of a map, and the first of the entries that they are made from, one each.
struct Run {
  std::int32_t position;
  std::int32_t count;
  std::int32_t entry;
};

// An image of Y [channels, positions]: at each position of a run, the row that its entry points to.
struct RowsToMap {
  const float* const* rows;  // [entries]
  const Run* runs;
  std::int64_t run_count;
  std::int64_t channels;
  std::int64_t positions;
};
void rows_to_map(const RowsToMap& args, void* y, Element element, const KernelSet& kernels, Context& context);

// X [images, channels, pixels] -> rows [images, count, channels] of X's own type: pixel sites[i], or i where sites is
// null.
void compact(const void* x, Element element, std::int64_t images, std::int64_t channels, std::int64_t pixels,
             const std::int32_t* sites, std::int64_t count, void* rows, const KernelSet& kernels, Context& context);

// Conversions of `count` elements.
void to_floats(const Half* from, std::int64_t count, float* to, Context& context);
void from_floats(const float* from, std::int64_t count, Half* to, Context& context);

// Rows of sites [images, sites, channels] -> Y [images, channels, positions]:
//   Y = act(sum over k of weight * row), a missing row counting as 0.
struct ExpandArgs {
  const void* rows;
  Element row_element;
  std::int64_t images;
  std::int64_t sites;
  std::int64_t channels;
  const Interpolation* interpolation;
  const Activation* activation;  // null: none
};
void expand(const ExpandArgs& args, void* y, Element element, const KernelSet& kernels, Context& context);

}  // namespace perfonnx
