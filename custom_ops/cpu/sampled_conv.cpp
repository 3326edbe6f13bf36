#include <vector>

#include "core/kernel_taps.h"
#include "cpu/row_operators.h"

namespace perfonnx {

SampledConv::SampledConv(const ConvConstants& conv, const VirtualMap& map, const std::optional<Indices>& sites,
                         const std::optional<AddedConstants>& added, const KernelSet& kernels)
    : activation_(conv.activation.opened()),
      in_source_("in_source", map.source, map.size.checked("in_shape").positions()) {
  const MapSize output = conv.geometry.checked().output_size(map.size).checked("in_shape");
  const std::vector<std::int32_t> positions = checked_sites(sites, output, conv.geometry.taps());
  const TrimmedConv trimmed(conv);
  const SiteGrid grid{trimmed.conv().geometry, trimmed.taps(), map.size, output.width, positions, in_source_.data()};
  table_ = make_row_table(grid);  // geometry, sites and the producer's interpolation in one
  product_.emplace(trimmed.conv(), grid, &table_, kernels);
  zero_row_.assign(static_cast<std::size_t>(product_->input_channels()), 0.0F);
  added_.emplace(added, table_.sites, conv.outputs);
  if (adds()) added_zero_row_.assign(static_cast<std::size_t>(conv.outputs), 0.0F);
}

void SampledConv::check(const Rows& s, const Rows* z) const {
  check_channels(s, product_->input_channels());
  in_source_.check("S", s);
  added_->check(s, z);
}

void SampledConv::run(const Rows& s, const Rows* z, void* r, Context& context) const {
  check(s, z);
  if (s.images == 0 || sites() == 0) return;
  const FloatRows rows(s, context);
  const InputRows input{rows.data(), s.images, s.rows, zero_row_.data()};
  const std::int64_t count = s.images * sites() * outputs();
  FloatResult result(r, s.element, count, context);
  const Activation* activation = activation_.is_identity() ? nullptr : &activation_;
  if (adds()) {
    const FloatRows z_rows(*z, context);
    const AddedRows added{z_rows.data(), z->images, z->rows, added_->data(), added_zero_row_.data()};
    product_->run({input, table_, activation, result.data(), outputs(), nullptr, &added}, context);
  } else {
    product_->run({input, table_, activation, result.data(), outputs()}, context);
  }
  result.finish(context);
}

}  // namespace perfonnx
