// Inputs of a product, copied together.
#pragma once

#include <cstdint>

#include "cpu/product/implementation.h"
#include "cpu/product/sites.h"

namespace perfonnx {

// Inputs `begin` to `end`, at most kGatherDepth, of the sum over taps and channels of a group, for some sites.
struct GatheredPart {
  std::int64_t first;  // row of the output
  std::int64_t count;
  std::int64_t group;
  std::int64_t begin;
  std::int64_t end;
};

// out [part.count][kGatherStride]
void gather(const ProductRun& run, const WeightShape& shape, const Sites& sites, const GatheredPart& part, float* out);

}  // namespace perfonnx
