// The constants of the operators on rows, checked, with the shapes that they fit: what is the same wherever they run.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "core/images.h"
#include "core/interpolation.h"
#include "core/layer.h"
#include "core/rows.h"
#include "core/tables.h"

namespace perfonnx {

// Which positions of a map become rows.
class CompactSites {
 public:
  // sites: flat positions in the map, or all of them. size: of the maps that they were made for; 0 for any.
  explicit CompactSites(const std::optional<Indices>& sites, const MapSize& size = {});

  // Throws Error where X does not fit.
  void check(const Images& x) const;
  std::int64_t count(const Images& x) const noexcept { return all_ ? x.height * x.width : count_; }
  // Null where row i is position i.
  const std::int32_t* data() const noexcept { return leading_ ? nullptr : sites_.data(); }
  std::int64_t size() const noexcept { return static_cast<std::int64_t>(sites_.size()); }

 private:
  bool all_;
  bool leading_ = true;
  std::int64_t count_ = 0;
  std::int64_t largest_ = -1;
  MapSize size_;
  std::vector<std::int32_t> sites_;
};

// Which rows each position of a map is made of.
class ExpandSources {
 public:
  // source [positions of the map, per_position], -1 adding nothing; weight the same or null.
  ExpandSources(const MapSize& map, const std::int32_t* source, const float* weight, std::int64_t per_position);

  // Throws Error where S does not fit.
  void check(const Rows& s) const;
  const MapSize& map() const noexcept { return map_; }
  const Interpolation& interpolation() const noexcept { return interpolation_; }

 private:
  MapSize map_;
  std::int64_t largest_ = -1;
  Interpolation interpolation_;
};

// Rows Z to add. `source` (z_source) has one entry per site, or one for all of them.
struct AddedConstants {
  std::optional<Indices> source;
  std::optional<Rows> zeros;  // the shape of a constant Z that is all zeros, and so need not be read
};

// Which of the rows Z each site adds.
class AddedSources {
 public:
  AddedSources(const std::optional<AddedConstants>& added, std::int64_t sites, std::int64_t outputs);

  // Whether there are rows to read.
  bool reads() const noexcept { return reads_; }
  // Throws Error where Z, null unless it is read, does not fit S and the sites.
  void check(const Rows& s, const Rows* z) const;
  // Null where site i adds row i.
  const std::int32_t* data() const noexcept { return source_ ? source_->data() : nullptr; }

 private:
  void check_rows(const Rows& z) const;

  std::int64_t outputs_;
  std::optional<RowIndex> source_;
  bool reads_ = false;
  std::int64_t zero_images_ = 1;  // of a Z that is not read
};

// Throws Error where the rows S have other channels than a convolution expects.
void check_channels(const Rows& s, std::int64_t expected);

}  // namespace perfonnx
