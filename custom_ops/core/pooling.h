// Pooling: its windows, resolved into numbers of rows.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "core/geometry.h"
#include "core/rows.h"

namespace perfonnx {

// The window of a pooling layer, in ONNX's terms.
struct PoolWindow {
  ConvGeometry geometry;
  bool ceil_mode = false;
  bool average = false;
  bool count_include_pad = false;

  // Throws Error where the window is larger than the padded map.
  MapSize output_size(const MapSize& map) const;
};

// What each site is made of: rows[begin[p]] to rows[begin[p + 1]], each once, ascending; -1 = a row of zeros.
struct PoolTable {
  std::vector<std::int64_t> begin;
  std::vector<std::int32_t> rows;
  std::vector<float> repeats;   // how often an average counts each; empty: once
  std::vector<float> divisors;  // of an average, per site
  std::int64_t longest = 0;     // rows of a site

  std::int64_t sites() const noexcept { return static_cast<std::int64_t>(begin.size()) - 1; }
};

// sites: flat positions in the pooled map, or all of them; in_source: the row at each position of the map. Throws Error
// where sites lie outside, or windows have more than 2^28 taps in all.
PoolTable make_pool_table(const PoolWindow& window, const MapSize& map, const std::optional<Indices>& sites,
                          const RowIndex& in_source);

}  // namespace perfonnx
