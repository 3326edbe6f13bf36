// plan: the geometry of a convolution and its sampling, resolved into tables of row numbers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "core/common.h"

namespace perfonnx {

// The spatial attributes of a Conv. pads are top, left, bottom, right.
struct ConvGeometry {
  std::int64_t kernel[2] = {1, 1};
  std::int64_t strides[2] = {1, 1};
  std::int64_t pads[4] = {0, 0, 0, 0};
  std::int64_t dilations[2] = {1, 1};

  std::int64_t taps() const noexcept { return kernel[0] * kernel[1]; }
  // Size of the output along axis 0 (height) or 1 (width) for an input of that size; 0 where the kernel does not fit.
  std::int64_t output_size(int axis, std::int64_t input) const noexcept;
  // Itself. Throws Error for values no convolution has, or so large that sums of them would overflow.
  const ConvGeometry& checked() const;
};

// Most entries of a table that is made of a model's constants (1 GiB).
inline constexpr std::int64_t kMostEntries = std::int64_t{1} << 28;
// Throws Error, naming the input, where `count` places with `each` entries each are more than that.
void check_entries(const char* name, std::int64_t count, std::int64_t each);

// Every kernel position, flat: 0, 1, 2, ...
std::vector<std::int32_t> all_taps(const ConvGeometry& geometry);

// Positions (flat, row-major) at which mask is true.
std::vector<std::int32_t> sites_of_mask(const bool* mask, std::int64_t height, std::int64_t width);

// Consecutive sites, from `begin` on, whose taps read rows at a constant distance: where site `begin` reads row r, site
// begin + i reads row r + i * step, and where it reads the zero row, they all do.
struct SiteRun {
  std::int32_t begin;
  std::int32_t step;
};

// int32 [sites, taps]: the input row (y * width + x of an NCHW image) that feeds each tap of each site; -1 = the zero
// row. sites are flat positions in an output map of output_width columns. taps selects kernel positions (flat).
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
RowTable make_row_table(const ConvGeometry& geometry, std::int64_t height, std::int64_t width,
                        const std::vector<std::int32_t>& sites, std::int64_t output_width,
                        const std::vector<std::int32_t>& taps);

// Row tables of one sampled convolution, made when an input size is first seen. Safe to use from several threads.
class RowTableCache {
 public:
  RowTableCache(const ConvGeometry& geometry, std::vector<std::int32_t> sites, std::int64_t output_width,
                std::vector<std::int32_t> taps);
  std::shared_ptr<const RowTable> get(std::int64_t height, std::int64_t width) const;
  const std::vector<std::int32_t>& sites() const noexcept { return sites_; }

 private:
  struct Entry {
    std::int64_t height;
    std::int64_t width;
    std::shared_ptr<const RowTable> table;
  };
  ConvGeometry geometry_;
  std::vector<std::int32_t> sites_;
  std::int64_t output_width_;
  std::vector<std::int32_t> taps_;
  mutable std::mutex mutex_;
  mutable std::vector<Entry> entries_;
};

// Where every position of the output map gets its value from: rows of sites (number of the site, -1 = none), with or
// without weights. int32 [positions, per_position].
struct Interpolation {
  std::int64_t positions = 0;
  std::int64_t per_position = 1;
  std::vector<std::int32_t> rows;
  std::vector<float> weights;  // empty: all ones

  // One site each, value unchanged: an activation may then be applied once per site instead of once per position.
  bool copies() const noexcept { return per_position == 1 && weights.empty(); }
};

// The sources of a model, flat positions in the map or -1, checked against the mask and turned into numbers of sites.
// weights may be null. Weights of zero are dropped, so that barycentric tables of lattices become copies where they
// can. Throws Error naming the entry at fault.
Interpolation make_interpolation(const bool* mask, std::int64_t positions, const std::int32_t* source,
                                 const float* weights, std::int64_t per_position);

// The same for sources that are numbers of rows already. `largest` is set to the largest of them, -1 where there is
// none.
Interpolation make_row_interpolation(const std::int32_t* source, const float* weights, std::int64_t positions,
                                     std::int64_t per_position, std::int64_t* largest);

// Each site its own source, every other position none.
Interpolation make_identity_interpolation(const bool* mask, std::int64_t positions);

}  // namespace perfonnx
