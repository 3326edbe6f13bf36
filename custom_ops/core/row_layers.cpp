#include "core/row_layers.h"

#include <algorithm>
#include <string>

namespace perfonnx {

CompactSites::CompactSites(const std::optional<Indices>& sites, const MapSize& size) : all_(!sites), size_(size) {
  if (all_) return;
  count_ = sites->count;
  for (std::int64_t i = 0; i < count_; ++i) {
    const std::int32_t site = sites->data[i];
    if (site < 0) {
      throw Error("input 'sites': [" + std::to_string(i) + "] = " + std::to_string(site) + " is no position of a map");
    }
    leading_ = leading_ && site == i;
    largest_ = std::max<std::int64_t>(largest_, site);
  }
  if (!leading_) sites_.assign(sites->data, sites->data + count_);
}

void CompactSites::check(const Images& x) const {
  x.check_size();
  const MapSize given{x.height, x.width};
  if ((size_.height != 0 && given.height != size_.height) || (size_.width != 0 && given.width != size_.width)) {
    throw Error(x.misfit("is a map of", given, size_));
  }
  if (largest_ >= x.height * x.width) {
    throw Error("input 'X': shape " + x.shape_text() + " has " + std::to_string(x.height * x.width) +
                " positions, but sites reads position " + std::to_string(largest_));
  }
}

ExpandSources::ExpandSources(const MapSize& map, const std::int32_t* source, const float* weight,
                             std::int64_t per_position)
    : map_(map.checked("shape")),
      interpolation_(make_row_interpolation(source, weight, map.positions(), per_position, &largest_)) {}

void ExpandSources::check(const Rows& s) const {
  s.check_size("S");
  if (largest_ >= s.rows) {
    throw Error("input 'S': shape " + s.shape_text() + " has " + std::to_string(s.rows) +
                " rows, but source reads row " + std::to_string(largest_));
  }
}

AddedSources::AddedSources(const std::optional<AddedConstants>& added, std::int64_t sites, std::int64_t outputs)
    : outputs_(outputs) {
  if (!added) return;
  std::vector<std::int32_t> repeated;
  std::optional<Indices> source = added->source;
  if (source && source->count == 1 && sites != 1) {
    repeated.assign(static_cast<std::size_t>(sites), source->data[0]);
    source = Indices{repeated.data(), sites};
  }
  source_.emplace("z_source", source, sites);
  if (added->zeros) {
    check_rows(*added->zeros);
    zero_images_ = added->zeros->images;
    return;
  }
  reads_ = true;
}

void AddedSources::check_rows(const Rows& z) const {
  if (z.channels != outputs_) {
    throw Error("input 'Z': shape " + z.shape_text() + " has " + std::to_string(z.channels) +
                " channels, but W makes " + std::to_string(outputs_));
  }
  source_->check("Z", z);
}

void AddedSources::check(const Rows& s, const Rows* z) const {
  if (reads_) check_rows(*z);
  const std::int64_t images = reads_ ? z->images : zero_images_;
  if (images != 1 && images != s.images) {
    throw Error("input 'Z': " + std::to_string(images) + " images, but S of shape " + s.shape_text() + " has " +
                std::to_string(s.images) + "; give 1 or as many");
  }
}

void check_channels(const Rows& s, std::int64_t expected) {
  if (s.channels != expected) {
    throw Error("input 'S': shape " + s.shape_text() + " has " + std::to_string(s.channels) +
                " channels, but W and group expect " + std::to_string(expected));
  }
}

}  // namespace perfonnx
