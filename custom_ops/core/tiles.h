// Tiles: the sites of a 3x3 convolution of stride 1, taken together as squares of neighbouring outputs.
#pragma once

#include <cstdint>
#include <vector>

#include "core/geometry.h"

namespace perfonnx {

// Which positions of which map a convolution computes, and where it reads them.
struct SiteGrid {
  const ConvGeometry& geometry;
  MapSize input;
  std::int64_t output_width;
  const std::vector<std::int32_t>& sites;  // flat positions in the output map
  const std::int32_t* source;  // the row that stands at each position of the input, -1 zeros; null: row q at q
};

// Tiles of edge x edge outputs, each of which reads (edge + 2) x (edge + 2) inputs.
struct TilePlan {
  std::int64_t edge = 0;
  std::int64_t tiles = 0;
  std::vector<std::int32_t> inputs;   // [tiles][edge + 2][edge + 2]: row of the input, -1 = the zero row
  std::vector<std::int32_t> outputs;  // [tiles][edge][edge]: number of the site, -1 = none
  std::vector<std::int32_t> rest;     // numbers of the sites that lie in no tile

  std::int64_t reads() const noexcept { return (edge + 2) * (edge + 2); }
  std::int64_t writes() const noexcept { return edge * edge; }
};

// The tiles that have at least `least` sites. They lie on a fixed grid from the map's first position on, so that a
// site's tile does not depend on which other sites there are.
TilePlan make_tiles(const SiteGrid& grid, std::int64_t edge, std::int64_t least);

}  // namespace perfonnx
