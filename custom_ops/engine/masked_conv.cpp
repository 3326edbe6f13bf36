#include <utility>

#include "engine/operators.h"

namespace perfonnx {

MaskedConv::MaskedConv(const ConvConstants& conv, const Mask& mask, Interpolation interpolation, const float* fill,
                       const KernelSet& kernels)
    : geometry_(conv.geometry.checked()),
      activation_(conv.activation.opened()),
      height_(mask.height),
      width_(mask.width),
      weights_(conv.weights, conv.bias, WeightShape{conv.outputs, conv.inputs, geometry_.taps(), conv.groups}, kernels),
      tables_(geometry_, sites_of_mask(mask.data, mask.height, mask.width), mask.width, all_taps(geometry_)),
      interpolation_(std::move(interpolation)),
      fill_(fill == nullptr ? std::vector<float>() : std::vector<float>(fill, fill + conv.outputs)),
      zero_row_(static_cast<std::size_t>(weights_.input_channels()), 0.0F),
      // Copying and activating commute, and a row is cheaper to activate than its copies -- unless some position has no
      // row and the activation of its zero is not zero.
      activate_rows_(interpolation_.copies() &&
                     (!interpolation_.has_fill || !fill_.empty() || activation_(0.0F) == 0.0F)) {}

void MaskedConv::check(const Images& x) const {
  x.check_channels(weights_.input_channels());
  const std::int64_t height = geometry_.output_size(0, x.height);
  const std::int64_t width = geometry_.output_size(1, x.width);
  if (height != height_ || width != width_) {
    throw Error("input 'X': shape " + x.shape_text() + " gives a map of " + std::to_string(height) + " x " +
                std::to_string(width) + ", but the mask is " + std::to_string(height_) + " x " +
                std::to_string(width_) + "; feed images of the size the model was rewritten for");
  }
}

void MaskedConv::run(const Images& x, void* y, Context& context) const {
  check(x);
  const std::int64_t positions = height_ * width_;
  const std::int64_t outputs = weights_.shape().outputs;
  if (x.images == 0 || positions == 0) return;
  const std::int64_t pixels = x.height * x.width;
  const std::shared_ptr<const RowTable> table = tables_.get(x.height, x.width);
  const Activation* activation = activation_.is_identity() ? nullptr : &activation_;

  Scratch<float> sums(
      context, checked_product(static_cast<std::size_t>(x.images * table->sites), static_cast<std::size_t>(outputs)));
  if (table->sites > 0) {
    Scratch<float> rows(context, static_cast<std::size_t>(x.images * pixels * x.channels));
    nchw_to_rows(x.data, x.element, x.images, x.channels, pixels, rows.data(), context);
    const InputRows input{rows.data(), x.images, pixels, zero_row_.data()};
    sampled_product(input, *table, weights_, activate_rows_ ? activation : nullptr, sums.data(), outputs, context);
  }
  ExpandArgs args{};
  args.rows = sums.data();
  args.row_element = Element::kFloat;
  args.row_stride = outputs;
  args.images = x.images;
  args.sites = table->sites;
  args.channels = outputs;
  args.interpolation = &interpolation_;
  args.activation = activate_rows_ ? nullptr : activation;
  args.fill = fill_.empty() ? nullptr : fill_.data();
  expand(args, y, x.element, context);
}

MaskedConv make_perforated_conv(const ConvConstants& conv, const Mask& mask, const std::int32_t* source,
                                const float* weight, std::int64_t per_position, const KernelSet& kernels) {
  return MaskedConv(conv, mask, make_interpolation(mask.data, mask.positions(), source, weight, per_position), nullptr,
                    kernels);
}

MaskedConv make_sparse_conv(const ConvConstants& conv, const Mask& mask, const float* fill, const KernelSet& kernels) {
  const std::vector<float> zeros(static_cast<std::size_t>(fill == nullptr ? conv.outputs : 0), 0.0F);
  return MaskedConv(conv, mask, make_identity_interpolation(mask.data, mask.positions()),
                    fill == nullptr ? zeros.data() : fill, kernels);
}

}  // namespace perfonnx
