#include <algorithm>
#include <utility>

#include "cpu/operators.h"

namespace perfonnx {
namespace {

// The input of a step should stay in the second cache beside some of the weights, and so should the sums of a band.
constexpr std::int64_t kStepBytes = 512 * 1024;
constexpr std::int64_t kBandBytes = 512 * 1024;
// Every step reads all weights: with fewer sites than this it would wait for them. Small weights stay in the cache.
constexpr std::int64_t kStepSites = 224;
constexpr std::int64_t kSmallWeightBytes = 256 * 1024;
constexpr std::int64_t kSmallStepSites = 56;
// Bands for each thread, so that none waits long for another.
constexpr std::int64_t kBandsPerThread = 4;
// So much scratch memory may several images take that are computed together.
constexpr std::int64_t kStackBytes = 8 * 1024 * 1024;

// More than any image has lines, and small enough to calculate with.
constexpr std::int64_t kLargestReach = std::int64_t{1} << 33;
constexpr std::int64_t kFloat = sizeof(float);

// As if of stride 1: only there the size of the input follows from that of the map, and only there it is asked for.
SiteGrid grid_of(const TrimmedConv& conv, const Mask& mask, const std::vector<std::int32_t>& sites) {
  const ConvGeometry& geometry = conv.conv().geometry;
  const auto size = [&](int axis, std::int64_t output) {
    return output + (geometry.kernel[axis] - 1) * geometry.dilations[axis] - geometry.pads[axis] -
           geometry.pads[axis + 2];
  };
  return {geometry, conv.taps(), {size(0, mask.height), size(1, mask.width)}, mask.width, sites, nullptr};
}

}  // namespace

MaskedConv::MaskedConv(const ConvConstants& conv, const Mask& mask, Interpolation interpolation, const float* fill,
                       const KernelSet& kernels)
    : MaskedConv(TrimmedConv(conv), mask, std::move(interpolation), fill, kernels) {}

MaskedConv::MaskedConv(const TrimmedConv& trimmed, const Mask& mask, Interpolation interpolation, const float* fill,
                       const KernelSet& kernels)
    : geometry_(trimmed.conv().geometry),
      taps_(trimmed.taps()),
      activation_(trimmed.conv().activation.opened()),
      height_(mask.height),
      width_(mask.width),
      sites_(sites_of_mask(mask.data, mask.height, mask.width)),
      product_(trimmed.conv(), grid_of(trimmed, mask, sites_), nullptr, kernels),
      interpolation_(std::move(interpolation)),
      fill_(static_cast<std::size_t>(outputs()), activation_(0.0F, 0)),
      zero_row_(static_cast<std::size_t>(product_.input_channels()), 0.0F) {
  check_entries("mask", mask.positions(), 1);
  check_entries("mask", static_cast<std::int64_t>(sites_.size()), geometry_.taps());
  if (fill != nullptr) std::copy_n(fill, outputs(), fill_.begin());
  make_bands();
}

void MaskedConv::make_bands() {
  if (height_ == 0 || width_ == 0) return;
  const std::vector<std::int32_t>& sites = sites_;
  const auto count = static_cast<std::int64_t>(sites.size());
  const bool small = static_cast<std::int64_t>(product_.packed().size()) * kFloat <= kSmallWeightBytes;
  const std::int64_t edge = product_.edge();
  const std::int64_t lines = ceil_div(height_, edge);  // rows of the map that are computed together
  const std::int64_t most = std::clamp<std::int64_t>(count / (small ? kSmallStepSites : kStepSites), 1, lines);

  // Lines of the input that some rows of the map read, about; more than 2^53 bytes need not be exact.
  const std::int64_t reach = std::min((geometry_.kernel[0] - 1) * geometry_.dilations[0] + 1, kLargestReach);
  const std::int64_t stride = std::min(geometry_.strides[0], reach);
  const double line = static_cast<double>(width_) * static_cast<double>(geometry_.strides[1]) *
                      static_cast<double>(product_.input_channels() * kFloat);
  const auto step_bytes = [&](std::int64_t rows) { return static_cast<double>((rows - 1) * stride + reach) * line; };
  std::int64_t steps = 1;
  while (steps < most && step_bytes(ceil_div(lines, steps) * edge) > static_cast<double>(kStepBytes)) ++steps;
  const std::int64_t sums = count * outputs() * kFloat;
  const std::int64_t threads = wanted_tasks();
  std::int64_t bands = std::max(ceil_div(sums, kBandBytes), steps > 1 ? kBandsPerThread * threads : 1);
  if (bands > 1) bands = ceil_div(bands, threads) * threads;  // as many for each thread
  if (bands > most) bands = most >= threads ? most / threads * threads : most;
  if (bands == 1 && steps == 1 && count > 0) {
    const double bytes = step_bytes(height_) + static_cast<double>(sums);
    const auto fit = static_cast<std::int64_t>(static_cast<double>(kStackBytes) / bytes);
    images_per_part_ = std::clamp<std::int64_t>(2 * kStepSites / count, 1, std::max<std::int64_t>(fit, 1));
  }

  const auto first_site = [&](std::int64_t row) {
    return std::lower_bound(sites.begin(), sites.end(), row * width_) - sites.begin();
  };
  const auto row_of = [&](std::int64_t line) { return std::min(line * edge, height_); };
  const EvenSplit lines_of_bands{lines, bands};
  std::vector<std::int64_t> band_rows;
  for (std::int64_t i = 0; i < bands; ++i) {
    const std::int64_t begin = lines_of_bands.begin(i);
    const std::int64_t end = lines_of_bands.end(i);
    Band band{};
    band.site_begin = first_site(row_of(begin));
    band.site_end = first_site(row_of(end));
    band.step_begin = steps_.size();
    const EvenSplit step_lines{end - begin, ceil_div(steps, bands)};
    for (std::int64_t j = 0; j < step_lines.parts; ++j) {
      const std::int64_t first = first_site(row_of(begin + step_lines.begin(j)));
      const std::int64_t last = first_site(row_of(begin + step_lines.end(j)));
      if (first == last) continue;
      const auto line_of = [&](std::int64_t site) { return sites[static_cast<std::size_t>(site)] / width_ / edge; };
      steps_.push_back({row_of(line_of(first)), row_of(line_of(last - 1) + 1), first, last});
    }
    band.step_end = steps_.size();
    bands_.push_back(band);
    band_rows.push_back(row_of(begin));
  }
  band_rows.push_back(height_);
  if (interpolation_.copies()) make_runs(band_rows);
}

// The positions of each band: those that copy one of its sites, and those without a site that lie in it.
void MaskedConv::make_runs(const std::vector<std::int64_t>& band_rows) {
  const std::vector<std::int32_t>& sites = sites_;
  std::vector<std::size_t> band_of_row(static_cast<std::size_t>(height_));
  for (std::size_t i = 0; i + 1 < band_rows.size(); ++i) {
    std::fill(band_of_row.begin() + band_rows[i], band_of_row.begin() + band_rows[i + 1], i);
  }
  std::vector<std::vector<std::int32_t>> positions(bands_.size());
  for (std::int64_t q = 0; q < interpolation_.positions; ++q) {
    const std::int32_t site = interpolation_.rows[static_cast<std::size_t>(q)];
    const std::int64_t from = site < 0 ? q : sites[static_cast<std::size_t>(site)];
    positions[band_of_row[static_cast<std::size_t>(from / width_)]].push_back(static_cast<std::int32_t>(q));
  }
  entries_.reserve(static_cast<std::size_t>(interpolation_.positions));
  for (std::size_t i = 0; i < bands_.size(); ++i) {
    Band& band = bands_[i];
    band.run_begin = runs_.size();
    band.entry_begin = entries_.size();
    for (const std::int32_t q : positions[i]) {
      if (runs_.size() > band.run_begin && runs_.back().position + runs_.back().count == q) {
        ++runs_.back().count;
      } else {
        runs_.push_back(Run{q, 1, static_cast<std::int32_t>(entries_.size() - band.entry_begin)});
      }
      entries_.push_back(interpolation_.rows[static_cast<std::size_t>(q)]);
    }
    band.run_end = runs_.size();
    band.entry_end = entries_.size();
  }
  interpolation_.rows = {};  // the bands say the same
}

void MaskedConv::check(const Images& x) const {
  x.check_channels(product_.input_channels());
  const MapSize given = geometry_.output_size({x.height, x.width});
  if (given.height != height_ || given.width != width_) {
    throw Error(x.misfit("gives a map of", given, {height_, width_}));
  }
}

void MaskedConv::run(const Images& x, void* y, Context& context) const {
  check(x);
  if (x.images == 0 || bands_.empty()) return;
  const std::shared_ptr<const RowTable> table = tables_.get(x.height, x.width, [&] {
    return make_row_table({geometry_, taps_, {x.height, x.width}, width_, sites_, nullptr});
  });
  const bool copies = interpolation_.copies();
  const auto all_sums = [&] {
    return checked_product(static_cast<std::size_t>(x.images * table->sites), static_cast<std::size_t>(outputs()));
  };
  Scratch<float> sums(context, copies ? 0 : all_sums());

  const auto bands = static_cast<std::int64_t>(bands_.size());
  const std::int64_t stacks = ceil_div(x.images, images_per_part_);
  const auto run_one = [&](std::int64_t i, Context& inner) {
    const std::int64_t image = i / bands * images_per_part_;
    const Part part{image, std::min(images_per_part_, x.images - image), &bands_[static_cast<std::size_t>(i % bands)]};
    run_part(x, *table, part, copies ? nullptr : sums.data(), y, inner);
  };
  const std::int64_t parts = stacks * bands;
  if (parts >= kBandsPerThread * wanted_tasks() || parts % wanted_tasks() == 0) {
    for_each_alone(context, parts, run_one);
  } else {
    for (std::int64_t i = 0; i < parts; ++i) run_one(i, context);
  }
  if (copies) return;

  ExpandArgs args{};
  args.rows = sums.data();
  args.row_element = Element::kFloat;
  args.images = x.images;
  args.sites = table->sites;
  args.channels = outputs();
  args.interpolation = &interpolation_;
  args.activation = activation_.is_identity() ? nullptr : &activation_;
  expand(args, y, x.element, product_.kernels(), context);
}

// sums: of all sites of all images, where to leave those of this part; null: they go to Y.
void MaskedConv::run_part(const Images& x, const RowTable& table, const Part& part, float* sums, void* y,
                          Context& context) const {
  if (sums != nullptr) {
    multiply(x, table, part, sums + (part.image * table.sites + part.band->site_begin) * outputs(), context);
    return;
  }
  const std::int64_t sites = part.band->site_end - part.band->site_begin;
  Scratch<float> own(context, static_cast<std::size_t>(part.images * sites * outputs()));
  multiply(x, table, part, own.data(), context);
  write(x, part, own.data(), y, context);
}

// sums [images of the part, sites of the band, outputs]
void MaskedConv::multiply(const Images& x, const RowTable& table, const Part& part, float* sums,
                          Context& context) const {
  const std::int64_t plane = x.height * x.width;
  const std::int64_t line = x.width * x.channels;
  const std::int64_t reach = (geometry_.kernel[0] - 1) * geometry_.dilations[0] + 1;
  const auto first_line = [&](const Step& step) {
    return std::clamp<std::int64_t>(step.row_begin * geometry_.strides[0] - geometry_.pads[0], 0, x.height);
  };
  const auto last_line = [&](const Step& step) {
    return std::clamp<std::int64_t>((step.row_end - 1) * geometry_.strides[0] - geometry_.pads[0] + reach,
                                    first_line(step), x.height);
  };
  const Step* const steps = steps_.data() + part.band->step_begin;
  const Step* const end = steps_.data() + part.band->step_end;
  std::int64_t most = 0;
  for (const Step* step = steps; step != end; ++step) most = std::max(most, last_line(*step) - first_line(*step));
  Scratch<float> rows(context, static_cast<std::size_t>(part.images * most * line));
  // Copying and activating commute, and a site is cheaper to activate than its copies.
  const Activation* activation = interpolation_.copies() && !activation_.is_identity() ? &activation_ : nullptr;

  std::int64_t held_begin = 0;  // lines that the last step has left
  std::int64_t held_end = 0;
  for (const Step* step = steps; step != end; ++step) {
    const std::int64_t begin = first_line(*step);
    const std::int64_t stop = last_line(*step);
    std::int64_t kept = 0;
    if (begin >= held_begin && begin < held_end) {
      kept = std::min(held_end, stop) - begin;
      std::copy_n(rows.data() + (begin - held_begin) * line, kept * line, rows.data());
    }
    const MapPart lines{element_at(x.data, x.element, part.image * x.channels * plane),
                        x.element,
                        part.images,
                        x.channels,
                        plane,
                        (begin + kept) * x.width,
                        stop * x.width};
    map_to_rows(lines, rows.data() + kept * line, product_.kernels(), context);
    held_begin = begin;
    held_end = stop;
    const InputRows input{rows.data(), part.images, (stop - begin) * x.width, zero_row_.data(), begin * x.width};
    float* const to = sums + (step->site_begin - part.band->site_begin) * outputs();
    product_.run({input, RowTableView(table, step->site_begin, step->site_end), activation, to, outputs()}, context);
  }
}

void MaskedConv::write(const Images& x, const Part& part, const float* sums, void* y, Context& context) const {
  const Band& band = *part.band;
  const std::int64_t sites = band.site_end - band.site_begin;
  const std::size_t count = band.entry_end - band.entry_begin;
  const std::int64_t positions = height_ * width_;
  Scratch<const float*> rows(context, count);
  for (std::int64_t n = 0; n < part.images; ++n) {
    const float* first = sums + n * sites * outputs();
    for (std::size_t i = 0; i < count; ++i) {
      const std::int32_t site = entries_[band.entry_begin + i];
      rows[i] = site < 0 ? fill_.data() : first + (site - band.site_begin) * outputs();
    }
    const RowsToMap args{rows.data(), runs_.data() + band.run_begin,
                         static_cast<std::int64_t>(band.run_end - band.run_begin), outputs(), positions};
    rows_to_map(args, element_at(y, x.element, (part.image + n) * outputs() * positions), x.element, product_.kernels(),
                context);
  }
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
