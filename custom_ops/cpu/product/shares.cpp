#include "cpu/product/shares.h"

#include <algorithm>
#include <limits>
#include <numeric>

namespace perfonnx {
namespace {

constexpr std::int64_t kTilesPerBlock = 16;
constexpr std::int64_t kMostTilesPerBlock = 64;  // where they read little
constexpr std::int64_t kBlockBytes = 256 * 1024;
constexpr std::int64_t kPointerBytes = 96 * 1024;

std::int64_t with_pointers(const WeightShape& shape, std::int64_t site_tile, std::int64_t most) {
  const std::int64_t pointers = shape.taps * site_tile * static_cast<std::int64_t>(sizeof(float*));
  return std::clamp(kPointerBytes / pointers, std::int64_t{1}, most);
}

}  // namespace

// Chooses the number of blocks and of parts of the panels by what the threads need when they take one task after the
// other. A task costs its tiles times its panels, beside that reading the weights of each panel and finding the inputs
// of each tile.
Shares::Shares(std::int64_t rows, std::int64_t tile, std::int64_t most, std::int64_t panels)
    : rows_(rows), tile_(tile), panels_(panels), tiles_(ceil_div(rows, tile)) {
  constexpr double kWeights = 0.3;  // of a panel, in tiles times panels
  constexpr double kInputs = 0.1;   // of a tile
  const std::int64_t fewest = ceil_div(tiles_, most);
  const std::int64_t threads = wanted_tasks();
  double least = std::numeric_limits<double>::infinity();
  for (std::int64_t parts = 1; parts <= std::min(panels, threads); ++parts) {
    const std::int64_t evenly = threads / std::gcd(parts, threads);
    for (const std::int64_t blocks : {fewest, std::min(ceil_div(fewest, evenly) * evenly, tiles_)}) {
      const auto in_task = static_cast<double>(ceil_div(tiles_, blocks));
      const double task = static_cast<double>(ceil_div(panels, parts)) * (in_task + kWeights) + in_task * kInputs;
      const double all = task * static_cast<double>(ceil_div(blocks * parts, threads));
      if (all < least) {
        least = all;
        blocks_ = blocks;
        parts_ = parts;
      }
    }
  }
}

Shares::Task Shares::task_at(std::int64_t i) const noexcept {
  const EvenSplit blocks{tiles_, blocks_};
  const EvenSplit panels{panels_, parts_};
  const std::int64_t block = i / parts_;
  const std::int64_t first = blocks.begin(block) * tile_;
  return {first, std::min(blocks.end(block) * tile_, rows_) - first, panels.begin(i % parts_), panels.end(i % parts_)};
}

std::int64_t tiles_in_place(const WeightShape& shape, std::int64_t site_tile) {
  const std::int64_t tile = site_tile * shape.input_channels() * static_cast<std::int64_t>(sizeof(float));
  return with_pointers(shape, site_tile, std::clamp(kBlockBytes / tile, kTilesPerBlock, kMostTilesPerBlock));
}

std::int64_t tiles_gathered(const WeightShape& shape, std::int64_t site_tile) {
  return with_pointers(shape, site_tile, kTilesPerBlock);
}

}  // namespace perfonnx
