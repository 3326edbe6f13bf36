// The sampled product: rows of the input, read through a row table, times packed weights.
#pragma once

#include <cstdint>

#include "core/common.h"
#include "core/plan.h"
#include "cpu/pack.h"

namespace perfonnx {

// The rows of a batch: image n has its rows at data + n * rows_per_image * channels.
struct InputRows {
  const float* data;
  std::int64_t images;
  std::int64_t rows_per_image;
  const float* zero_row;       // [channels]; stands where the row table says -1
  std::int64_t first_row = 0;  // what the row table calls the first row that is here
};

// Which sites of which images are computed, in the order of the output. Without a list: all sites of all images.
// With one: site number n * table.sites + p for each output row.
struct SiteList {
  const std::int64_t* numbers = nullptr;
  std::int64_t count = 0;
};

// Rows that are added to the sums before the activation: row source[p] of its image to site p of every image.
struct AddedRows {
  const float* data;    // [images, rows_per_image, outputs]
  std::int64_t images;  // 1: the same for the whole batch
  std::int64_t rows_per_image;
  const std::int32_t* source;  // [table.sites], -1: nothing is added; null: row p to site p
  const float* zero_row;       // [outputs]
};

// out [images * table.sites, out_stride] or [list.count, out_stride], of which the first `outputs` floats of each row
// are written: bias + product (+ added), through the activation if one is given. Tiles are stacked over the whole
// batch.
void sampled_product(const InputRows& input, const RowTableView& table, const PackedWeights& weights,
                     const Activation* activation, float* out, std::int64_t out_stride, Context& context,
                     const SiteList* list = nullptr, const AddedRows* added = nullptr);

}  // namespace perfonnx
