#include "core/tiles.h"

#include <algorithm>
#include <tuple>

#include "core/parallel.h"

namespace perfonnx {

Tiling::Tiling(const SiteGrid& grid, const MapSize& tile)
    : grid_(grid), tile_(tile), across_(ceil_div(grid.output_width, tile.width)), members_(grid.sites.size()) {
  for (std::size_t i = 0; i < members_.size(); ++i) {
    const std::int64_t y = grid.sites[i] / grid.output_width;
    const std::int64_t x = grid.sites[i] % grid.output_width;
    members_[i] = {y / tile.height * across_ + x / tile.width,
                   static_cast<std::int32_t>(y % tile.height * tile.width + x % tile.width),
                   static_cast<std::int32_t>(i)};
  }
  std::sort(members_.begin(), members_.end(), [](const Member& a, const Member& b) {
    return std::tie(a.tile, a.place, a.number) < std::tie(b.tile, b.place, b.number);
  });
}

template <typename Visit>
void Tiling::for_each_tile(const Visit& visit) const {
  const Member* const end = members_.data() + members_.size();
  for (const Member* begin = members_.data(); begin != end;) {
    const Member* next = begin;
    std::int64_t different = 0;
    for (; next != end && next->tile == begin->tile; ++next) {
      if (next == begin || next->place != next[-1].place) ++different;
    }
    visit(begin, next, different);
    begin = next;
  }
}

Tiling::Count Tiling::count(std::int64_t least) const {
  Count count{0, 0};
  for_each_tile([&](const Member* begin, const Member* end, std::int64_t different) {
    const bool taken = different >= least;
    count.tiles += taken ? 1 : 0;
    count.rest += end - begin - (taken ? different : 0);
  });
  return count;
}

TilePlan Tiling::plan(std::int64_t least) const {
  TilePlan plan;
  plan.tile = tile_;
  plan.window = {tile_.height + grid_.geometry.kernel[0] - 1, tile_.width + grid_.geometry.kernel[1] - 1};
  plan.tiles = count(least).tiles;
  plan.inputs.reserve(static_cast<std::size_t>(plan.tiles * plan.reads()));
  plan.outputs.assign(static_cast<std::size_t>(plan.tiles * plan.writes()), -1);
  std::int32_t* outputs = plan.outputs.data();
  for_each_tile([&](const Member* begin, const Member* end, std::int64_t different) {
    const bool taken = different >= least;
    for (const Member* member = begin; member != end; ++member) {
      const bool repeated = member != begin && member->place == member[-1].place;
      if (taken && !repeated) {
        outputs[member->place] = member->number;
      } else {
        plan.rest.push_back(member->number);
      }
    }
    if (!taken) return;
    outputs += plan.writes();
    const std::int64_t top = begin->tile / across_ * tile_.height - grid_.geometry.pads[0];
    const std::int64_t left = begin->tile % across_ * tile_.width - grid_.geometry.pads[1];
    for (std::int64_t y = top; y < top + plan.window.height; ++y) {
      for (std::int64_t x = left; x < left + plan.window.width; ++x) {
        plan.inputs.push_back(grid_.row_at(y, x));
      }
    }
  });
  std::sort(plan.rest.begin(), plan.rest.end());
  return plan;
}

}  // namespace perfonnx
