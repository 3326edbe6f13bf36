// Row tables: the geometry of a convolution and its sites, resolved into numbers of rows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/geometry.h"
#include "core/memory.h"

namespace perfonnx {

// Consecutive sites, from `begin` on, whose taps read rows at a constant distance: where site `begin` reads row r, site
// begin + i reads row r + i * step, and where it reads the zero row, they all do.
struct SiteRun {
  std::int32_t begin;
  std::int32_t step;
};

// Which positions of which map a convolution computes, and where it reads them.
struct SiteGrid {
  const ConvGeometry& geometry;
  const std::vector<std::int32_t>& taps;  // positions of the kernel (flat) that are read
  MapSize input;
  std::int64_t output_width;
  const std::vector<std::int32_t>& sites;  // flat positions in the output map
  const std::int32_t* source;  // the row that stands at each position of the input, -1 zeros; null: row q at q

  // The row that is read at a position of the input, -1 where there is none.
  std::int32_t row_at(std::int64_t y, std::int64_t x) const noexcept {
    if (y < 0 || y >= input.height || x < 0 || x >= input.width) return -1;
    const std::int64_t position = y * input.width + x;
    return source != nullptr ? source[position] : static_cast<std::int32_t>(position);
  }
};

// int32 [sites, taps]: the input row that feeds each tap of each site; -1 = the zero row.
struct RowTable {
  std::int64_t sites = 0;
  std::int64_t taps = 0;
  AlignedArray<std::int32_t> rows;
  // Ascending; each ends where the next begins. Empty where they would be too short to help.
  std::vector<SiteRun> runs;
};

// Finds the runs of a table whose rows are final.
void find_runs(RowTable* table);

// Consecutive sites of a table.
struct RowTableView {
  RowTableView(const RowTable& table) : RowTableView(table, 0, table.sites) {}  // implicit: all of them
  RowTableView(const RowTable& table, std::int64_t begin, std::int64_t end)
      : sites(end - begin),
        taps(table.taps),
        rows(table.rows.data() + begin * table.taps),
        runs(&table.runs),
        first(begin) {}
  std::int64_t sites;
  std::int64_t taps;
  const std::int32_t* rows;
  const std::vector<SiteRun>* runs;  // of the whole table,
  std::int64_t first;                // in which this is the number of the first site
};

// With its runs.
RowTable make_row_table(const SiteGrid& grid);
// Of other taps, without them.
RowTable make_row_table(const SiteGrid& grid, const std::vector<std::int32_t>& taps);

}  // namespace perfonnx
