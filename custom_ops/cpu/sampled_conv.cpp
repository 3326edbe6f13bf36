#include <algorithm>
#include <vector>

#include "cpu/row_operators.h"

namespace perfonnx {

SampledConv::SampledConv(const ConvConstants& conv, const VirtualMap& map, const std::optional<Indices>& sites,
                         const std::optional<AddedConstants>& added, const KernelSet& kernels)
    : activation_(conv.activation.opened()),
      in_source_("in_source", map.source, map.size.checked("in_shape").positions()) {
  const MapSize output = conv.geometry.checked().output_size(map.size).checked("in_shape");
  const std::vector<std::int32_t> positions = checked_sites(sites, output, conv.geometry.taps());
  const SiteGrid grid{conv.geometry, map.size, output.width, positions, in_source_.data()};
  product_.emplace(conv, grid, kernels);
  table_ = make_row_table(grid);  // geometry, sites and the producer's interpolation in one
  zero_row_.assign(static_cast<std::size_t>(product_->input_channels()), 0.0F);
  if (!added) return;
  std::vector<std::int32_t> repeated;
  std::optional<Indices> z_source = added->source;
  if (z_source && z_source->count == 1 && table_.sites != 1) {
    repeated.assign(static_cast<std::size_t>(table_.sites), z_source->data[0]);
    z_source = Indices{repeated.data(), table_.sites};
  }
  z_source_.emplace("z_source", z_source, table_.sites);
  if (added->zeros) {
    check_added(*added->zeros);
    zero_images_ = added->zeros->images;
    return;
  }
  adds_ = true;
  added_zero_row_.assign(static_cast<std::size_t>(conv.outputs), 0.0F);
}

void SampledConv::check_added(const Rows& z) const {
  if (z.channels != outputs()) {
    throw Error("input 'Z': shape " + z.shape_text() + " has " + std::to_string(z.channels) +
                " channels, but W makes " + std::to_string(outputs()));
  }
  z_source_->check("Z", z);
}

void SampledConv::check(const Rows& s, const Rows* z) const {
  if (s.channels != product_->input_channels()) {
    throw Error("input 'S': shape " + s.shape_text() + " has " + std::to_string(s.channels) +
                " channels, but W and group expect " + std::to_string(product_->input_channels()));
  }
  in_source_.check("S", s);
  if (adds_) check_added(*z);
  const std::int64_t images = adds_ ? z->images : zero_images_;
  if (images != 1 && images != s.images) {
    throw Error("input 'Z': " + std::to_string(images) + " images, but S of shape " + s.shape_text() + " has " +
                std::to_string(s.images) + "; give 1 or as many");
  }
}

void SampledConv::run(const Rows& s, const Rows* z, void* r, Context& context) const {
  check(s, z);
  if (s.images == 0 || sites() == 0) return;
  const FloatRows rows(s, context);
  const InputRows input{rows.data(), s.images, s.rows, zero_row_.data()};
  const std::int64_t count = s.images * sites() * outputs();
  FloatResult result(r, s.element, count, context);
  const Activation* activation = activation_.is_identity() ? nullptr : &activation_;
  if (adds_) {
    const FloatRows z_rows(*z, context);
    const AddedRows added{z_rows.data(), z->images, z->rows, z_source_->data(), added_zero_row_.data()};
    product_->run({input, table_, activation, result.data(), outputs(), nullptr, &added}, context);
  } else {
    product_->run({input, table_, activation, result.data(), outputs()}, context);
  }
  result.finish(context);
}

}  // namespace perfonnx
