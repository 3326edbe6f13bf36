// Weights of taps that read the same row, added up beforehand: behind nearest interpolation and nearest resizes the
// sites of a regular grid fall into few classes, which read 1 to 6 rows instead of 9. Exact up to rounding.
#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "core/merged_taps.h"
#include "cpu/product/choosing.h"
#include "cpu/product/product.h"

namespace perfonnx {
namespace {

// All weights together are at most so many times those of the layer, as many as Winograd's larger tiles take.
constexpr std::int64_t kMostWeights = 4;
// What it takes to start with a class, and to move an output to its place, in multiplies of the innermost loop.
constexpr double kClass = 50000;
constexpr double kMove = 6;

// The classes that sites of a layer are computed by.
struct Classes {
  RowTable table;  // of the layer
  std::vector<TapClass> classes;
  double cost = 0;  // of an image
};

// Frequent classes have sums of their own, the sites of others theirs where these serve them, or else plain weights.
Classes choose_classes(const ProductLayer& layer) {
  Classes chosen{make_row_table(*layer.grid, all_taps(layer.grid->geometry)), {}, 0};
  const std::int64_t taps = layer.shape.taps;
  const Estimate estimate(layer);
  std::vector<TapClass> found = find_tap_classes(chosen.table);
  const auto merged = [&](const TapClass& each) {
    return static_cast<std::int64_t>(each.sites.size()) * (taps - each.count);
  };
  std::stable_sort(found.begin(), found.end(),
                   [&](const TapClass& a, const TapClass& b) { return merged(a) > merged(b); });
  std::vector<TapClass>& classes = chosen.classes;
  std::int64_t weights = taps;
  for (const TapClass& each : found) {
    const double gain = static_cast<double>(merged(each)) * estimate.site(1);
    if (gain <= Estimate::read(static_cast<double>(each.count) * estimate.weights()) + kClass) continue;
    if (weights + each.count > kMostWeights * taps) continue;
    weights += each.count;
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
  double multiplies = 0;
  double read = 0;
  for (TapClass& each : classes) {
    std::sort(each.sites.begin(), each.sites.end());
    const auto sites = static_cast<double>(each.sites.size());
    multiplies += sites * estimate.site(static_cast<double>(each.count));
    if (classes.size() > 1) multiplies += kClass + kMove * sites * estimate.outputs();
    read += static_cast<double>(each.count) * estimate.weights();
  }
  chosen.cost = Estimate::together(multiplies, Estimate::read(read));
  return chosen;
}

class Merged final : public PreparedProduct {
 public:
  explicit Merged(const ProductLayer& layer) : shape_(layer.shape) {
    Classes chosen = choose_classes(layer);
    for (TapClass& each : chosen.classes) {
      const std::vector<float> weights = merged_weights(layer.weights, shape_.outputs * shape_.inputs, each);
      const ProductLayer own{weights.data(),
                             layer.bias,
                             {shape_.outputs, shape_.inputs, each.count, shape_.groups},
                             layer.kernels,
                             nullptr};
      RowTable table = merged_table(chosen.table, each);
      const Implementation& plain = kDirect.drawback(own).empty() ? kDirect : kGathered;
      classes_.push_back({std::move(each.sites), std::move(table), plain.prepare(own)});
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
    constexpr std::int64_t kSites = 448;  // of each
    const std::int64_t most = kSites * static_cast<std::int64_t>(classes_.size());
    const std::int64_t sites = run.table.sites;
    const std::int64_t threads = wanted_tasks();
    const std::int64_t wanted = ceil_div(run.input.images * sites, most);
    const std::int64_t parts = wanted > 1 ? ceil_div(wanted, threads) * threads : 1;
    const EvenSplit images{run.input.images, std::min(parts, run.input.images)};
    const EvenSplit spans{sites, std::min(ceil_div(parts, images.parts), sites)};
    const auto run_one = [&](std::int64_t i, Context& inside) {
      const std::int64_t image = i / spans.parts;
      const std::int64_t span = i % spans.parts;
      run_part(run, {images.begin(image), images.end(image), spans.begin(span), spans.end(span)}, inside);
    };
    if (parts > 1) {
      for_each_alone(context, images.parts * spans.parts, run_one);
    } else {
      run_one(0, context);
    }
  }
  const AlignedArray<float>& packed() const noexcept override { return classes_.front().product->packed(); }

 private:
  struct Class {
    std::vector<std::int32_t> sites;  // ascending
    RowTable table;                   // of these
    std::unique_ptr<const PreparedProduct> product;
  };
  // Some sites of some images.
  struct Part {
    std::int64_t image_begin;
    std::int64_t image_end;
    std::int64_t site_begin;
    std::int64_t site_end;
  };

  void run_part(const ProductRun& run, const Part& part, Context& context) const {
    const std::int64_t images = part.image_end - part.image_begin;
    const InputRows input{run.input.data + part.image_begin * run.input.rows_per_image * shape_.input_channels(),
                          images, run.input.rows_per_image, run.input.zero_row, run.input.first_row};
    float* const out = run.out + part.image_begin * run.table.sites * run.out_stride;
    for (const Class& each : classes_) {
      const auto begin = std::lower_bound(each.sites.begin(), each.sites.end(), part.site_begin);
      const auto end = std::lower_bound(begin, each.sites.end(), part.site_end);
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
    if (layer.grid == nullptr) return "its sites are not known beforehand";
    if (layer.grid->source == nullptr) return "every position has a row of its own";
    if (layer.shape.taps > kMostMergedTaps)
      return "its kernel has more than " + std::to_string(kMostMergedTaps) + " taps";
    return {};
  }
  std::string drawback(const ProductLayer& layer) const override {
    if (const std::string exact = exactness_obstacle(); !exact.empty()) return exact;
    if (layer.largest_tile == 0) return "its attribute largest_tile is 0";
    const double own = cost(layer);
    for (const Implementation* other : implementations()) {
      if (other == this || !other->obstacle(layer).empty() || !other->drawback(layer).empty()) continue;
      return own < other->cost(layer) ? "" : "too few taps of its sites read the same rows";
    }
    return {};
  }
  double cost(const ProductLayer& layer) const override { return choose_classes(layer).cost; }
  std::unique_ptr<const PreparedProduct> prepare(const ProductLayer& layer) const override {
    return std::make_unique<const Merged>(layer);
  }
};

const MergedImplementation kImplementation;

}  // namespace

const Implementation& kMerged = kImplementation;

}  // namespace perfonnx
