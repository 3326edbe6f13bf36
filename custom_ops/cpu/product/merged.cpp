// Weights of taps that read the same row, added up beforehand: behind nearest interpolation and nearest resizes the
// sites of a regular grid fall into few classes, which read 1 to 6 rows instead of 9. A class whose sites are a grid of
// their own is a layer of a smaller kernel, often of 2x2, which has tiles of Winograd's algorithm. Exact up to
// rounding.
#include <algorithm>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/merged_taps.h"
#include "cpu/product/choosing.h"
#include "cpu/product/product.h"

namespace perfonnx {
namespace {

// All classes together have at most so many times the taps of the layer, and all weights are at most as many as those
// of Winograd's larger tiles, or as the last cache holds.
constexpr std::int64_t kMostTaps = 4;
constexpr std::int64_t kMostWeights = 4;
constexpr std::int64_t kFewWeights = 4 * 1024 * 1024;
// What it takes to start with a class, and to move an output to its place, in multiplies of the innermost loop.
constexpr double kClass = 50000;
constexpr double kMove = 6;

// Frequent classes have sums of their own, the sites of others theirs where these serve them, or else plain weights.
std::vector<TapClass> choose_classes(const ProductLayer& layer, const RowTable& table) {
  const std::int64_t taps = layer.shape.taps;
  const Estimate estimate(layer);
  std::vector<TapClass> found = find_tap_classes(table);
  const auto merged = [&](const TapClass& each) {
    return static_cast<std::int64_t>(each.sites.size()) * (taps - each.count);
  };
  std::stable_sort(found.begin(), found.end(),
                   [&](const TapClass& a, const TapClass& b) { return merged(a) > merged(b); });
  std::vector<TapClass> classes;
  std::int64_t all_taps = taps;
  for (const TapClass& each : found) {
    const double gain = static_cast<double>(merged(each)) * estimate.site(1);
    if (gain <= Estimate::read(static_cast<double>(each.count) * estimate.weights()) + kClass) continue;
    if (all_taps + each.count > kMostTaps * taps) continue;
    all_taps += each.count;
    classes.push_back({each.groups, each.count, {}});
  }
  classes.push_back(unmerged_taps(taps));
  std::stable_sort(classes.begin(), classes.end(),
                   [](const TapClass& a, const TapClass& b) { return a.count < b.count; });
  for (const TapClass& each : found) {
    TapClass& serving =
        *std::find_if(classes.begin(), classes.end(), [&](const TapClass& some) { return some.serves(each); });
    serving.sites.insert(serving.sites.end(), each.sites.begin(), each.sites.end());
  }
  classes.erase(std::remove_if(classes.begin(), classes.end(), [](const TapClass& each) { return each.sites.empty(); }),
                classes.end());
  for (TapClass& each : classes) std::sort(each.sites.begin(), each.sites.end());
  return classes;
}

// A class as a layer of its own, and what computes it. Stays where it is: its parts refer to each other.
struct Way {
  Way(const ProductLayer& whole, std::int64_t tile, TapClass of)
      : sites(std::move(of)),
        table(merged_table(*whole.table, sites)),
        own(find_own_grid(*whole.grid, sites.sites, table)),
        grid(own ? std::optional<SiteGrid>(own->grid()) : std::nullopt),
        layer{nullptr,
              whole.bias,
              {whole.shape.outputs, whole.shape.inputs, sites.count, whole.shape.groups},
              whole.kernels,
              grid ? &*grid : nullptr,
              nullptr,
              tile},
        choice(choose(layer)) {}
  Way(const Way&) = delete;
  Way& operator=(const Way&) = delete;

  TapClass sites;
  RowTable table;
  std::optional<OwnGrid> own;
  std::optional<SiteGrid> grid;
  ProductLayer layer;
  Choice choice;
};

// Tiles multiply the weights of 2x2 kernels by 9, or by 4.
std::int64_t largest_tile(const ProductLayer& layer, const std::vector<TapClass>& classes) {
  const std::int64_t pairs = layer.shape.outputs * layer.shape.inputs;
  const std::int64_t most = std::max(kMostWeights * layer.shape.taps * pairs, kFewWeights);
  std::int64_t taps = 0;
  for (const TapClass& each : classes) taps += each.count;
  const std::int64_t allowed = taps * pairs <= most / 9 ? kLargestTile : taps * pairs <= most / 4 ? 3 : 0;
  return std::min(layer.largest_tile, allowed);
}

class Ways {
 public:
  Ways(const ProductLayer& layer, std::vector<TapClass> classes) {
    const std::int64_t tile = largest_tile(layer, classes);
    double weights = 0;
    double reading = 0;  // of each class by itself
    for (TapClass& each : classes) {
      const Way& way = all.emplace_back(layer, tile, std::move(each));
      const auto sites = static_cast<std::int64_t>(way.sites.sites.size());
      cost += way.grid ? way.choice.offer.cost : Estimate(way.layer).directly(sites);
      const double here = static_cast<double>(way.sites.count) * Estimate(way.layer).weights();
      weights += here;
      reading += Estimate::read(here);
      if (classes.size() > 1) cost += kClass + kMove * static_cast<double>(sites * layer.shape.outputs);
    }
    cost += Estimate::kOverlap * (Estimate::read(weights) - reading);
  }

  std::deque<Way> all;
  double cost = 0;  // of an image
};

class Merged final : public PreparedProduct {
 public:
  // Takes the ways' tables.
  Merged(const ProductLayer& layer, Ways* ways) : shape_(layer.shape) {
    for (Way& way : ways->all) {
      const std::vector<float> weights = merged_weights(layer.weights, shape_.outputs * shape_.inputs, way.sites);
      way.layer.weights = weights.data();
      std::unique_ptr<const PreparedProduct> product = way.choice.offer.prepare();
      classes_.push_back({std::move(way.sites.sites), std::move(way.table), std::move(way.own), std::move(product)});
    }
  }

  void run(const ProductRun& run, Context& context) const override {
    if (run.input.images == 0 || classes_.empty()) return;
    if (classes_.size() == 1) {  // of all sites, in their order
      const Class& all = classes_.front();
      all.product->run({run.input, all.table, run.activation, run.out, run.out_stride, nullptr, run.added}, context);
      return;
    }
    // Neighbouring sites of all classes together, since they read and write the same memory.
    constexpr std::int64_t kSites = 700;  // of each
    const std::int64_t most = kSites * static_cast<std::int64_t>(classes_.size());
    const std::int64_t threads = wanted_tasks();
    const std::int64_t wanted = ceil_div(run.input.images * run.table.sites, most);
    const std::int64_t parts = wanted > 1 ? ceil_div(wanted, threads) * threads : 1;
    const EvenSplit images{run.input.images, std::min(parts, run.input.images)};
    const std::int64_t spans = std::min(ceil_div(parts, images.parts), run.table.sites);
    const auto run_one = [&](std::int64_t i, Context& inside) {
      const std::int64_t image = i / spans;
      run_part(run, {images.begin(image), images.end(image), i % spans, spans}, inside);
    };
    if (parts > 1) {
      for_each_alone(context, images.parts * spans, run_one);
    } else {
      run_one(0, context);
    }
  }
  const AlignedArray<float>& packed() const noexcept override { return classes_.front().product->packed(); }

 private:
  struct Class {
    std::vector<std::int32_t> sites;  // ascending
    RowTable table;                   // of these
    std::optional<OwnGrid> own;
    std::unique_ptr<const PreparedProduct> product;

    // The first site of a span, one of `spans`. Rows of tiles are not cut, nor rows of the grid: tiles of one row lie
    // in them.
    std::int64_t begin(std::int64_t span, std::int64_t spans) const {
      if (!own) return EvenSplit{table.sites, spans}.begin(span);
      const std::int64_t edge = product->edge();
      const std::int64_t rows = own->input.height - own->geometry.kernel[0] + 1;
      const std::int64_t row = EvenSplit{ceil_div(rows, edge), spans}.begin(span) * edge;
      return std::lower_bound(own->sites.begin(), own->sites.end(), row * own->output_width) - own->sites.begin();
    }
  };
  // Some sites of some images.
  struct Part {
    std::int64_t image_begin;
    std::int64_t image_end;
    std::int64_t span;
    std::int64_t spans;
  };

  void run_part(const ProductRun& run, const Part& part, Context& context) const {
    const std::int64_t images = part.image_end - part.image_begin;
    const InputRows input{run.input.data + part.image_begin * run.input.rows_per_image * shape_.input_channels(),
                          images, run.input.rows_per_image, run.input.zero_row, run.input.first_row};
    float* const out = run.out + part.image_begin * run.table.sites * run.out_stride;
    for (const Class& each : classes_) {
      const auto begin = each.sites.begin() + each.begin(part.span, part.spans);
      const auto end = each.sites.begin() + each.begin(part.span + 1, part.spans);
      const std::int64_t count = end - begin;
      if (count == 0) continue;
      const RowTableView table(each.table, begin - each.sites.begin(), end - each.sites.begin());
      const std::vector<std::int32_t> source =
          run.added != nullptr ? added_rows(*run.added, begin, end) : std::vector<std::int32_t>{};
      AddedRows added{};
      if (run.added != nullptr) {
        added = *run.added;
        added.source = source.data();
        if (added.images > 1) {
          added.data += part.image_begin * added.rows_per_image * shape_.outputs;
          added.images = images;
        }
      }
      const AddedRows* const adds = run.added != nullptr ? &added : nullptr;
      if (images == 1 && end[-1] - *begin == count - 1) {
        each.product->run({input, table, run.activation, out + *begin * run.out_stride, run.out_stride, nullptr, adds},
                          context);
        continue;
      }
      Scratch<float> rows(
          context, checked_product(static_cast<std::size_t>(images * count), static_cast<std::size_t>(shape_.outputs)));
      each.product->run({input, table, run.activation, rows.data(), shape_.outputs, nullptr, adds}, context);
      const float* from = rows.data();
      for (std::int64_t image = 0; image < images; ++image) {
        for (auto site = begin; site != end; ++site, from += shape_.outputs) {
          std::copy_n(from, shape_.outputs, out + (image * run.table.sites + *site) * run.out_stride);
        }
      }
    }
  }

  // What is added to some sites, by their numbers.
  using Site = std::vector<std::int32_t>::const_iterator;
  static std::vector<std::int32_t> added_rows(const AddedRows& added, Site begin, Site end) {
    std::vector<std::int32_t> rows(begin, end);
    if (added.source != nullptr) {
      for (std::int32_t& row : rows) row = added.source[row];
    }
    return rows;
  }

  WeightShape shape_;
  std::vector<Class> classes_;
};

class MergedImplementation final : public Implementation {
 public:
  const char* name() const noexcept override { return "merged"; }
  std::string obstacle(const ProductLayer& layer) const override {
    if (layer.table == nullptr) return "its sites, or the rows that they read, are not known beforehand";
    if (layer.grid->source == nullptr) return "every position has a row of its own";
    if (layer.shape.taps > kMostMergedTaps)
      return "its kernel has more than " + std::to_string(kMostMergedTaps) + " taps";
    return {};
  }
  std::string drawback(const ProductLayer& layer) const override {
    if (const std::string exact = exactness_obstacle(); !exact.empty()) return exact;
    if (layer.largest_tile == 0) return "its attribute largest_tile is 0";
    if (layer.shape.depthwise()) return "its groups are one channel in and one out each";
    return {};
  }
  Offer offer(const ProductLayer& layer) const override {
    const std::vector<TapClass> classes = choose_classes(layer, *layer.table);
    if (classes.size() == 1 && classes.front().count == layer.shape.taps) {  // there is nothing to merge
      return {Estimate(layer).directly(layer.table->sites), [&layer, classes] {
                Ways ways(layer, classes);
                return std::make_unique<const Merged>(layer, &ways);
              }};
    }
    const auto ways = std::make_shared<Ways>(layer, classes);
    return {ways->cost, [&layer, ways] { return std::make_unique<const Merged>(layer, ways.get()); }};
  }
};

const MergedImplementation kImplementation;

}  // namespace

const Implementation& kMerged = kImplementation;

}  // namespace perfonnx
