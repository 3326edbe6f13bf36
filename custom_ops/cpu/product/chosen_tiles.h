// Tiles of Winograd's algorithm at sites that are chosen at run time.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "cpu/product/implementation.h"

namespace perfonnx {

class ChosenTiles {
 public:
  virtual ~ChosenTiles() = default;
  // Computes those sites of run.list, which ascends, that are worth a tile; returns the places in the list of all
  // others, ascending. What becomes of a site depends on the chosen sites of its group in its image alone, all of which
  // are in the list.
  virtual std::vector<std::int64_t> run(const ProductRun& run, Context& context) const = 0;
  // The first site of each group: rows of whole tiles.
  virtual const std::vector<std::int64_t>& groups() const noexcept = 0;
};

// Groups have `group_sites` sites or more, but for the last. Null where the direct kernel does better even if every
// site of the grid, which must ascend, is chosen.
std::unique_ptr<const ChosenTiles> make_chosen_tiles(const ProductLayer& layer, std::int64_t group_sites);

}  // namespace perfonnx
