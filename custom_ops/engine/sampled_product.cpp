#include "engine/sampled_product.h"

#include <algorithm>
#include <vector>

namespace perfonnx {
namespace {

// Sizes of the blocks; all of them only move work around, none changes a result except by the order of additions.
// A block of weights (one panel, some taps and channels) and the input rows of a block of sites share the second cache.
constexpr std::int64_t kWeightBytes = 192 * 1024;
constexpr std::int64_t kTilesPerBlock = 16;
constexpr std::int64_t kPointerBytes = 96 * 1024;
// With fewer blocks of sites than this the panels are split too, so that a pool of threads stays busy to the end.
constexpr std::int64_t kTasks = 32;

class Product {
 public:
  Product(const InputRows& input, const RowTable& table, const PackedWeights& weights, const Activation* activation,
          float* out, std::int64_t out_stride, const SiteList* list, const AddedRows* added)
      : input_(input),
        table_(table),
        weights_(weights),
        activation_(activation),
        out_(out),
        out_stride_(out_stride),
        list_(list),
        added_(added),
        total_(list != nullptr ? list->count : input.images * table.sites),
        site_tile_(static_cast<std::int64_t>(weights.kernels().site_tile)) {
    const WeightShape& shape = weights.shape();
    const std::int64_t pointers = shape.taps * site_tile_ * static_cast<std::int64_t>(sizeof(float*));
    const std::int64_t tiles = std::clamp(kPointerBytes / pointers, std::int64_t{1}, kTilesPerBlock);
    blocks_ = ceil_div(total_, tiles * site_tile_);
    if (blocks_ < kTasks) {  // smaller blocks share better, down to one tile each
      blocks_ = std::min(kTasks, ceil_div(total_, site_tile_));
      // A block of few tiles reads every weight for little work: keep four, and split the panels instead.
      blocks_ = std::max(std::min(blocks_, ceil_div(total_, 4 * site_tile_)), ceil_div(total_, tiles * site_tile_));
    }
    const std::int64_t all_panels = shape.groups * weights.panels_per_group();
    panel_parts_ = weights.depthwise() ? 1 : std::min(all_panels, blocks_ < kTasks ? ceil_div(kTasks, blocks_) : 1);

    // Split the sum over taps and channels so that the weights of a step stay in cache while the sites pass.
    const std::int64_t width = weights.panel_width();
    const std::int64_t bytes_per_tap_channel = width * static_cast<std::int64_t>(sizeof(float));
    const std::int64_t room = std::max<std::int64_t>(kWeightBytes / bytes_per_tap_channel, 1);
    if (shape.taps * shape.inputs > room) {
      const std::int64_t channels =
          std::clamp<std::int64_t>(room / shape.taps, std::min<std::int64_t>(64, shape.inputs), shape.inputs);
      channel_parts_ = ceil_div(shape.inputs, channels);
      tap_parts_ = ceil_div(shape.taps, std::max<std::int64_t>(room / channels, 1));
    }
  }

  std::int64_t tasks() const noexcept { return blocks_ * panel_parts_; }

  void run(std::int64_t task) const {
    const EvenSplit sites{total_, blocks_};
    const std::int64_t block = task / panel_parts_;
    const std::int64_t first = sites.begin(block);
    const std::int64_t count = sites.end(block) - first;
    const EvenSplit tiles{count, ceil_div(count, site_tile_)};
    const std::int64_t taps = weights_.shape().taps;
    std::vector<const float*> pointers(static_cast<std::size_t>(count * (taps + (added_ != nullptr ? 1 : 0))));
    for (std::int64_t i = 0; i < tiles.parts; ++i) {
      fill_pointers(first + tiles.begin(i), tiles.end(i) - tiles.begin(i), pointers.data() + tiles.begin(i) * taps);
    }
    const float** added = nullptr;
    if (added_ != nullptr) {
      added = pointers.data() + count * taps;
      for (std::int64_t p = 0; p < count; ++p) added[p] = added_row(first + p);
    }
    if (weights_.depthwise()) {
      run_depthwise(first, tiles, pointers.data(), added);
    } else {
      const EvenSplit panels{weights_.shape().groups * weights_.panels_per_group(), panel_parts_};
      const std::int64_t part = task % panel_parts_;
      run_panels(first, tiles, pointers.data(), added, panels.begin(part), panels.end(part));
    }
  }

 private:
  // Image and site of an output row, as image * sites + site.
  std::int64_t site_number(std::int64_t row) const { return list_ != nullptr ? list_->numbers[row] : row; }

  const float* added_row(std::int64_t row) const {
    const std::int64_t number = site_number(row);
    const std::int64_t site = number % table_.sites;
    const std::int64_t from = added_->source != nullptr ? added_->source[site] : site;
    if (from < 0) return added_->zero_row;
    const std::int64_t image = added_->images == 1 ? 0 : number / table_.sites;
    return added_->data + (image * added_->rows_per_image + from) * weights_.shape().outputs;
  }

  // [taps][count] pointers to the rows that a tile of sites reads.
  void fill_pointers(std::int64_t first, std::int64_t count, const float** pointers) const {
    const std::int64_t channels = weights_.input_channels();
    for (std::int64_t p = 0; p < count; ++p) {
      const std::int64_t number = site_number(first + p);
      const float* image = input_.data + number / table_.sites * input_.rows_per_image * channels;
      const std::int32_t* rows = table_.rows.data() + number % table_.sites * table_.taps;
      for (std::int64_t t = 0; t < table_.taps; ++t) {
        pointers[t * count + p] = rows[t] < 0 ? input_.zero_row : image + rows[t] * channels;
      }
    }
  }

  void run_panels(std::int64_t first, const EvenSplit& tiles, const float* const* pointers, const float* const* added,
                  std::int64_t panel_begin, std::int64_t panel_end) const {
    const WeightShape& shape = weights_.shape();
    const KernelSet& kernels = weights_.kernels();
    const std::int64_t width = weights_.panel_width();
    const EvenSplit tap_split{shape.taps, tap_parts_};
    const EvenSplit channel_split{shape.inputs, channel_parts_};
    const std::int64_t steps = tap_parts_ * channel_parts_;
    TileArgs args{};
    args.out_stride = static_cast<std::size_t>(out_stride_);
    args.tap_stride = static_cast<std::size_t>(shape.inputs * width);
    if (activation_ != nullptr) {
      args.negative_slope = activation_->negative_slope;
      args.clip_min = activation_->clip_min;
      args.clip_max = activation_->clip_max;
    }
    for (std::int64_t step = 0; step < steps; ++step) {
      const std::int64_t tap = tap_split.begin(step / channel_parts_);
      const std::int64_t channel = channel_split.begin(step % channel_parts_);
      args.taps = static_cast<std::size_t>(tap_split.end(step / channel_parts_) - tap);
      args.inputs = static_cast<std::size_t>(channel_split.end(step % channel_parts_) - channel);
      args.accumulate = step > 0 ? 1 : 0;
      args.activate = activation_ != nullptr && step + 1 == steps ? 1 : 0;
      for (std::int64_t panel = panel_begin; panel < panel_end; ++panel) {
        const std::int64_t group = panel / weights_.panels_per_group();
        const std::int64_t in_group = panel % weights_.panels_per_group();
        const std::int64_t channels = std::min(width, weights_.outputs_per_group() - in_group * width);
        const std::int64_t vectors = ceil_div(channels, static_cast<std::int64_t>(kernels.vector));
        args.channels = static_cast<std::size_t>(channels);
        args.offset = static_cast<std::size_t>(group * shape.inputs + channel);
        args.panel = weights_.panel(group, in_group) + (tap * shape.inputs + channel) * width;
        args.bias = weights_.bias(group, in_group);
        const std::int64_t column = group * weights_.outputs_per_group() + in_group * width;
        args.added_offset = static_cast<std::size_t>(column);
        for (std::int64_t i = 0; i < tiles.parts; ++i) {
          const std::int64_t begin = tiles.begin(i);
          const std::int64_t count = tiles.end(i) - begin;
          args.rows = pointers + begin * shape.taps + tap * count;
          args.out = out_ + (first + begin) * out_stride_ + column;
          args.added = added != nullptr && step + 1 == steps ? added + begin : nullptr;
          kernels.tile[vectors - 1][count - 1](&args);
        }
      }
    }
  }

  void run_depthwise(std::int64_t first, const EvenSplit& tiles, const float* const* pointers,
                     const float* const* added) const {
    const WeightShape& shape = weights_.shape();
    DepthwiseArgs args{};
    args.taps = static_cast<std::size_t>(shape.taps);
    args.weights = weights_.panel(0, 0);
    args.weight_stride = static_cast<std::size_t>(weights_.stride());
    args.bias = weights_.bias(0, 0);
    args.out_stride = static_cast<std::size_t>(out_stride_);
    args.channels = static_cast<std::size_t>(shape.outputs);
    args.activate = activation_ != nullptr ? 1 : 0;
    if (activation_ != nullptr) {
      args.negative_slope = activation_->negative_slope;
      args.clip_min = activation_->clip_min;
      args.clip_max = activation_->clip_max;
    }
    for (std::int64_t i = 0; i < tiles.parts; ++i) {
      const std::int64_t begin = tiles.begin(i);
      args.sites = static_cast<std::size_t>(tiles.end(i) - begin);
      args.rows = pointers + begin * shape.taps;
      args.out = out_ + (first + begin) * out_stride_;
      args.added = added != nullptr ? added + begin : nullptr;
      weights_.kernels().depthwise(&args);
    }
  }

  const InputRows& input_;
  const RowTable& table_;
  const PackedWeights& weights_;
  const Activation* activation_;
  float* out_;
  std::int64_t out_stride_;
  const SiteList* list_;
  const AddedRows* added_;
  std::int64_t total_;
  std::int64_t site_tile_;
  std::int64_t blocks_ = 0;
  std::int64_t panel_parts_ = 1;
  std::int64_t channel_parts_ = 1;
  std::int64_t tap_parts_ = 1;
};

}  // namespace

void sampled_product(const InputRows& input, const RowTable& table, const PackedWeights& weights,
                     const Activation* activation, float* out, std::int64_t out_stride, Context& context,
                     const SiteList* list, const AddedRows* added) {
  const std::int64_t total = list != nullptr ? list->count : input.images * table.sites;
  if (total == 0) return;
  const Product product(input, table, weights, activation, out, out_stride, list, added);
  context.parallel.run(static_cast<std::size_t>(product.tasks()),
                       [&](std::size_t task) { product.run(static_cast<std::int64_t>(task)); });
}

}  // namespace perfonnx
