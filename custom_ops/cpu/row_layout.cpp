// Compact and ExpandRows: into rows and out of them.
#include <algorithm>

#include "cpu/row_operators.h"

namespace perfonnx {

Compact::Compact(const std::optional<Indices>& sites, const MapSize& size, const KernelSet& kernels)
    : all_(!sites), size_(size), kernels_(kernels) {
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

void Compact::check(const Images& x) const {
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

std::int64_t Compact::sites(const Images& x) const noexcept { return all_ ? x.height * x.width : count_; }

void Compact::run(const Images& x, void* rows, Context& context) const {
  check(x);
  if (x.images == 0 || x.channels == 0 || sites(x) == 0) return;
  compact(x.data, x.element, x.images, x.channels, x.height * x.width, leading_ ? nullptr : sites_.data(), sites(x),
          rows, kernels_, context);
}

Expand::Expand(const MapSize& map, const std::int32_t* source, const float* weight, std::int64_t per_position,
               const KernelSet& kernels)
    : map_(map.checked("shape")),
      interpolation_(make_row_interpolation(source, weight, map.positions(), per_position, &largest_)),
      kernels_(kernels) {}

void Expand::check(const Rows& s) const {
  s.check_size("S");
  if (largest_ >= s.rows) {
    throw Error("input 'S': shape " + s.shape_text() + " has " + std::to_string(s.rows) +
                " rows, but source reads row " + std::to_string(largest_));
  }
}

void Expand::run(const Rows& s, void* y, Context& context) const {
  check(s);
  if (s.images == 0 || s.channels == 0 || map_.positions() == 0) return;
  ExpandArgs args{};
  args.rows = s.data;
  args.row_element = s.element;
  args.images = s.images;
  args.sites = s.rows;
  args.channels = s.channels;
  args.interpolation = &interpolation_;
  expand(args, y, s.element, kernels_, context);
}

}  // namespace perfonnx
