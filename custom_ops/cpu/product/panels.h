// What the implementations that read panels of weights share.
#pragma once

#include <cstdint>

#include "cpu/product/implementation.h"
#include "cpu/product/pack.h"
#include "cpu/product/sites.h"

namespace perfonnx {

// A run over panels, tile by tile.
class PanelRun {
 public:
  PanelRun(const ProductRun& run, const PackedPanels& weights)
      : run_(run), weights_(weights), sites_(run, weights.shape()) {}

  const Sites& sites() const noexcept { return sites_; }
  std::int64_t group(std::int64_t panel) const noexcept { return panel / weights_.panels_per_group(); }

  // The arguments that all tiles have in common.
  TileArgs tile_args() const;
  // Points the arguments at a panel, from the given place of the sum on, and returns how many vectors its channels are.
  std::int64_t enter_panel(std::int64_t panel, std::int64_t from, TileArgs* args) const;
  // Computes `sites` rows of the output from `row` on. added: [sites] or null.
  void run_tile(const TileFunction* functions, std::int64_t row, std::int64_t sites, const float* const* added,
                TileArgs& args) const;

 private:
  const ProductRun& run_;
  const PackedPanels& weights_;
  Sites sites_;
};

// Panels of all groups.
inline std::int64_t panel_count(const PackedPanels& weights) {
  return weights.shape().groups * weights.panels_per_group();
}

}  // namespace perfonnx
