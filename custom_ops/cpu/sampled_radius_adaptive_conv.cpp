#include "cpu/row_operators.h"

namespace perfonnx {
namespace {

constexpr std::int64_t kBlocksPerThread = 2;

}  // namespace

SampledRadiusAdaptiveConv::SampledRadiusAdaptiveConv(const ConvConstants& conv, const RadiusConstants& radius,
                                                     const VirtualMap& map, const std::optional<Indices>& sites,
                                                     const KernelSet& kernels)
    : activation_(conv.activation.opened()),
      product_(conv, radius, kernels),
      in_source_("in_source", map.source, map.size.checked("in_shape").positions()) {
  const ConvGeometry& geometry = conv.geometry;
  const MapSize output = geometry.output_size(map.size).checked("in_shape");
  const std::vector<std::int32_t> positions = checked_sites(sites, output, geometry.taps());
  tables_ = make_radius_tables({geometry, map.size, output.width, positions, in_source_.data()});
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
  const std::int64_t total = s.images * sites();
  const auto block = [&](std::int64_t first, std::int64_t last, Context& inside) {
    product_.run(input, tables_, first, last - first, activation, result.data() + first * outputs(), inside);
  };
  const EvenSplit blocks{total, ceil_div(total, product_.block_sites())};
  if (product_.deep()) {
    for (std::int64_t i = 0; i < blocks.parts; ++i) block(blocks.begin(i), blocks.end(i), context);
  } else if (blocks.parts < kBlocksPerThread * wanted_tasks()) {  // too few to share: share each step of one block
    block(0, total, context);
  } else {
    for_each_alone(context, blocks.parts,
                   [&](std::int64_t i, Context& inside) { block(blocks.begin(i), blocks.end(i), inside); });
  }
  result.finish(context);
}

}  // namespace perfonnx
