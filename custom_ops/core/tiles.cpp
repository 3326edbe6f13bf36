#include "core/tiles.h"

#include <algorithm>

namespace perfonnx {

TilePlan make_tiles(const SiteGrid& grid, std::int64_t edge, std::int64_t least) {
  TilePlan plan;
  plan.edge = edge;
  const std::int64_t across = (grid.output_width + edge - 1) / edge;
  const auto tile_of = [&](std::int64_t site) {
    return site / grid.output_width / edge * across + site % grid.output_width / edge;
  };
  const auto place_of = [&](std::int64_t site) {  // in its tile
    return site / grid.output_width % edge * edge + site % grid.output_width % edge;
  };
  struct Member {
    std::int64_t tile;
    std::int32_t number;
  };
  std::vector<Member> members(grid.sites.size());
  for (std::size_t i = 0; i < members.size(); ++i) members[i] = {tile_of(grid.sites[i]), static_cast<std::int32_t>(i)};
  std::stable_sort(members.begin(), members.end(), [](const Member& a, const Member& b) { return a.tile < b.tile; });

  std::vector<std::int32_t> outputs(static_cast<std::size_t>(plan.writes()));
  for (std::size_t i = 0; i < members.size();) {
    std::fill(outputs.begin(), outputs.end(), -1);
    const std::int64_t tile = members[i].tile;
    const std::size_t rest = plan.rest.size();
    std::int64_t count = 0;
    for (; i < members.size() && members[i].tile == tile; ++i) {
      const std::int32_t number = members[i].number;
      std::int32_t& output = outputs[static_cast<std::size_t>(place_of(grid.sites[static_cast<std::size_t>(number)]))];
      if (output >= 0) {  // a site that is named twice
        plan.rest.push_back(number);
      } else {
        output = number;
        ++count;
      }
    }
    if (count < least) {
      plan.rest.resize(rest);
      for (std::size_t j = i; j-- > 0 && members[j].tile == tile;) plan.rest.push_back(members[j].number);
      continue;
    }
    ++plan.tiles;
    plan.outputs.insert(plan.outputs.end(), outputs.begin(), outputs.end());
    const std::int64_t top = tile / across * edge - grid.geometry.pads[0];
    const std::int64_t left = tile % across * edge - grid.geometry.pads[1];
    for (std::int64_t y = top; y < top + edge + 2; ++y) {
      for (std::int64_t x = left; x < left + edge + 2; ++x) {
        const bool inside = y >= 0 && y < grid.input.height && x >= 0 && x < grid.input.width;
        const std::int64_t position = y * grid.input.width + x;
        plan.inputs.push_back(!inside                  ? -1
                              : grid.source != nullptr ? grid.source[position]
                                                       : static_cast<std::int32_t>(position));
      }
    }
  }
  std::sort(plan.rest.begin(), plan.rest.end());
  return plan;
}

}  // namespace perfonnx
