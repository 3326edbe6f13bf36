#include "core/tiles.h"

#include <algorithm>
#include <numeric>
#include <tuple>

#include "core/parallel.h"

namespace perfonnx {

Tiling::Tiling(const SiteGrid& grid, const MapSize& tile, const MapSize& kernel)
    : grid_(grid),
      kernel_(kernel),
      down_{tile.height, grid.geometry.dilations[0], grid.geometry.pads[0]},
      across_{tile.width, grid.geometry.dilations[1], grid.geometry.pads[1]},
      row_(ceil_div(ceil_div(grid.output_width, across_.step), across_.tile) * across_.step),
      members_(grid.sites.size()) {
  std::int64_t tiles = 0;
  for (std::size_t i = 0; i < members_.size(); ++i) {
    const std::int64_t y = grid.sites[i] / grid.output_width;
    const std::int64_t x = grid.sites[i] % grid.output_width;
    members_[i] = {down_.tile_at(y) * row_ + across_.tile_at(x),
                   static_cast<std::int32_t>(down_.place_at(y) * tile.width + across_.place_at(x)),
                   static_cast<std::int32_t>(i)};
    tiles = std::max(tiles, members_[i].tile + 1);
  }
  sort_members(tiles);
}

// Few sites of a huge map are compared with each other; others are counted, tile by tile, which takes a fifth of the
// time, and are then in order unless the sites are in none.
void Tiling::sort_members(std::int64_t tiles) {
  const auto less = [](const Member& a, const Member& b) {
    return std::tie(a.tile, a.place, a.number) < std::tie(b.tile, b.place, b.number);
  };
  if (tiles <= static_cast<std::int64_t>(members_.size())) {
    std::vector<std::int32_t> places(static_cast<std::size_t>(tiles + 1), 0);
    for (const Member& member : members_) ++places[static_cast<std::size_t>(member.tile + 1)];
    std::partial_sum(places.begin(), places.end(), places.begin());
    std::vector<Member> sorted(members_.size());
    for (const Member& member : members_) {
      sorted[static_cast<std::size_t>(places[static_cast<std::size_t>(member.tile)]++)] = member;
    }
    members_.swap(sorted);
  }
  if (!std::is_sorted(members_.begin(), members_.end(), less)) std::sort(members_.begin(), members_.end(), less);
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
  plan.tile = {down_.tile, across_.tile};
  plan.window = {down_.tile + kernel_.height - 1, across_.tile + kernel_.width - 1};
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
    const std::int64_t top = down_.begin(begin->tile / row_);
    const std::int64_t left = across_.begin(begin->tile % row_);
    for (std::int64_t i = 0; i < plan.window.height; ++i) {
      for (std::int64_t j = 0; j < plan.window.width; ++j) {
        plan.inputs.push_back(grid_.row_at(top + i * down_.step, left + j * across_.step));
      }
    }
  });
  std::sort(plan.rest.begin(), plan.rest.end());
  return plan;
}

}  // namespace perfonnx
