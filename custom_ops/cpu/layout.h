// Between NCHW maps and rows.
#pragma once

#include <cstdint>
#include <optional>

#include "core/activation.h"
#include "core/context.h"
#include "core/element.h"
#include "core/interpolation.h"
#include "core/rows.h"
#include "cpu/isa.h"

namespace perfonnx {

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

// float16 rows as floats for the time of one run; float rows as they are.
class FloatRows {
 public:
  FloatRows(const Rows& rows, Context& context);
  const float* data() const noexcept { return data_; }

 private:
  std::optional<Scratch<float>> copy_;
  const float* data_;
};

// Where the floats of a result go: straight to the output, or through a copy that is rounded at the end.
class FloatResult {
 public:
  FloatResult(void* out, Element element, std::int64_t count, Context& context);
  float* data() noexcept { return data_; }
  void finish(Context& context);

 private:
  std::optional<Scratch<float>> copy_;
  void* out_;
  std::int64_t count_;
  float* data_;
};

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
