#include <algorithm>
#include <utility>

#include "engine/operators.h"

namespace perfonnx {
namespace {

constexpr std::int64_t kCentre = 4;  // of the 3 x 3 taps
constexpr std::size_t kCachedTables = 16;

// The taps of W that `keep` names, as [outputs, inputs, taps].
std::vector<float> some_taps(const ConvConstants& conv, const std::vector<std::int64_t>& keep) {
  std::vector<float> result;
  result.reserve(static_cast<std::size_t>(conv.outputs * conv.inputs) * keep.size());
  for (std::int64_t i = 0; i < conv.outputs * conv.inputs; ++i) {
    for (const std::int64_t tap : keep) result.push_back(conv.weights[i * 9 + tap]);
  }
  return result;
}

const std::vector<std::int64_t>& ring_taps() {
  static const std::vector<std::int64_t> taps{0, 1, 2, 3, 5, 6, 7, 8};
  return taps;
}

PackedWeights pack_centre(const ConvConstants& conv, const RadiusConstants& radius, bool with_alpha,
                          const KernelSet& kernels) {
  const ConvGeometry& geometry = conv.geometry.checked();
  if (geometry.kernel[0] != 3 || geometry.kernel[1] != 3) {
    throw Error("input 'W': the kernel is " + std::to_string(geometry.kernel[0]) + " x " +
                std::to_string(geometry.kernel[1]) + ", but this operator needs 3 x 3");
  }
  std::vector<float> weights = some_taps(conv, {kCentre});
  WeightShape shape{conv.outputs, conv.inputs, 1, conv.groups};
  if (with_alpha) {
    weights.insert(weights.end(), radius.alpha_weights, radius.alpha_weights + conv.inputs);
    ++shape.outputs;
  }
  return PackedWeights(weights.data(), nullptr, shape, kernels);
}

}  // namespace

struct RadiusAdaptiveConv::Tables {
  std::int64_t height;
  std::int64_t width;
  RowTable centre;  // one tap
  RowTable ring;    // eight
};

RadiusAdaptiveConv::RadiusAdaptiveConv(const ConvConstants& conv, const RadiusConstants& radius,
                                       const KernelSet& kernels)
    : geometry_(conv.geometry.checked()),
      activation_(conv.activation.opened()),
      center_gain_(radius.center_gain),
      alpha_bias_(radius.alpha_bias),
      alpha_in_centre_(conv.groups == 1),
      centre_(pack_centre(conv, radius, alpha_in_centre_, kernels)),
      alpha_(alpha_in_centre_
                 ? nullptr
                 : std::make_unique<PackedWeights>(radius.alpha_weights, nullptr,
                                                   WeightShape{1, conv.inputs * conv.groups, 1, 1}, kernels)),
      ring_(some_taps(conv, ring_taps()).data(), radius.ring_bias,
            WeightShape{conv.outputs, conv.inputs, 8, conv.groups}, kernels),
      bias_(static_cast<std::size_t>(conv.outputs), 0.0F),
      zero_row_(static_cast<std::size_t>(ring_.input_channels()), 0.0F) {
  if (conv.bias != nullptr) std::copy_n(conv.bias, conv.outputs, bias_.begin());
}

void RadiusAdaptiveConv::check(const Images& x) const {
  x.check_channels(ring_.input_channels());
  constexpr std::int64_t kLargest = std::numeric_limits<std::int32_t>::max();
  const std::int64_t columns = width(x);
  if (columns > 0 && height(x) > kLargest / columns) {
    throw Error("input 'X': shape " + x.shape_text() + " gives a map of more than 2^31 - 1 positions");
  }
}

std::shared_ptr<const RadiusAdaptiveConv::Tables> RadiusAdaptiveConv::tables(std::int64_t height,
                                                                             std::int64_t width) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (const auto& entry : cache_) {
    if (entry->height == height && entry->width == width) return entry;
  }
  const std::int64_t columns = geometry_.output_size(1, width);
  std::vector<std::int32_t> sites(static_cast<std::size_t>(geometry_.output_size(0, height) * columns));
  for (std::size_t q = 0; q < sites.size(); ++q) sites[q] = static_cast<std::int32_t>(q);
  const std::vector<std::int32_t> ring(ring_taps().begin(), ring_taps().end());
  auto made = std::make_shared<const Tables>(Tables{height, width,
                                                    make_row_table(geometry_, height, width, sites, columns, {kCentre}),
                                                    make_row_table(geometry_, height, width, sites, columns, ring)});
  if (cache_.size() >= kCachedTables) cache_.erase(cache_.begin());
  cache_.push_back(made);
  return made;
}

void RadiusAdaptiveConv::run(const Images& x, void* y, Context& context) const {
  check(x);
  const std::int64_t positions = height(x) * width(x);
  const std::int64_t outputs = this->outputs();
  if (x.images == 0 || positions == 0) return;
  const std::shared_ptr<const Tables> table = tables(x.height, x.width);
  const std::int64_t pixels = x.height * x.width;
  const auto total = static_cast<std::size_t>(x.images * positions);

  Scratch<float> rows(context, static_cast<std::size_t>(x.images * pixels * x.channels));
  nchw_to_rows(x.data, x.element, x.images, x.channels, pixels, rows.data(), context);
  const InputRows input{rows.data(), x.images, pixels, zero_row_.data()};

  const std::int64_t centre_stride = centre_.shape().outputs;
  Scratch<float> centre(context, checked_product(total, static_cast<std::size_t>(centre_stride)));
  sampled_product(input, table->centre, centre_, nullptr, centre.data(), centre_stride, context);
  Scratch<float> alpha(context, total);
  if (!alpha_in_centre_) sampled_product(input, table->centre, *alpha_, nullptr, alpha.data(), 1, context);

  Scratch<std::int64_t> ring_row(context, total);
  Scratch<std::int64_t> active(context, total);
  std::int64_t count = 0;
  for (std::size_t i = 0; i < total; ++i) {
    float a = alpha_in_centre_ ? centre[i * static_cast<std::size_t>(centre_stride) + static_cast<std::size_t>(outputs)]
                               : alpha[i];
    a += alpha_bias_;
    a = a < 0.0F ? 0.0F : a;
    a = a > 1.0F ? 1.0F : a;
    alpha[i] = a;
    if (!(a <= 0.0F)) {  // also where alpha is NaN, which must not vanish
      active[static_cast<std::size_t>(count)] = static_cast<std::int64_t>(i);
      ring_row[i] = count++;
    } else {
      ring_row[i] = -1;
    }
  }

  Scratch<float> ring(context, checked_product(static_cast<std::size_t>(count), static_cast<std::size_t>(outputs)));
  const SiteList list{active.data(), count};
  sampled_product(input, table->ring, ring_, nullptr, ring.data(), outputs, context, &list);

  CombineArgs args{};
  args.centre = centre.data();
  args.centre_stride = centre_stride;
  args.alpha = alpha.data();
  args.ring_row = ring_row.data();
  args.ring = ring.data();
  args.bias = bias_.data();
  args.center_gain = center_gain_;
  args.images = x.images;
  args.positions = positions;
  args.channels = outputs;
  args.activation = activation_.is_identity() ? nullptr : &activation_;
  combine_radius_adaptive(args, y, x.element, context);
}

}  // namespace perfonnx
