#include "core/plan.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

namespace perfonnx {
namespace {

// Runs that are shorter on average do not pay for looking them up.
constexpr std::int64_t kShortestRun = 4;
constexpr std::int64_t kLargest = std::numeric_limits<std::int32_t>::max();
// A session whose images change size keeps this many tables; more would be a leak in all but name.
constexpr std::size_t kCachedTables = 16;

void check_range(const char* name, const std::int64_t* values, int count, std::int64_t least) {
  for (int i = 0; i < count; ++i) {
    if (values[i] < least || values[i] > kLargest) {
      throw Error("attribute '" + std::string(name) + "': " + std::to_string(values[i]) + " is not between " +
                  std::to_string(least) + " and " + std::to_string(kLargest));
    }
  }
}

// The number of each site in raster order; -1 at the other positions.
std::vector<std::int32_t> ranks_of_mask(const bool* mask, std::int64_t positions) {
  std::vector<std::int32_t> ranks(static_cast<std::size_t>(positions), -1);
  std::int32_t next = 0;
  for (std::int64_t q = 0; q < positions; ++q) {
    if (mask[q]) ranks[static_cast<std::size_t>(q)] = next++;
  }
  return ranks;
}

// row(from, entry) turns an entry of source into the number of a row; entry() names the entry in messages.
template <typename Row>
Interpolation interpolation_from(const std::int32_t* source, const float* weights, std::int64_t positions,
                                 std::int64_t per_position, const Row& row) {
  check_entries("source", positions, per_position);
  Interpolation result;
  result.positions = positions;
  result.per_position = per_position;
  result.rows.resize(checked_product(static_cast<std::size_t>(positions), static_cast<std::size_t>(per_position)));
  bool simple = true;  // every position is one site as it is, or nothing
  for (std::int64_t q = 0; q < positions; ++q) {
    int used = 0;
    for (std::int64_t k = 0; k < per_position; ++k) {
      const std::size_t i = static_cast<std::size_t>(q * per_position + k);
      const auto entry = [&] { return "[" + std::to_string(q) + ", " + std::to_string(k) + "]"; };
      const std::int32_t number =
          row(source[i], [&] { return "input 'source': " + entry() + " = " + std::to_string(source[i]); });
      const float weight = weights == nullptr ? 1.0F : weights[i];
      if (!std::isfinite(weight)) throw Error("input 'weight': " + entry() + " is not finite");
      const bool counts = number >= 0 && weight != 0.0F;
      result.rows[i] = counts ? number : -1;
      if (counts) {
        ++used;
        simple = simple && weight == 1.0F;
      }
    }
    simple = simple && used <= 1;
  }
  if (simple) {
    std::vector<std::int32_t> one(static_cast<std::size_t>(positions), -1);
    for (std::size_t i = 0; i < result.rows.size(); ++i) {
      if (result.rows[i] >= 0) one[i / static_cast<std::size_t>(per_position)] = result.rows[i];
    }
    result.rows = std::move(one);
    result.per_position = 1;
  } else if (weights != nullptr) {
    result.weights.assign(weights, weights + result.rows.size());
  }
  return result;
}

}  // namespace

std::int64_t ConvGeometry::output_size(int axis, std::int64_t input) const noexcept {
  const std::int64_t room =
      input + pads[axis] + pads[axis + 2] - dilations[axis] * (kernel[axis] - 1) - 1;  // floor, also below zero
  return room < 0 ? 0 : room / strides[axis] + 1;
}

const ConvGeometry& ConvGeometry::checked() const {
  check_range("kernel_shape", kernel, 2, 1);
  check_range("strides", strides, 2, 1);
  check_range("pads", pads, 4, 0);
  check_range("dilations", dilations, 2, 1);
  if (taps() > kLargest) throw Error("attribute 'kernel_shape': the kernel has more than 2^31 - 1 taps");
  return *this;
}

void check_entries(const char* name, std::int64_t count, std::int64_t each) {
  if (count > kMostEntries / std::max<std::int64_t>(each, 1)) {
    throw Error("input '" + std::string(name) + "': " + std::to_string(count) + " positions with " +
                std::to_string(each) + " entries each make a table of more than 2^28; split the map");
  }
}

std::vector<std::int32_t> all_taps(const ConvGeometry& geometry) {
  std::vector<std::int32_t> taps(static_cast<std::size_t>(geometry.taps()));
  for (std::size_t t = 0; t < taps.size(); ++t) taps[t] = static_cast<std::int32_t>(t);
  return taps;
}

std::vector<std::int32_t> sites_of_mask(const bool* mask, std::int64_t height, std::int64_t width) {
  std::vector<std::int32_t> sites;
  const std::int64_t positions = height * width;
  sites.reserve(static_cast<std::size_t>(std::count(mask, mask + positions, true)));
  for (std::int64_t q = 0; q < positions; ++q) {
    if (mask[q]) sites.push_back(static_cast<std::int32_t>(q));
  }
  return sites;
}

RowTable make_row_table(const ConvGeometry& geometry, std::int64_t height, std::int64_t width,
                        const std::vector<std::int32_t>& sites, std::int64_t output_width,
                        const std::vector<std::int32_t>& taps) {
  if (height < 0 || width < 0 || (width > 0 && height > kLargest / width)) {
    throw Error("input 'X': an image of " + std::to_string(height) + " x " + std::to_string(width) +
                " has more than 2^31 - 1 pixels; split it");
  }
  RowTable table;
  table.sites = static_cast<std::int64_t>(sites.size());
  table.taps = static_cast<std::int64_t>(taps.size());
  table.rows = AlignedArray<std::int32_t>(checked_product(sites.size(), taps.size()));
  std::int32_t* out = table.rows.data();
  for (const std::int32_t site : sites) {
    const std::int64_t top = site / output_width * geometry.strides[0] - geometry.pads[0];
    const std::int64_t left = site % output_width * geometry.strides[1] - geometry.pads[1];
    for (const std::int32_t tap : taps) {
      const std::int64_t y = top + tap / geometry.kernel[1] * geometry.dilations[0];
      const std::int64_t x = left + tap % geometry.kernel[1] * geometry.dilations[1];
      const bool inside = y >= 0 && y < height && x >= 0 && x < width;
      *out++ = inside ? static_cast<std::int32_t>(y * width + x) : -1;
    }
  }
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

RowTableCache::RowTableCache(const ConvGeometry& geometry, std::vector<std::int32_t> sites, std::int64_t output_width,
                             std::vector<std::int32_t> taps)
    : geometry_(geometry), sites_(std::move(sites)), output_width_(output_width), taps_(std::move(taps)) {}

std::shared_ptr<const RowTable> RowTableCache::get(std::int64_t height, std::int64_t width) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (const Entry& entry : entries_) {
    if (entry.height == height && entry.width == width) return entry.table;
  }
  auto table = std::make_shared<RowTable>(make_row_table(geometry_, height, width, sites_, output_width_, taps_));
  find_runs(table.get());
  if (entries_.size() >= kCachedTables) entries_.erase(entries_.begin());
  entries_.push_back(Entry{height, width, table});
  return table;
}

Interpolation make_interpolation(const bool* mask, std::int64_t positions, const std::int32_t* source,
                                 const float* weights, std::int64_t per_position) {
  const std::vector<std::int32_t> ranks = ranks_of_mask(mask, positions);
  return interpolation_from(source, weights, positions, per_position, [&](std::int32_t from, const auto& entry) {
    if (from < -1 || from >= positions) {
      throw Error(entry() + " is neither -1 nor a position of the map (0 to " + std::to_string(positions - 1) + ")");
    }
    if (from >= 0 && !mask[from]) throw Error(entry() + " is a position that is no site: the mask is false there");
    return from < 0 ? -1 : ranks[static_cast<std::size_t>(from)];
  });
}

Interpolation make_row_interpolation(const std::int32_t* source, const float* weights, std::int64_t positions,
                                     std::int64_t per_position, std::int64_t* largest) {
  *largest = -1;
  return interpolation_from(source, weights, positions, per_position, [&](std::int32_t from, const auto& entry) {
    if (from < -1) throw Error(entry() + " is neither -1 nor the number of a row");
    *largest = std::max<std::int64_t>(*largest, from);
    return from;
  });
}

Interpolation make_identity_interpolation(const bool* mask, std::int64_t positions) {
  Interpolation result;
  result.positions = positions;
  result.rows = ranks_of_mask(mask, positions);
  return result;
}

}  // namespace perfonnx
