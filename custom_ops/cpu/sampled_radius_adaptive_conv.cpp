#include <algorithm>
#include <vector>

#include "cpu/row_operators.h"

namespace perfonnx {
namespace {

constexpr std::int64_t kBlocksPerThread = 2;

}  // namespace

SampledRadiusAdaptiveConv::SampledRadiusAdaptiveConv(const ConvConstants& conv, const RadiusConstants& radius,
                                                     const VirtualMap& map, const std::optional<Indices>& sites,
                                                     const KernelSet& kernels)
    : activation_(conv.activation.opened()),
      in_source_("in_source", map.source, map.size.checked("in_shape").positions()) {
  const ConvGeometry& geometry = conv.geometry.checked();
  const MapSize output = geometry.output_size(map.size).checked("in_shape");
  const std::vector<std::int32_t> positions = checked_sites(sites, output, geometry.taps());
  const std::vector<std::int32_t> taps = all_taps(geometry);
  const SiteGrid grid{geometry, taps, map.size, output.width, positions, in_source_.data()};
  const bool ascending = std::is_sorted(positions.begin(), positions.end());
  product_.emplace(conv, radius, ascending ? &grid : nullptr, kernels);
  tables_ = make_radius_tables(grid);
  groups_ = product_->groups();
}

void SampledRadiusAdaptiveConv::check(const Rows& s) const {
  check_channels(s, product_->input_channels());
  in_source_.check("S", s);
}

void SampledRadiusAdaptiveConv::run(const Rows& s, void* r, Context& context) const {
  check(s);
  if (s.images == 0 || sites() == 0) return;
  const FloatRows rows(s, context);
  const InputRows input{rows.data(), s.images, s.rows, product_->zero_row()};
  FloatResult result(r, s.element, s.images * sites() * outputs(), context);
  const Activation* activation = activation_.is_identity() ? nullptr : &activation_;
  const std::int64_t total = s.images * sites();
  // Blocks of whole groups, or of sites where each stands for itself; no result depends on how they are cut.
  const std::int64_t per_image = groups_.empty() ? sites() : static_cast<std::int64_t>(groups_.size());
  const auto first_site = [&](std::int64_t unit) {
    const std::int64_t of_image = unit % per_image;
    return unit / per_image * sites() + (groups_.empty() ? of_image : groups_[static_cast<std::size_t>(of_image)]);
  };
  const std::int64_t units = s.images * per_image;
  const EvenSplit blocks{units, std::min(ceil_div(total, product_->block_sites()), units)};
  const auto block = [&](std::int64_t i, Context& inside) {
    const std::int64_t first = first_site(blocks.begin(i));
    product_->run(input, tables_, first, first_site(blocks.end(i)) - first, activation,
                  result.data() + first * outputs(), inside);
  };
  if (product_->deep()) {
    for (std::int64_t i = 0; i < blocks.parts; ++i) block(i, context);
  } else if (blocks.parts < kBlocksPerThread * wanted_tasks()) {  // too few to share: share each step of one block
    product_->run(input, tables_, 0, total, activation, result.data(), context);
  } else {
    for_each_alone(context, blocks.parts, block);
  }
  result.finish(context);
}

}  // namespace perfonnx
