// Columns of the weights, a tap and a channel, that are zero for a panel of outputs are left out: each panel has a list
// of those that it reads, of inputs that were copied together. For weights that were made sparse in blocks.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <vector>

#include "cpu/act.h"
#include "cpu/product/choosing.h"
#include "cpu/product/gather.h"
#include "cpu/product/shares.h"

namespace perfonnx {
namespace {

// What it takes to copy an input of a site, and a tap beside its inputs, in multiplies of the innermost loop.
constexpr double kCopy = 4;
constexpr double kCopyTap = 150;

// How the outputs of a layer fall into panels, each of one group.
struct ListedPanels {
  explicit ListedPanels(const ProductLayer& layer)
      : width(std::min<std::int64_t>(static_cast<std::int64_t>(layer.kernels.f32->panel), kListedPanel)),
        outputs(layer.shape.outputs_per_group()),
        per_group(ceil_div(outputs, width)),
        count(layer.shape.groups * per_group) {}

  std::int64_t group(std::int64_t panel) const noexcept { return panel / per_group; }
  std::int64_t first_output(std::int64_t panel) const noexcept {
    return group(panel) * outputs + panel % per_group * width;
  }
  std::int64_t outputs_of(std::int64_t panel) const noexcept {
    return std::min(width, outputs - panel % per_group * width);
  }

  std::int64_t width;
  std::int64_t outputs;  // of a group
  std::int64_t per_group;
  std::int64_t count;
};

// Calls visit(panel, column, weights) for the columns (tap * inputs + channel) of each panel that have a weight other
// than zero, in their order. The weights of its outputs lie taps * inputs apart.
template <typename Visit>
void for_each_column(const ProductLayer& layer, const ListedPanels& panels, const Visit& visit) {
  const std::int64_t columns = layer.shape.taps * layer.shape.inputs;
  for (std::int64_t panel = 0; panel < panels.count; ++panel) {
    const float* const weights = layer.weights + panels.first_output(panel) * columns;
    const std::int64_t outputs = panels.outputs_of(panel);
    std::int64_t column = 0;
    for (std::int64_t tap = 0; tap < layer.shape.taps; ++tap) {
      for (std::int64_t channel = 0; channel < layer.shape.inputs; ++channel, ++column) {
        const float* const top = weights + channel * layer.shape.taps + tap;
        bool weighs = false;
        for (std::int64_t j = 0; j < outputs && !weighs; ++j) weighs = top[j * columns] != 0.0F;
        if (weighs) visit(panel, column, top);
      }
    }
  }
}

class Columns final : public PreparedProduct {
 public:
  explicit Columns(const ProductLayer& layer)
      : shape_(layer.shape),
        kernels_(*layer.kernels.f32),
        panels_(layer),
        slices_(ceil_div(shape_.taps * shape_.inputs, kGatherDepth)),
        begins_(static_cast<std::size_t>(panels_.count * slices_ + 1), 0),
        bias_(static_cast<std::size_t>(panels_.count * panels_.width)) {
    struct Column {
      std::int64_t panel;
      const float* weights;
    };
    std::vector<Column> columns;
    for_each_column(layer, panels_, [&](std::int64_t panel, std::int64_t column, const float* weights) {
      columns.push_back({panel, weights});
      listed_.push_back(static_cast<std::uint16_t>(column % kGatherDepth));
      ++begins_[static_cast<std::size_t>(panel * slices_ + column / kGatherDepth + 1)];
    });
    std::partial_sum(begins_.begin(), begins_.end(), begins_.begin());
    const auto width = static_cast<std::size_t>(panels_.width);
    weights_ = AlignedArray<float>(checked_product(columns.size(), width));
    std::fill_n(weights_.data(), weights_.size(), 0.0F);
    float* to = weights_.data();
    for (const Column& column : columns) {
      const std::int64_t outputs = panels_.outputs_of(column.panel);
      for (std::int64_t j = 0; j < outputs; ++j) to[j] = column.weights[j * shape_.taps * shape_.inputs];
      to += width;
    }
    std::fill_n(bias_.data(), bias_.size(), 0.0F);
    for (std::int64_t panel = 0; panel < panels_.count && layer.bias != nullptr; ++panel) {
      std::copy_n(layer.bias + panels_.first_output(panel), panels_.outputs_of(panel),
                  bias_.data() + panel * panels_.width);
    }
  }

  void run(const ProductRun& run, Context& context) const override {
    const auto site_tile = static_cast<std::int64_t>(kernels_.site_tile);
    const Shares shares(run.total(), site_tile, tiles_gathered(shape_, site_tile), panels_.count);
    shares.for_each_task(context, [&](const Shares::Task& task) { run_task(run, task, site_tile, context); });
  }
  const AlignedArray<float>& packed() const noexcept override { return weights_; }

 private:
  void run_task(const ProductRun& run, const Shares::Task& task, std::int64_t site_tile, Context& context) const {
    const Sites sites(run, shape_);
    const EvenSplit tiles{task.count, ceil_div(task.count, site_tile)};
    const std::vector<const float*> added = sites.added_rows(task.first, task.count);
    Scratch<float> gathered(context, static_cast<std::size_t>(tiles.total * kGatherStride));
    TileArgs args{};
    args.out_stride = static_cast<std::size_t>(run.out_stride);
    const Act act = act_of(run.activation);
    for (std::int64_t slice = 0; slice < slices_; ++slice) {
      const bool last = slice + 1 == slices_;
      const std::int64_t begin = slice * kGatherDepth;
      const std::int64_t end = std::min<std::int64_t>(begin + kGatherDepth, shape_.taps * shape_.inputs);
      args.accumulate = slice > 0 ? 1 : 0;
      args.act = last ? act : Act{};
      std::int64_t group = -1;
      for (std::int64_t panel = task.panel_begin; panel < task.panel_end; ++panel) {
        const auto part = begins_.begin() + panel * slices_ + slice;
        if (part[0] == part[1] && slice > 0 && !last) continue;
        if (panels_.group(panel) != group) {
          group = panels_.group(panel);
          gather(run, shape_, sites, {task.first, task.count, group, begin, end}, gathered.data());
        }
        const std::int64_t outputs = panels_.outputs_of(panel);
        args.listed = listed_.data() + part[0];
        args.inputs = static_cast<std::size_t>(part[1] - part[0]);
        args.panel = weights_.data() + part[0] * panels_.width;
        args.bias = bias_.data() + panel * panels_.width;
        args.channels = static_cast<std::size_t>(outputs);
        args.column = static_cast<std::size_t>(panels_.first_output(panel));
        const auto vectors = ceil_div(outputs, static_cast<std::int64_t>(kernels_.vector));
        for (std::int64_t i = 0; i < tiles.parts; ++i) {
          const std::int64_t site = tiles.begin(i);
          args.gathered = gathered.data() + site * kGatherStride;
          args.out = run.out + (task.first + site) * run.out_stride + panels_.first_output(panel);
          args.added = !added.empty() && last ? added.data() + site : nullptr;
          kernels_.listed[vectors - 1][tiles.end(i) - site - 1](&args);
        }
      }
    }
  }

  WeightShape shape_;
  const F32Kernels& kernels_;
  ListedPanels panels_;
  std::int64_t slices_;                // of kGatherDepth columns
  std::vector<std::int64_t> begins_;   // [panels][slices] and the end: the first of its columns
  std::vector<std::uint16_t> listed_;  // [columns]: their places in the slice
  AlignedArray<float> weights_;        // [columns][panel width]
  AlignedArray<float> bias_;           // [panels][panel width]
};

class ColumnsImplementation final : public Implementation {
 public:
  const char* name() const noexcept override { return "columns"; }
  std::string obstacle(const ProductLayer& layer) const override {
    return layer.weights != nullptr ? "" : "its weights are not known yet";
  }
  Offer offer(const ProductLayer& layer) const override {
    const ListedPanels panels(layer);
    double columns = 0;  // of all panels
    for_each_column(layer, panels, [&](std::int64_t, std::int64_t, const float*) { ++columns; });
    const auto width = static_cast<double>(panels.width);
    const double copying = static_cast<double>(layer.shape.taps) * (Estimate(layer).channels() * kCopy + kCopyTap);
    const double sites = layer.grid != nullptr ? static_cast<double>(layer.grid->sites.size()) : 1;
    const double reading = sites > 0 ? Estimate::read(columns * width) : 0;
    return {Estimate::together(sites * (columns * width + copying), reading),
            [&layer] { return std::make_unique<const Columns>(layer); }};
  }
};

const ColumnsImplementation kImplementation;

}  // namespace

const Implementation& kColumns = kImplementation;

}  // namespace perfonnx
