#include "engine/row_operators.h"

namespace perfonnx {

SampledRadiusAdaptiveConv::SampledRadiusAdaptiveConv(const ConvConstants& conv, const RadiusConstants& radius,
                                                     const VirtualMap& map, const std::optional<Indices>& sites,
                                                     const KernelSet& kernels)
    : activation_(conv.activation.opened()),
      product_(conv, radius, kernels),
      in_source_("in_source", map.source, map.size.checked("in_shape").positions()) {
  const ConvGeometry& geometry = conv.geometry;
  const MapSize output =
      MapSize{geometry.output_size(0, map.size.height), geometry.output_size(1, map.size.width)}.checked("in_shape");
  tables_ = make_radius_tables(geometry, map.size.height, map.size.width, checked_sites(sites, output, geometry.taps()),
                               output.width, in_source_.data());
}

void SampledRadiusAdaptiveConv::check(const Rows& s) const {
  if (s.channels != product_.input_channels()) {
    throw Error("input 'S': shape " + s.shape_text() + " has " + std::to_string(s.channels) +
                " channels, but W and group expect " + std::to_string(product_.input_channels()));
  }
  in_source_.check("S", s);
}

void SampledRadiusAdaptiveConv::run(const Rows& s, void* r, Context& context) const {
  check(s);
  if (s.images == 0 || sites() == 0) return;
  const FloatRows rows(s, context);
  const InputRows input{rows.data(), s.images, s.rows, product_.zero_row()};
  FloatResult result(r, s.element, s.images * sites() * outputs(), context);
  const Activation* activation = activation_.is_identity() ? nullptr : &activation_;
  product_.for_each_block(input, tables_, context, [&](std::int64_t first, std::int64_t count, Context& inside) {
    product_.run(input, tables_, first, count, activation, result.data() + first * outputs(), inside);
  });
  result.finish(context);
}

}  // namespace perfonnx
