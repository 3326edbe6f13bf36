#include <algorithm>
#include <numeric>

#include "core/error.h"
#include "cpu/operators.h"

namespace perfonnx {
namespace {

constexpr std::int64_t kPartsPerThread = 2;
// Lines of the input that a band of the output reads stay in the second cache; of those, its neighbour reads again a
// third at most.
constexpr std::int64_t kBandFloats = 128 * 1024;
constexpr std::int64_t kRereadShare = 3;
// What images that are computed together may have of results.
constexpr std::int64_t kStackFloats = 1024 * 1024;

}  // namespace

RadiusAdaptiveConv::RadiusAdaptiveConv(const ConvConstants& conv, const RadiusConstants& radius,
                                       const KernelSet& kernels)
    : geometry_(conv.geometry.checked()),
      activation_(conv.activation.opened()),
      product_(conv, radius, nullptr, kernels) {}

void RadiusAdaptiveConv::check(const Images& x) const {
  x.check_channels(product_.input_channels());
  constexpr std::int64_t kLargest = std::numeric_limits<std::int32_t>::max();
  const std::int64_t columns = width(x);
  if (columns > 0 && height(x) > kLargest / columns) {
    throw Error("input 'X': shape " + x.shape_text() + " gives a map of more than 2^31 - 1 positions");
  }
  check_entries("X", height(x) * columns, geometry_.taps());
}

void RadiusAdaptiveConv::run(const Images& x, void* y, Context& context) const {
  check(x);
  const std::int64_t rows = height(x);
  const std::int64_t positions = rows * width(x);
  if (x.images == 0 || positions == 0) return;
  const std::shared_ptr<const RadiusTables> tables = tables_.get(x.height, x.width, [&] {
    std::vector<std::int32_t> sites(static_cast<std::size_t>(positions));
    std::iota(sites.begin(), sites.end(), 0);
    return make_radius_tables({geometry_, all_taps(geometry_), {x.height, x.width}, width(x), sites, nullptr});
  });

  const std::int64_t block = product_.block_sites();
  const EvenSplit bands{rows, ceil_div(rows, band_rows(x))};
  const std::int64_t stack = bands.parts > 1 ? 1 : std::clamp<std::int64_t>(block / positions, 1, x.images);
  const std::int64_t stacks = ceil_div(x.images, stack);
  if (!product_.deep() && stacks * bands.parts >= kPartsPerThread * wanted_tasks()) {
    for_each_alone(context, stacks * bands.parts, [&](std::int64_t task, Context& inside) {
      const std::int64_t image = task / bands.parts * stack;
      const std::int64_t band = task % bands.parts;
      const Part part{image, std::min(stack, x.images - image), bands.begin(band), bands.end(band)};
      run_part(x, *tables, part, block, y, inside);
    });
    return;
  }
  const std::int64_t together = std::clamp<std::int64_t>(kStackFloats / outputs() / positions, 1, x.images);
  for (std::int64_t image = 0; image < x.images; image += together) {
    const Part part{image, std::min(together, x.images - image), 0, rows};
    run_part(x, *tables, part, product_.deep() ? block : together * positions, y, context);
  }
}

std::int64_t RadiusAdaptiveConv::band_rows(const Images& x) const {
  const std::int64_t step = std::clamp<std::int64_t>(geometry_.strides[0], 1, std::max<std::int64_t>(x.height, 1));
  const std::int64_t reach = std::min(2 * geometry_.dilations[0] + 1, x.height);
  const std::int64_t lines = kBandFloats / std::max<std::int64_t>(x.width * x.channels, 1);
  const std::int64_t again = std::max<std::int64_t>(reach - step, 0);
  return std::max({(lines - again) / step, kRereadShare * again / step, std::int64_t{1}});
}

void RadiusAdaptiveConv::run_part(const Images& x, const RadiusTables& tables, const Part& part,
                                  std::int64_t block_sites, void* y, Context& context) const {
  // Lines of the input that these rows of the output read.
  const auto line = [&](std::int64_t row) { return row * geometry_.strides[0] - geometry_.pads[0]; };
  const std::int64_t begin = std::clamp<std::int64_t>(line(part.row_begin), 0, x.height);
  const std::int64_t end =
      std::clamp<std::int64_t>(line(part.row_end - 1) + 2 * geometry_.dilations[0] + 1, begin, x.height);
  const std::int64_t plane = x.height * x.width;
  const std::int64_t pixels = (end - begin) * x.width;
  Scratch<float> lines(context, static_cast<std::size_t>(part.images * pixels * x.channels));
  const MapPart read{element_at(x.data, x.element, part.image * x.channels * plane),
                     x.element,
                     part.images,
                     x.channels,
                     plane,
                     begin * x.width,
                     end * x.width};
  map_to_rows(read, lines.data(), product_.kernels(), context);
  const InputRows input{lines.data(), part.images, pixels, product_.zero_row(), begin * x.width};

  const Activation* activation = activation_.is_identity() ? nullptr : &activation_;
  const std::int64_t columns = width(x);
  const std::int64_t positions = height(x) * columns;
  const std::int64_t first = part.row_begin * columns;
  const std::int64_t count = (part.images - 1) * positions + (part.row_end - part.row_begin) * columns;
  const EvenSplit blocks{count, ceil_div(count, block_sites)};
  const std::int64_t largest = blocks.end(0);
  Scratch<float> sums(context, checked_product(static_cast<std::size_t>(largest), static_cast<std::size_t>(outputs())));
  Scratch<const float*> pointers(context, static_cast<std::size_t>(largest));
  for (std::int64_t p = 0; p < largest; ++p) pointers[static_cast<std::size_t>(p)] = sums.data() + p * outputs();
  for (std::int64_t i = 0; i < blocks.parts; ++i) {
    const std::int64_t from = first + blocks.begin(i);
    const std::int64_t to = first + blocks.end(i);
    product_.run(input, tables, from, to - from, activation, sums.data(), context);
    for (std::int64_t at = from; at < to;) {  // up to the end of each image
      const std::int64_t image = at / positions;
      const std::int64_t here = std::min(to, (image + 1) * positions) - at;
      const Run run{static_cast<std::int32_t>(at % positions), static_cast<std::int32_t>(here), 0};
      const RowsToMap write{pointers.data() + (at - from), &run, 1, outputs(), positions};
      rows_to_map(write, element_at(y, x.element, (part.image + image) * outputs() * positions), x.element,
                  product_.kernels(), context);
      at += here;
    }
  }
}

}  // namespace perfonnx
