#include "cuda/operators.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "core/kernel_taps.h"

namespace perfonnx::cuda {
namespace {

Element element_of(perfonnx::Element element) {
  return element == perfonnx::Element::kFloat ? Element::kFloat : Element::kHalf;
}

std::size_t bytes_of(perfonnx::Element element, std::initializer_list<std::int64_t> dims) {
  std::size_t bytes = element == perfonnx::Element::kFloat ? sizeof(float) : sizeof(Half);
  for (const std::int64_t dim : dims) bytes = checked_product(bytes, static_cast<std::size_t>(dim));
  return bytes;
}

Act no_activation() {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  return {1.0F, -kInfinity, kInfinity, nullptr};
}

// The rows of a map, one for each pixel.
void map_to_rows(const Images& x, void* rows, const Run& run) {
  CompactArgs args{};
  args.element = element_of(x.element);
  args.images = x.images;
  args.channels = x.channels;
  args.pixels = args.count = x.height * x.width;
  args.x = x.data;
  args.rows = rows;
  check(perfonnx_cuda_compact(&args, run.stream));
}

// The map that rows of all its positions stand for.
void rows_to_map(const Rows& rows, void* y, const Run& run) {
  // A map of one channel per pixel and a "pixel" per channel: the same transposition.
  CompactArgs args{};
  args.element = element_of(rows.element);
  args.images = rows.images;
  args.channels = rows.rows;
  args.pixels = args.count = rows.channels;
  args.x = rows.data;
  args.rows = y;
  check(perfonnx_cuda_compact(&args, run.stream));
}

}  // namespace

Weights::Weights(const Memory& memory, const ConvConstants& conv, const std::vector<std::int32_t>& taps)
    : memory_(memory),
      shape_{conv.outputs, conv.inputs, static_cast<std::int64_t>(taps.size()), conv.groups},
      all_taps_(conv.geometry.taps()),
      taps_(memory, taps, nullptr),
      given_(memory, conv.weights, static_cast<std::size_t>(conv.outputs * conv.inputs * all_taps_), nullptr) {}

const void* Weights::packed(perfonnx::Element element, const Run& run) const {
  if (const void* ready = ready_.load(std::memory_order_acquire)) return ready;
  const std::lock_guard<std::mutex> lock(mutex_);
  if (const void* ready = ready_.load(std::memory_order_relaxed)) return ready;
  DeviceBytes packed(memory_, perfonnx_cuda_packed_bytes(&shape_, element_of(element)));
  const PackArgs args{shape_, element_of(element), run.math, all_taps_, taps_.data(), given_.data(), packed.data()};
  check(perfonnx_cuda_pack(&args, run.stream));
  check(perfonnx_cuda_wait(run.stream));  // other runs have other streams
  packed_ = std::move(packed);
  given_ = DeviceArray<float>();
  ready_.store(packed_.data(), std::memory_order_release);
  return packed_.data();
}

DeviceActivation::DeviceActivation(const Memory& memory, const Activation& opened)
    : slopes_(memory, opened.slopes, nullptr),
      act_{opened.negative_slope, opened.clip_min, opened.clip_max, slopes_.data()} {}

Compact::Compact(const std::optional<Indices>& sites, const MapSize& size, const Memory& memory)
    : sites_(sites, size), table_(memory, sites_.data(), static_cast<std::size_t>(sites_.size()), nullptr) {
  cuda::check(perfonnx_cuda_wait(nullptr));
}

void Compact::run(const Images& x, void* rows, const Run& run) const {
  check(x);
  CompactArgs args{};
  args.element = element_of(x.element);
  args.images = x.images;
  args.channels = x.channels;
  args.pixels = x.height * x.width;
  args.count = sites(x);
  args.sites = table_.data();
  args.x = x.data;
  args.rows = rows;
  cuda::check(perfonnx_cuda_compact(&args, run.stream));
}

Expand::Expand(const MapSize& map, const std::int32_t* source, const float* weight, std::int64_t per_position,
               const Memory& memory)
    : sources_(map, source, weight, per_position),
      table_(memory, sources_.interpolation().rows, nullptr),
      weights_(memory, sources_.interpolation().weights, nullptr) {
  cuda::check(perfonnx_cuda_wait(nullptr));
}

void Expand::run(const Rows& s, void* y, const Run& run) const {
  check(s);
  ExpandArgs args{};
  args.element = element_of(s.element);
  args.images = s.images;
  args.rows_per_image = s.rows;
  args.channels = s.channels;
  args.positions = map().positions();
  args.per_position = sources_.interpolation().per_position;
  args.source = table_.data();
  args.weight = weights_.data();
  args.act = no_activation();
  args.rows = s.data;
  args.y = y;
  cuda::check(perfonnx_cuda_expand(&args, run.stream));
}

namespace {

RowIndex in_source_of(const VirtualMap& map) {
  return {"in_source", map.source, map.size.checked("in_shape").positions()};
}

ReadRows<RowTable> read_by(const ConvConstants& conv, const VirtualMap& map, const std::optional<Indices>& sites) {
  RowIndex in_source = in_source_of(map);
  const MapSize output = conv.geometry.checked().output_size(map.size).checked("in_shape");
  const std::vector<std::int32_t> positions = checked_sites(sites, output, conv.geometry.taps());
  const std::vector<std::int32_t> taps = taps_with_weights(conv);
  RowTable table = make_row_table({conv.geometry, taps, map.size, output.width, positions, in_source.data()});
  return {std::move(in_source), std::move(table)};
}

ReadRows<PoolTable> read_by(const PoolWindow& window, const VirtualMap& map, const std::optional<Indices>& sites) {
  RowIndex in_source = in_source_of(map);
  PoolTable table = make_pool_table(window, map.size, sites, in_source);
  return {std::move(in_source), std::move(table)};
}

}  // namespace

SampledConv::SampledConv(const ConvConstants& conv, const VirtualMap& map, const std::optional<Indices>& sites,
                         const std::optional<AddedConstants>& added, const Memory& memory)
    : SampledConv(conv, read_by(conv, map, sites), added, memory) {}

SampledConv::SampledConv(const ConvConstants& conv, ReadRows<RowTable> read, const std::optional<AddedConstants>& added,
                         const Memory& memory)
    : in_source_(std::move(read.in_source)),
      sites_(read.table.sites),
      added_(added, sites_, conv.outputs),
      weights_(memory, conv, taps_with_weights(conv)),
      activation_(memory, conv.activation.opened()),
      bias_(memory, conv.bias, static_cast<std::size_t>(conv.outputs), nullptr),
      table_(memory, read.table.rows, nullptr),
      added_table_(memory, added_.data(), static_cast<std::size_t>(sites_), nullptr) {
  cuda::check(perfonnx_cuda_wait(nullptr));
}

void SampledConv::check(const Rows& s, const Rows* z) const {
  check_channels(s, weights_.input_channels());
  in_source_.check("S", s);
  added_.check(s, z);
}

void SampledConv::run(const Rows& s, const Rows* z, void* r, const Run& run) const {
  check(s, z);
  if (s.images == 0 || sites() == 0) return;
  ProductArgs args{};
  args.shape = weights_.shape();
  args.element = element_of(s.element);
  args.math = run.math;
  args.images = s.images;
  args.rows_per_image = s.rows;
  args.sites = sites();
  args.rows = s.data;
  args.packed = weights_.packed(s.element, run);
  args.bias = bias_.data();
  args.table = table_.data();
  if (adds()) {
    args.added = z->data;
    args.added_source = added_table_.data();
    args.added_images = z->images;
    args.rows_added = z->rows;
  }
  args.act = activation_.act();
  args.out = r;
  cuda::check(perfonnx_cuda_product(&args, run.stream));
}

RadiusLayer::RadiusLayer(const ConvConstants& conv, const RadiusConstants& radius, const Memory& memory)
    : centre_(memory, checked_radius(conv), {kCentreTap}),
      ring_(memory, conv, ring_taps()),
      activation_(memory, conv.activation.opened()),
      bias_(memory, conv.bias, static_cast<std::size_t>(conv.outputs), nullptr),
      ring_bias_(memory, radius.ring_bias, static_cast<std::size_t>(conv.outputs), nullptr),
      alpha_weights_(memory, radius.alpha_weights, static_cast<std::size_t>(conv.inputs * conv.groups), nullptr),
      alpha_bias_(radius.alpha_bias),
      center_gain_(radius.center_gain) {
  cuda::check(perfonnx_cuda_wait(nullptr));
}

void RadiusLayer::run(const Rows& s, std::int64_t sites, const DeviceRadiusTables& tables, void* out,
                      const Run& run) const {
  RadiusArgs args{};
  args.shape = ring_.shape();
  args.shape.taps = 9;
  args.element = element_of(s.element);
  args.math = run.math;
  args.images = s.images;
  args.rows_per_image = s.rows;
  args.sites = sites;
  args.rows = s.data;
  args.packed_centre = centre_.packed(s.element, run);
  args.packed_ring = ring_.packed(s.element, run);
  args.bias = bias_.data();
  args.ring_bias = ring_bias_.data();
  args.alpha_weights = alpha_weights_.data();
  args.centre = tables.centre();
  args.ring = tables.ring();
  args.alpha_bias = alpha_bias_;
  args.center_gain = center_gain_;
  args.act = activation_.act();
  args.out = out;
  const Scratch scratch(run, perfonnx_cuda_radius_scratch(&args));
  args.scratch = scratch.data();
  cuda::check(perfonnx_cuda_radius(&args, run.stream));
}

SampledRadiusAdaptiveConv::SampledRadiusAdaptiveConv(const ConvConstants& conv, const RadiusConstants& radius,
                                                     const VirtualMap& map, const std::optional<Indices>& sites,
                                                     const Memory& memory)
    : layer_(conv, radius, memory), in_source_(in_source_of(map)) {
  const ConvGeometry& geometry = conv.geometry;
  const MapSize output = geometry.output_size(map.size).checked("in_shape");
  const std::vector<std::int32_t> positions = checked_sites(sites, output, geometry.taps());
  const std::vector<std::int32_t> taps = all_taps(geometry);
  const SiteGrid grid{geometry, taps, map.size, output.width, positions, in_source_.data()};
  sites_ = static_cast<std::int64_t>(positions.size());
  tables_ = DeviceRadiusTables(memory, make_radius_tables(grid), nullptr);
  cuda::check(perfonnx_cuda_wait(nullptr));
}

void SampledRadiusAdaptiveConv::check(const Rows& s) const {
  check_channels(s, layer_.input_channels());
  in_source_.check("S", s);
}

void SampledRadiusAdaptiveConv::run(const Rows& s, void* r, const Run& run) const {
  check(s);
  if (s.images == 0 || sites() == 0) return;
  layer_.run(s, sites(), tables_, r, run);
}

SampledPool::SampledPool(const PoolWindow& window, const VirtualMap& map, const std::optional<Indices>& sites,
                         const Memory& memory)
    : SampledPool(window, read_by(window, map, sites), memory) {}

SampledPool::SampledPool(const PoolWindow& window, ReadRows<PoolTable> read, const Memory& memory)
    : average_(window.average),
      in_source_(std::move(read.in_source)),
      sites_(read.table.sites()),
      begin_(memory, read.table.begin, nullptr),
      entries_(memory, read.table.rows, nullptr),
      repeats_(memory, read.table.repeats, nullptr),
      divisors_(memory, read.table.divisors, nullptr) {
  cuda::check(perfonnx_cuda_wait(nullptr));
}

void SampledPool::run(const Rows& s, void* r, const Run& run) const {
  check(s);
  PoolArgs args{};
  args.element = element_of(s.element);
  args.average = average_ ? 1 : 0;
  args.images = s.images;
  args.rows_per_image = s.rows;
  args.channels = s.channels;
  args.sites = sites();
  args.begin = begin_.data();
  args.entries = entries_.data();
  args.repeats = repeats_.data();
  args.divisors = divisors_.data();
  args.rows = s.data;
  args.out = r;
  cuda::check(perfonnx_cuda_pool(&args, run.stream));
}

MaskedConv::MaskedConv(const ConvConstants& conv, const Mask& mask, const Interpolation& interpolation,
                       const float* fill, const Memory& memory)
    : geometry_(conv.geometry.checked()),
      taps_(taps_with_weights(conv)),
      map_{mask.height, mask.width},
      sites_(sites_of_mask(mask.data, mask.height, mask.width)),
      per_position_(interpolation.per_position),
      copies_(interpolation.copies()),
      weights_(memory, conv, taps_),
      activation_(memory, conv.activation.opened()),
      bias_(memory, conv.bias, static_cast<std::size_t>(conv.outputs), nullptr),
      source_(memory, interpolation.rows, nullptr),
      source_weights_(memory, interpolation.weights, nullptr),
      memory_(memory) {
  check_entries("mask", mask.positions(), 1);
  check_entries("mask", static_cast<std::int64_t>(sites_.size()), geometry_.taps());
  std::vector<float> filled(static_cast<std::size_t>(conv.outputs), conv.activation.opened()(0.0F, 0));
  if (fill != nullptr) std::copy_n(fill, conv.outputs, filled.begin());
  fill_ = {memory, filled, nullptr};
  cuda::check(perfonnx_cuda_wait(nullptr));
}

void MaskedConv::check(const Images& x) const {
  x.check_channels(weights_.input_channels());
  const MapSize given = geometry_.output_size(MapSize{x.height, x.width});
  if (given.height != map_.height || given.width != map_.width) throw Error(x.misfit("gives a map of", given, map_));
}

void MaskedConv::run(const Images& x, void* y, const Run& run) const {
  check(x);
  if (x.images == 0 || map_.positions() == 0) return;
  const auto sites = static_cast<std::int64_t>(sites_.size());
  const std::shared_ptr<const DeviceArray<std::int32_t>> table = tables_.get(x.height, x.width, [&] {
    const RowTable made = make_row_table({geometry_, taps_, {x.height, x.width}, map_.width, sites_, nullptr});
    DeviceArray<std::int32_t> result(memory_, made.rows, run.stream);
    cuda::check(perfonnx_cuda_wait(run.stream));  // other runs have other streams
    return result;
  });
  const Scratch rows(run, bytes_of(x.element, {x.images, x.height, x.width, x.channels}));
  const Scratch sums(run, bytes_of(x.element, {x.images, sites, outputs()}));
  map_to_rows(x, rows.data(), run);
  if (sites > 0) {
    ProductArgs product{};
    product.shape = weights_.shape();
    product.element = element_of(x.element);
    product.math = run.math;
    product.images = x.images;
    product.rows_per_image = x.height * x.width;
    product.sites = sites;
    product.rows = rows.data();
    product.packed = weights_.packed(x.element, run);
    product.bias = bias_.data();
    product.table = table->data();
    product.act = copies_ ? activation_.act() : no_activation();
    product.out = sums.data();
    cuda::check(perfonnx_cuda_product(&product, run.stream));
  }
  ExpandArgs expand{};
  expand.element = element_of(x.element);
  expand.images = x.images;
  expand.rows_per_image = sites;
  expand.channels = outputs();
  expand.positions = map_.positions();
  expand.per_position = per_position_;
  expand.source = source_.data();
  expand.weight = source_weights_.data();
  expand.fill = fill_.data();
  expand.act = copies_ ? no_activation() : activation_.act();
  expand.rows = sums.data();
  expand.y = y;
  cuda::check(perfonnx_cuda_expand(&expand, run.stream));
}

RadiusAdaptiveConv::RadiusAdaptiveConv(const ConvConstants& conv, const RadiusConstants& radius, const Memory& memory)
    : geometry_(conv.geometry.checked()), layer_(conv, radius, memory), memory_(memory) {}

void RadiusAdaptiveConv::check(const Images& x) const {
  x.check_channels(layer_.input_channels());
  constexpr std::int64_t kLargest = std::numeric_limits<std::int32_t>::max();
  const std::int64_t columns = width(x);
  if (columns > 0 && height(x) > kLargest / columns) {
    throw Error("input 'X': shape " + x.shape_text() + " gives a map of more than 2^31 - 1 positions");
  }
  check_entries("X", height(x) * columns, geometry_.taps());
}

void RadiusAdaptiveConv::run(const Images& x, void* y, const Run& run) const {
  check(x);
  const std::int64_t positions = height(x) * width(x);
  if (x.images == 0 || positions == 0) return;
  const std::shared_ptr<const DeviceRadiusTables> tables = tables_.get(x.height, x.width, [&] {
    std::vector<std::int32_t> sites(static_cast<std::size_t>(positions));
    std::iota(sites.begin(), sites.end(), 0);
    DeviceRadiusTables result(
        memory_, make_radius_tables({geometry_, all_taps(geometry_), {x.height, x.width}, width(x), sites, nullptr}),
        run.stream);
    cuda::check(perfonnx_cuda_wait(run.stream));  // other runs have other streams
    return result;
  });
  const std::int64_t pixels = x.height * x.width;
  const Scratch rows(run, bytes_of(x.element, {x.images, pixels, x.channels}));
  const Scratch sums(run, bytes_of(x.element, {x.images, positions, outputs()}));
  map_to_rows(x, rows.data(), run);
  layer_.run({rows.data(), x.element, x.images, pixels, x.channels}, positions, *tables, sums.data(), run);
  rows_to_map({sums.data(), x.element, x.images, positions, outputs()}, y, run);
}

}  // namespace perfonnx::cuda
