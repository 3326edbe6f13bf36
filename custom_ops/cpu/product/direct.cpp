// Inputs read where they are: a tile of sites at a time, tap by tap.
#include <algorithm>
#include <vector>

#include "cpu/product/choosing.h"
#include "cpu/product/panels.h"
#include "cpu/product/shares.h"

namespace perfonnx {
namespace {

// Copying the inputs of a tile pays where a panel of weights is too large for the second cache, so that the sum is cut
// into slices.
constexpr std::int64_t kDirectDepth = 2304;
// Rows a multiple of 4096 bytes apart all lie in one set of the first cache, which then holds fewer than a tile has.
constexpr std::int64_t kAliasedInputs = 1024;

// Tiles of as many sites each: those of one run together, any other by itself.
struct Tiles {
  std::int64_t begin;  // first site, from the block's first one on
  std::int64_t sites;  // of each tile
  std::int64_t tiles;
  std::int64_t segments;  // of a run: how many
};

class Direct final : public PreparedProduct {
 public:
  explicit Direct(const ProductLayer& layer) : weights_(layer) {}

  void run(const ProductRun& run, Context& context) const override {
    const auto site_tile = static_cast<std::int64_t>(weights_.kernels().site_tile);
    const Shares shares(run.total(), site_tile, tiles_in_place(weights_.shape(), site_tile), panel_count(weights_));
    shares.for_each_task(context, [&](const Shares::Task& task) { run_task(run, task, site_tile); });
  }
  const AlignedArray<float>& packed() const noexcept override { return weights_.data(); }

 private:
  void run_task(const ProductRun& run, const Shares::Task& task, std::int64_t site_tile) const {
    const WeightShape& shape = weights_.shape();
    const F32Kernels& kernels = weights_.kernels();
    const PanelRun panels(run, weights_);
    const Sites& sites = panels.sites();
    const std::int64_t first = task.first;
    const EvenSplit split{task.count, ceil_div(task.count, site_tile)};
    const std::vector<const float*> added = sites.added_rows(first, task.count);
    std::vector<Tiles> all;
    std::vector<Segment> segments;
    std::vector<const float*> pointers;
    Sites::Runs runs(run, first);
    for (std::int64_t i = 0; i < split.parts;) {
      Tiles here{split.begin(i), split.end(i) - split.begin(i), 1, 0};
      std::int64_t step = 0;
      const std::int64_t length = runs.length(first + here.begin, split.total - here.begin, &step);
      if (length >= here.sites) {
        const auto alike = [&](std::int64_t k) { return split.end(k) - split.begin(k) == here.sites; };
        while ((here.tiles + 1) * here.sites <= length && alike(i + here.tiles)) ++here.tiles;
        const std::size_t used = segments.size();
        segments.resize(used + static_cast<std::size_t>(shape.taps));
        here.segments = sites.fill_segments(first + here.begin, step, shape.groups == 1, segments.data() + used);
        segments.resize(used + static_cast<std::size_t>(here.segments));
      } else {
        const std::size_t used = pointers.size();
        pointers.resize(used + static_cast<std::size_t>(here.sites * shape.taps));
        sites.fill_pointers(first + here.begin, here.sites, pointers.data() + used);
      }
      all.push_back(here);
      i += here.tiles;
    }
    TileArgs args = panels.tile_args();
    args.taps = static_cast<std::size_t>(shape.taps);
    args.inputs = static_cast<std::size_t>(shape.inputs);
    for (std::int64_t panel = task.panel_begin; panel < task.panel_end; ++panel) {
      const std::int64_t vectors = panels.enter_panel(panel, 0, &args);
      const bool entered = panel == task.panel_begin || panel % weights_.panels_per_group() == 0;  // new inputs
      args.offset = static_cast<std::size_t>(panels.group(panel) * shape.inputs);
      args.segments = segments.data();
      args.rows = pointers.data();
      for (const Tiles& here : all) {
        const float* const* added_here = added.empty() ? nullptr : added.data() + here.begin;
        if (here.segments > 0) {
          args.tiles = static_cast<std::size_t>(here.tiles);
          args.segment_count = static_cast<std::size_t>(here.segments);
          args.ahead = entered ? Sites::newest(args.segments, here.segments) : args.segment_count;
          panels.run_tile(kernels.strided[vectors - 1], first + here.begin, here.sites, added_here, args);
          args.segments += here.segments;
        } else {
          const float* const* next = args.rows + here.sites * shape.taps;
          const bool alike = &here != &all.back() && (&here)[1].sites == here.sites && (&here)[1].segments == 0;
          args.next_rows = entered && alike ? next : nullptr;
          panels.run_tile(kernels.direct[vectors - 1], first + here.begin, here.sites, added_here, args);
          args.rows = next;
        }
      }
    }
  }

  PackedPanels weights_;
};

class DirectImplementation final : public Implementation {
 public:
  const char* name() const noexcept override { return "direct"; }
  std::string drawback(const ProductLayer& layer) const override {
    const WeightShape& shape = layer.shape;
    if (shape.taps * shape.inputs > kDirectDepth) {
      return "a panel of " + std::to_string(shape.taps * shape.inputs) + " inputs does not fit the second cache";
    }
    if (shape.inputs % kAliasedInputs == 0)
      return "rows that are a multiple of 4096 bytes apart share a set of the cache";
    return {};
  }
  Offer offer(const ProductLayer& layer) const override { return site_by_site<Direct>(layer); }
};

const DirectImplementation kImplementation;

}  // namespace

const Implementation& kDirect = kImplementation;

}  // namespace perfonnx
