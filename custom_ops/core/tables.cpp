#include "core/tables.h"

#include <limits>
#include <optional>

namespace perfonnx {
namespace {

// Runs that are shorter on average do not pay for looking them up.
constexpr std::int64_t kShortestRun = 4;
constexpr std::int64_t kLargest = std::numeric_limits<std::int32_t>::max();

}  // namespace

RowTable make_row_table(const SiteGrid& grid, const std::vector<std::int32_t>& taps) {
  const ConvGeometry& geometry = grid.geometry;
  const auto [height, width] = grid.input;
  if (height < 0 || width < 0 || (width > 0 && height > kLargest / width)) {
    throw Error("input 'X': an image of " + std::to_string(height) + " x " + std::to_string(width) +
                " has more than 2^31 - 1 pixels; split it");
  }
  RowTable table;
  table.sites = static_cast<std::int64_t>(grid.sites.size());
  table.taps = static_cast<std::int64_t>(taps.size());
  table.rows = AlignedArray<std::int32_t>(checked_product(grid.sites.size(), taps.size()));
  struct Offset {
    std::int64_t down;
    std::int64_t across;
  };
  std::vector<Offset> offsets;
  for (const std::int32_t tap : taps) {
    offsets.push_back({tap / geometry.kernel[1] * geometry.dilations[0] - geometry.pads[0],
                       tap % geometry.kernel[1] * geometry.dilations[1] - geometry.pads[1]});
  }
  std::int32_t* out = table.rows.data();
  for (const std::int32_t site : grid.sites) {
    const std::int64_t top = site / grid.output_width * geometry.strides[0];
    const std::int64_t left = site % grid.output_width * geometry.strides[1];
    for (const Offset& tap : offsets) *out++ = grid.row_at(top + tap.down, left + tap.across);
  }
  return table;
}

RowTable make_row_table(const SiteGrid& grid) {
  RowTable table = make_row_table(grid, grid.taps);
  find_runs(&table);
  return table;
}

void find_runs(RowTable* table) {
  // The step from one site to the next; nullopt where their taps disagree about it.
  const auto step_after = [&](std::int64_t site) -> std::optional<std::int32_t> {
    const std::int32_t* here = table->rows.data() + site * table->taps;
    const std::int32_t* next = here + table->taps;
    std::optional<std::int32_t> step;
    for (std::int64_t t = 0; t < table->taps; ++t) {
      if (here[t] < 0 && next[t] < 0) continue;
      if (here[t] < 0 || next[t] < 0 || (step && next[t] - here[t] != *step)) return std::nullopt;
      step = next[t] - here[t];
    }
    return step.value_or(0);
  };
  table->runs.clear();
  for (std::int64_t site = 0; site < table->sites;) {
    const std::int64_t begin = site++;
    std::int32_t step = 0;
    if (site < table->sites) {
      if (const std::optional<std::int32_t> first = step_after(begin)) {
        step = *first;
        do ++site;
        while (site < table->sites && step_after(site - 1) == step);
      }
    }
    table->runs.push_back({static_cast<std::int32_t>(begin), step});
  }
  if (static_cast<std::int64_t>(table->runs.size()) * kShortestRun > table->sites) table->runs = {};
}

}  // namespace perfonnx
