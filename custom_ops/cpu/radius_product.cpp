#include "cpu/radius_product.h"

#include <algorithm>

#include "cpu/act.h"

namespace perfonnx {
namespace {

// A block's centres, rings and results have this many floats each, for at least kFewestSites sites: with fewer, the
// open ones among them are too few for the cost of a product to be that of its sums.
constexpr std::int64_t kBlockFloats = 64 * 1024;
constexpr std::int64_t kFewestSites = 448;
constexpr std::int64_t kDeepInputs = 2304;
constexpr std::int64_t kDeepFloats = 1024 * 1024;

Product product_of(const ConvConstants& conv, const char* part, const std::vector<std::int32_t>& taps,
                   const float* bias, const KernelSet& kernels) {
  std::vector<float> weights;
  weights.reserve(static_cast<std::size_t>(conv.outputs * conv.inputs) * taps.size());
  for (std::int64_t i = 0; i < conv.outputs * conv.inputs; ++i) {
    for (const std::int32_t tap : taps) weights.push_back(conv.weights[i * 9 + tap]);
  }
  const auto count = static_cast<std::int64_t>(taps.size());
  return Product({weights.data(), bias, {conv.outputs, conv.inputs, count, conv.groups}, kernels, nullptr, nullptr},
                 conv.layer + ", " + part);
}

// The ring as a kernel of 3 x 3 taps, of which the one in the middle is zero. Null: tiles never pay.
std::unique_ptr<const ChosenTiles> tiles_of(const ConvConstants& conv, const float* bias, const SiteGrid& grid,
                                            std::int64_t group_sites, const KernelSet& kernels) {
  std::vector<float> weights(conv.weights, conv.weights + conv.outputs * conv.inputs * 9);
  for (std::size_t i = kCentreTap; i < weights.size(); i += 9) weights[i] = 0.0F;
  return make_chosen_tiles(
      {weights.data(), bias, {conv.outputs, conv.inputs, 9, conv.groups}, kernels, &grid, nullptr, conv.largest_tile},
      group_sites);
}

}  // namespace

RadiusProduct::RadiusProduct(const ConvConstants& conv, const RadiusConstants& radius, const SiteGrid* grid,
                             const KernelSet& kernels)
    : center_gain_(radius.center_gain),
      alpha_bias_(radius.alpha_bias),
      centre_(product_of(checked_radius(conv), "centre", {kCentreTap}, radius.center_gain == 0.0F ? conv.bias : nullptr,
                         kernels)),
      ring_(product_of(conv, "ring", ring_taps(), radius.ring_bias, kernels)),
      tiles_(grid == nullptr ? nullptr : tiles_of(conv, radius.ring_bias, *grid, block_sites(), kernels)),
      zero_row_(static_cast<std::size_t>(ring_.input_channels()), 0.0F) {
  const auto vector = static_cast<std::int64_t>(kernels.f32->vector);
  alpha_weights_.assign(static_cast<std::size_t>(ceil_div(input_channels(), vector) * vector), 0.0F);
  std::copy_n(radius.alpha_weights, input_channels(), alpha_weights_.begin());
  if (center_gain_ != 0.0F) {  // scales the centre, but not the bias
    bias_.assign(static_cast<std::size_t>(conv.outputs), 0.0F);
    if (conv.bias != nullptr) std::copy_n(conv.bias, conv.outputs, bias_.begin());
  }
}

bool RadiusProduct::deep() const noexcept { return ring_.shape().taps * ring_.shape().inputs > kDeepInputs; }

std::int64_t RadiusProduct::block_sites() const noexcept {
  return std::max(kFewestSites, (deep() ? kDeepFloats : kBlockFloats) / outputs());
}

void RadiusProduct::gate(const InputRows& input, const RowTable& table, std::int64_t first, std::int64_t count,
                         float* alpha) const {
  constexpr std::int64_t kPiece = 64;
  const float* rows[kPiece];
  GateArgs args{};
  args.rows = rows;
  args.weights = alpha_weights_.data();
  args.channels = static_cast<std::size_t>(input_channels());
  args.bias = alpha_bias_;
  for (std::int64_t begin = 0; begin < count; begin += kPiece) {
    const std::int64_t here = std::min(kPiece, count - begin);
    std::int64_t image = (first + begin) / table.sites;
    std::int64_t site = (first + begin) % table.sites;
    for (std::int64_t i = 0; i < here; ++i) {
      const std::int64_t row = table.rows[static_cast<std::size_t>(site)];
      rows[i] = row < 0 ? input.zero_row
                        : input.data + (image * input.rows_per_image + row - input.first_row) * input_channels();
      if (++site == table.sites) {
        site = 0;
        ++image;
      }
    }
    args.sites = static_cast<std::size_t>(here);
    args.out = alpha + begin;
    kernels().f32->gate(&args);
  }
}

void RadiusProduct::run_ring(const InputRows& input, const RowTable& table, const SiteList& list, float* out,
                             Context& context) const {
  const ProductRun all{input, table, nullptr, out, outputs(), &list};
  if (tiles_ == nullptr) return ring_.run(all, context);
  const std::vector<std::int64_t> rest = tiles_->run(all, context);
  const auto count = static_cast<std::int64_t>(rest.size());
  if (count == list.count) return ring_.run(all, context);
  if (count == 0) return;
  std::vector<std::int64_t> numbers(rest.size());
  for (std::size_t i = 0; i < rest.size(); ++i) numbers[i] = list.numbers[rest[i]];
  Scratch<float> rows(context, checked_product(rest.size(), static_cast<std::size_t>(outputs())));
  const SiteList others{numbers.data(), count};
  ring_.run({input, table, nullptr, rows.data(), outputs(), &others}, context);
  for (std::int64_t i = 0; i < count; ++i) {
    std::copy_n(rows.data() + i * outputs(), outputs(), out + rest[static_cast<std::size_t>(i)] * outputs());
  }
}

void RadiusProduct::run(const InputRows& input, const RadiusTables& tables, std::int64_t first, std::int64_t count,
                        const Activation* activation, float* out, Context& context) const {
  constexpr std::int64_t kPiece = 256;  // sites of a step that is shared out by itself
  const std::int64_t pieces = ceil_div(count, kPiece);
  const auto size = [&](std::int64_t sites) {
    return checked_product(static_cast<std::size_t>(sites), static_cast<std::size_t>(outputs()));
  };
  Scratch<float> alpha(context, static_cast<std::size_t>(count));
  for_each_item(context, pieces, [&](std::int64_t i) {
    const std::int64_t begin = i * kPiece;
    gate(input, tables.centre, first + begin, std::min(kPiece, count - begin), alpha.data() + begin);
  });

  Scratch<std::int64_t> numbers(context, static_cast<std::size_t>(count));
  Scratch<std::int64_t> open(context, static_cast<std::size_t>(count));
  Scratch<std::int32_t> ring_row(context, static_cast<std::size_t>(count));
  std::int32_t open_count = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const auto at = static_cast<std::size_t>(i);
    numbers[at] = first + i;
    const bool is_open = !(alpha[at] <= 0.0F);  // also where alpha is NaN, which must not vanish
    open[static_cast<std::size_t>(open_count)] = first + i;
    ring_row[at] = is_open ? open_count : -1;
    open_count += is_open ? 1 : 0;
  }
  const SiteList all{numbers.data(), count};
  if (open_count == 0 && bias_.empty()) {
    centre_.run({input, tables.centre, activation, out, outputs(), &all}, context);
    return;
  }
  Scratch<float> centre(context, size(count));
  centre_.run({input, tables.centre, nullptr, centre.data(), outputs(), &all}, context);
  Scratch<float> ring(context, size(open_count));
  run_ring(input, tables.ring, {open.data(), open_count}, ring.data(), context);

  for_each_item(context, pieces, [&](std::int64_t i) {
    const std::int64_t begin = i * kPiece;
    RadiusSumArgs args{};
    args.centre = centre.data() + begin * outputs();
    args.ring = ring.data();
    args.ring_row = ring_row.data() + begin;
    args.alpha = alpha.data() + begin;
    args.bias = bias_.empty() ? nullptr : bias_.data();
    args.sites = static_cast<std::size_t>(std::min(kPiece, count - begin));
    args.channels = static_cast<std::size_t>(outputs());
    args.center_gain = center_gain_;
    args.out = out + begin * outputs();
    args.act = act_of(activation);
    kernels().f32->radius_sum(&args);
  });
}

}  // namespace perfonnx
