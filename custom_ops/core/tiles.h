// Tiles: the sites of a convolution of stride 1, taken together as rectangles of neighbouring outputs.
#pragma once

#include <cstdint>
#include <vector>

#include "core/tables.h"

namespace perfonnx {

struct TilePlan {
  MapSize tile;    // outputs
  MapSize window;  // inputs that a tile reads
  std::int64_t tiles = 0;
  std::vector<std::int32_t> inputs;   // [tiles][window]: row of the input, -1 = the zero row
  std::vector<std::int32_t> outputs;  // [tiles][tile]: number of the site, -1 = none
  std::vector<std::int32_t> rest;     // numbers of the sites that lie in no tile, ascending

  std::int64_t reads() const noexcept { return window.positions(); }
  std::int64_t writes() const noexcept { return tile.positions(); }
};

// The sites of a grid, sorted by tiles. These lie on a lattice from the map's first position on, so that a site's tile
// does not depend on which other sites there are.
class Tiling {
 public:
  Tiling(const SiteGrid& grid, const MapSize& tile);

  struct Count {
    std::int64_t tiles;
    std::int64_t rest;  // sites that lie in no tile
  };
  // Of the tiles that have at least `least` sites.
  Count count(std::int64_t least) const;
  TilePlan plan(std::int64_t least) const;

 private:
  struct Member {
    std::int64_t tile;
    std::int32_t place;   // in the tile
    std::int32_t number;  // of the site
  };
  // Calls visit(members, end, different) for each tile: its sites, and how many there are but for repeated ones.
  template <typename Visit>
  void for_each_tile(const Visit& visit) const;

  const SiteGrid& grid_;
  MapSize tile_;
  std::int64_t across_;          // tiles in a row of them
  std::vector<Member> members_;  // by tile, place and number
};

}  // namespace perfonnx
