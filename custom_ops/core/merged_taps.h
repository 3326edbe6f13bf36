// Merged taps: taps of a site that read the same row have weights that can be added up beforehand, and those of taps
// that read the zero row can be left out.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "core/tables.h"

namespace perfonnx {

// Kernels of more taps are not looked at.
inline constexpr std::int64_t kMostMergedTaps = 127;

// Sites whose taps read the same rows in the same places.
struct TapClass {
  std::vector<std::int8_t> groups;  // [taps]: the number of the tap's group, whose taps read one row; -1: the zero row
  std::int64_t count = 0;           // of groups, at least one; they are in the order of their first taps
  std::vector<std::int32_t> sites;  // their numbers, ascending

  // Whether its groups fit another class too: what they keep apart may be the same there, never the other way round.
  bool serves(const TapClass& other) const;
};

// Every tap in a group of its own, which serves any site.
TapClass unmerged_taps(std::int64_t taps);

// The classes of a table of at most kMostMergedTaps taps, in the order of their first sites.
std::vector<TapClass> find_tap_classes(const RowTable& table);

// A table of the sites of a class with a tap for each of its groups.
RowTable merged_table(const RowTable& table, const TapClass& of);

// Weights [pairs of channels, taps] to [pairs of channels, of.count].
std::vector<float> merged_weights(const float* weights, std::int64_t pairs, const TapClass& of);

// Sites that are a grid of their own: what they read, site by site and tap by tap, is what a kernel of stride 1 without
// pads reads of a smaller map.
struct OwnGrid {
  ConvGeometry geometry;
  std::vector<std::int32_t> taps;
  MapSize input;
  std::int64_t output_width = 0;
  std::vector<std::int32_t> sites;   // ascending
  std::vector<std::int32_t> source;  // [input]

  SiteGrid grid() const { return {geometry, taps, input, output_width, sites, source.data()}; }
};

// Of the sites of a merged table, whose numbers in `grid` are `numbers`; nullopt where they are none for any kernel of
// as many taps, or do not come row by row.
std::optional<OwnGrid> find_own_grid(const SiteGrid& grid, const std::vector<std::int32_t>& numbers,
                                     const RowTable& merged);

}  // namespace perfonnx
