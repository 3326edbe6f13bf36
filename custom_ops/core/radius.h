// The radius-adaptive form: which taps are its centre and its ring, and the rows that feed them.
#pragma once

#include <cstdint>
#include <vector>

#include "core/layer.h"
#include "core/tables.h"

namespace perfonnx {

inline constexpr std::int32_t kCentreTap = 4;  // of the 3 x 3 taps

inline std::vector<std::int32_t> ring_taps() { return {0, 1, 2, 3, 5, 6, 7, 8}; }

// Itself. Throws Error unless the kernel is 3 x 3.
const ConvConstants& checked_radius(const ConvConstants& conv);

// The rows that feed each site.
struct RadiusTables {
  RowTable centre;  // one tap
  RowTable ring;    // eight
};
RadiusTables make_radius_tables(const SiteGrid& grid);

}  // namespace perfonnx
