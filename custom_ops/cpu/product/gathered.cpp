// Inputs copied together first, a slice of the sum over taps and channels at a time. Computes every layer.
#include <algorithm>

#include "cpu/product/choosing.h"
#include "cpu/product/gather.h"
#include "cpu/product/panels.h"
#include "cpu/product/shares.h"

namespace perfonnx {
namespace {

class Gathered final : public PreparedProduct {
 public:
  explicit Gathered(const ProductLayer& layer) : weights_(layer) {}

  void run(const ProductRun& run, Context& context) const override {
    const auto site_tile = static_cast<std::int64_t>(weights_.kernels().site_tile);
    const Shares shares(run.total(), site_tile, tiles_gathered(weights_.shape(), site_tile), panel_count(weights_));
    shares.for_each_task(context, [&](const Shares::Task& task) { run_task(run, task, site_tile, context); });
  }
  const AlignedArray<float>& packed() const noexcept override { return weights_.data(); }

 private:
  void run_task(const ProductRun& run, const Shares::Task& task, std::int64_t site_tile, Context& context) const {
    const WeightShape& shape = weights_.shape();
    const PanelRun panels(run, weights_);
    const std::int64_t first = task.first;
    const EvenSplit tiles{task.count, ceil_div(task.count, site_tile)};
    const std::vector<const float*> added = panels.sites().added_rows(first, task.count);
    const EvenSplit slices{shape.taps * shape.inputs, ceil_div(shape.taps * shape.inputs, kGatherDepth)};
    Scratch<float> gathered(context, static_cast<std::size_t>(tiles.total * kGatherStride));
    TileArgs args = panels.tile_args();
    const int activated = args.act.on;
    for (std::int64_t slice = 0; slice < slices.parts; ++slice) {
      const bool last = slice + 1 == slices.parts;
      args.inputs = static_cast<std::size_t>(slices.end(slice) - slices.begin(slice));
      args.accumulate = slice > 0 ? 1 : 0;
      args.act.on = last ? activated : 0;
      std::int64_t group = -1;
      for (std::int64_t panel = task.panel_begin; panel < task.panel_end; ++panel) {
        if (panels.group(panel) != group) {
          group = panels.group(panel);
          gather(run, shape, panels.sites(), {first, tiles.total, group, slices.begin(slice), slices.end(slice)},
                 gathered.data());
        }
        const TileFunction* functions =
            weights_.kernels().gathered[panels.enter_panel(panel, slices.begin(slice), &args) - 1];
        for (std::int64_t i = 0; i < tiles.parts; ++i) {
          const std::int64_t begin = tiles.begin(i);
          args.gathered = gathered.data() + begin * kGatherStride;
          panels.run_tile(functions, first + begin, tiles.end(i) - begin,
                          !added.empty() && last ? added.data() + begin : nullptr, args);
        }
      }
    }
  }

  PackedPanels weights_;
};

class GatheredImplementation final : public Implementation {
 public:
  const char* name() const noexcept override { return "gathered"; }
  Offer offer(const ProductLayer& layer) const override { return site_by_site<Gathered>(layer); }
};

const GatheredImplementation kImplementation;

}  // namespace

const Implementation& kGathered = kImplementation;

}  // namespace perfonnx
