// Tiles: the sites of a convolution of stride 1, taken together as rectangles of neighbouring outputs. Where the kernel
// is dilated, neighbours are as far apart as its taps: the map falls into as many maps of their own.
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
// does not depend on which other sites there are. Tiles of `rows()` rows of the map come before those of the next.
class Tiling {
 public:
  // Windows are those of a kernel of this size, which may be larger than the grid's own.
  Tiling(const SiteGrid& grid, const MapSize& tile, const MapSize& kernel);

  struct Count {
    std::int64_t tiles;
    std::int64_t rest;  // sites that lie in no tile
  };
  // Of the tiles that have at least `least` sites.
  Count count(std::int64_t least) const;
  // Rows of the map that hold whole tiles.
  std::int64_t rows() const noexcept { return down_.tile * down_.step; }
  TilePlan plan(std::int64_t least) const;

 private:
  struct Member {
    std::int64_t tile;
    std::int32_t place;   // in the tile
    std::int32_t number;  // of the site
  };
  // How an axis of the map falls into tiles.
  struct Axis {
    std::int64_t tile;  // outputs
    std::int64_t step;  // from one of them to the next
    std::int64_t pad;

    std::int64_t tile_at(std::int64_t position) const noexcept {
      return position / step / tile * step + position % step;
    }
    std::int64_t place_at(std::int64_t position) const noexcept { return position / step % tile; }
    // Where the window of a tile begins in the input.
    std::int64_t begin(std::int64_t number) const noexcept { return number / step * tile * step + number % step - pad; }
  };
  void sort_members(std::int64_t tiles);
  // Calls visit(members, end, different) for each tile: its sites, and how many there are but for repeated ones.
  template <typename Visit>
  void for_each_tile(const Visit& visit) const;

  const SiteGrid& grid_;
  MapSize kernel_;
  Axis down_;
  Axis across_;
  std::int64_t row_;             // tiles in a row of them
  std::vector<Member> members_;  // by tile, place and number
};

}  // namespace perfonnx
