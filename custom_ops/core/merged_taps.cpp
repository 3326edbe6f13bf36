#include "core/merged_taps.h"

#include <algorithm>
#include <cstddef>
#include <unordered_map>
#include <utility>

#include "core/memory.h"

namespace perfonnx {
namespace {

// FNV-1a.
struct Hash {
  std::size_t operator()(const std::vector<std::int8_t>& groups) const noexcept {
    std::uint64_t hash = 0xcbf29ce484222325U;
    for (const std::int8_t group : groups) hash = (hash ^ static_cast<std::uint8_t>(group)) * 0x100000001b3U;
    return static_cast<std::size_t>(hash);
  }
};

// Different values, ascending.
std::vector<std::int64_t> distinct(std::vector<std::int64_t> values) {
  std::sort(values.begin(), values.end());
  values.erase(std::unique(values.begin(), values.end()), values.end());
  return values;
}

std::int64_t place_of(const std::vector<std::int64_t>& sorted, std::int64_t value) {
  return std::lower_bound(sorted.begin(), sorted.end(), value) - sorted.begin();
}

// The map that a kernel would have to read; nullopt where sites disagree about it.
std::optional<std::vector<std::int32_t>> source_of(const OwnGrid& own, const RowTable& merged) {
  constexpr std::int32_t kUnknown = -2;
  std::vector<std::int32_t> source(static_cast<std::size_t>(own.input.positions()), kUnknown);
  const std::int32_t* row = merged.rows.data();
  for (const std::int32_t site : own.sites) {
    for (std::int64_t y = site / own.output_width, down = 0; down < own.geometry.kernel[0]; ++down, ++y) {
      for (std::int64_t x = site % own.output_width, across = 0; across < own.geometry.kernel[1]; ++across, ++x) {
        std::int32_t& known = source[static_cast<std::size_t>(y * own.input.width + x)];
        if (known != kUnknown && known != *row) return std::nullopt;
        known = *row++;
      }
    }
  }
  std::replace(source.begin(), source.end(), kUnknown, -1);
  return source;
}

// Fills `groups` for a site that reads `rows`; returns their number.
std::int64_t group_taps(const std::int32_t* rows, std::vector<std::int8_t>* groups) {
  std::int32_t seen[kMostMergedTaps];
  std::int64_t count = 0;
  for (std::size_t t = 0; t < groups->size(); ++t) {
    if (rows[t] < 0) {
      (*groups)[t] = -1;
      continue;
    }
    const std::int64_t group = std::find(seen, seen + count, rows[t]) - seen;
    if (group == count) seen[count++] = rows[t];
    (*groups)[t] = static_cast<std::int8_t>(group);
  }
  if (count > 0) return count;
  (*groups)[0] = 0;  // a product has a tap, even if it reads zeros
  return 1;
}

}  // namespace

bool TapClass::serves(const TapClass& other) const {
  std::vector<int> group_there(static_cast<std::size_t>(count), -2);
  for (std::size_t t = 0; t < groups.size(); ++t) {
    const int there = other.groups[t];
    if (groups[t] < 0) {
      if (there >= 0) return false;
      continue;
    }
    int& known = group_there[static_cast<std::size_t>(groups[t])];
    if (known == -2) known = there;
    if (known != there) return false;
  }
  return true;
}

TapClass unmerged_taps(std::int64_t taps) {
  TapClass all;
  for (std::int64_t t = 0; t < taps; ++t) all.groups.push_back(static_cast<std::int8_t>(t));
  all.count = taps;
  return all;
}

std::vector<TapClass> find_tap_classes(const RowTable& table) {
  std::vector<TapClass> classes;
  std::unordered_map<std::vector<std::int8_t>, std::size_t, Hash> numbers;
  std::vector<std::int8_t> groups(static_cast<std::size_t>(table.taps));
  for (std::int64_t site = 0; site < table.sites; ++site) {
    const std::int64_t count = group_taps(table.rows.data() + site * table.taps, &groups);
    const auto [found, is_new] = numbers.try_emplace(groups, classes.size());
    if (is_new) classes.push_back({groups, count, {}});
    classes[found->second].sites.push_back(static_cast<std::int32_t>(site));
  }
  return classes;
}

RowTable merged_table(const RowTable& table, const TapClass& of) {
  std::vector<std::size_t> first_taps;
  for (std::size_t t = 0; t < of.groups.size(); ++t) {
    if (of.groups[t] == static_cast<std::int64_t>(first_taps.size())) first_taps.push_back(t);
  }
  RowTable merged;
  merged.sites = static_cast<std::int64_t>(of.sites.size());
  merged.taps = of.count;
  merged.rows = AlignedArray<std::int32_t>(checked_product(of.sites.size(), first_taps.size()));
  std::int32_t* out = merged.rows.data();
  for (const std::int32_t site : of.sites) {
    const std::int32_t* rows = table.rows.data() + site * table.taps;
    for (const std::size_t tap : first_taps) *out++ = rows[tap];
  }
  find_runs(&merged);
  return merged;
}

std::vector<float> merged_weights(const float* weights, std::int64_t pairs, const TapClass& of) {
  std::vector<float> merged;
  merged.reserve(static_cast<std::size_t>(pairs * of.count));
  std::vector<double> sums(static_cast<std::size_t>(of.count));
  for (std::int64_t pair = 0; pair < pairs; ++pair) {
    std::fill(sums.begin(), sums.end(), 0.0);
    for (const std::int8_t group : of.groups) {
      if (group >= 0) sums[static_cast<std::size_t>(group)] += *weights;
      ++weights;
    }
    for (const double sum : sums) merged.push_back(static_cast<float>(sum));
  }
  return merged;
}

std::optional<OwnGrid> find_own_grid(const SiteGrid& grid, const std::vector<std::int32_t>& numbers,
                                     const RowTable& merged) {
  constexpr std::int64_t kMostHoles = 2;  // as many positions as sites, times this
  std::vector<std::int64_t> rows;
  std::vector<std::int64_t> columns;
  std::int64_t last = 0;
  for (const std::int32_t number : numbers) {
    const std::int64_t position = grid.sites[static_cast<std::size_t>(number)];
    if (position < last) return std::nullopt;
    last = position;
    rows.push_back(position / grid.output_width);
    columns.push_back(position % grid.output_width);
  }
  const std::vector<std::int64_t> lines = distinct(rows);
  const std::vector<std::int64_t> places = distinct(columns);
  const auto height = static_cast<std::int64_t>(lines.size());
  const auto width = static_cast<std::int64_t>(places.size());
  if (numbers.empty() || height > kMostHoles * merged.sites / width) return std::nullopt;
  OwnGrid own;
  own.output_width = width;
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    own.sites.push_back(static_cast<std::int32_t>(place_of(lines, rows[i]) * width + place_of(places, columns[i])));
  }
  for (std::int64_t down = 1; down <= merged.taps; ++down) {
    if (merged.taps % down != 0) continue;
    own.geometry.kernel[0] = down;
    own.geometry.kernel[1] = merged.taps / down;
    own.input = {height + down - 1, width + merged.taps / down - 1};
    if (std::optional<std::vector<std::int32_t>> source = source_of(own, merged)) {
      own.source = std::move(*source);
      own.taps = all_taps(own.geometry);
      return own;
    }
  }
  return std::nullopt;
}

}  // namespace perfonnx
