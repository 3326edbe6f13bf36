// Inputs copied together first, a slice of the sum over taps and channels at a time. Computes every layer.
#include <algorithm>

#include "cpu/product/choosing.h"
#include "cpu/product/panels.h"
#include "cpu/product/shares.h"

namespace perfonnx {
namespace {

// `count` floats of which `readable` lie behind each other. Most counts are small, where a call would cost more than
// the copy; so up to kCopy - 1 floats too many are written.
constexpr std::int64_t kCopy = 16;
static_assert(kGatherDepth + kCopy <= kGatherStride, "a copy would write into the inputs of the next site");
inline void copy_floats(const float* from, std::int64_t count, std::int64_t readable, float* to) {
  if (count >= 4 * kCopy) {
    std::copy_n(from, count, to);
  } else if (count + kCopy - 1 <= readable) {
    for (std::int64_t i = 0; i < count; i += kCopy) std::copy_n(from + i, kCopy, to + i);
  } else {
    for (std::int64_t i = 0; i < count; ++i) to[i] = from[i];
  }
}

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
          gather(run, panels.sites(), first, tiles.total, group, slices.begin(slice), slices.end(slice),
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

  // Inputs `begin` to `end` of the sum over taps and channels of a group, for some sites.
  void gather(const ProductRun& run, const Sites& sites, std::int64_t first, std::int64_t count, std::int64_t group,
              std::int64_t begin, std::int64_t end, float* out) const {
    const std::int64_t inputs = weights_.shape().inputs;
    const std::int64_t channels = weights_.shape().input_channels();
    const bool mergeable = weights_.shape().groups == 1;
    const std::int64_t first_tap = begin / inputs;
    const std::int64_t first_input = begin % inputs;
    const float* const data_end = run.input.data + run.input.images * run.input.rows_per_image * channels;
    sites.for_each_site(first, count, [&](std::int64_t p, const float* image, const std::int32_t* rows) {
      float* to = out + p * kGatherStride;
      std::int64_t tap = first_tap;
      std::int64_t input = first_input;
      for (std::int64_t left = end - begin; left > 0; ++tap, input = 0) {
        std::int64_t length = std::min(inputs - input, left);
        const std::int64_t offset = group * inputs + input;
        if (rows[tap] < 0) {
          copy_floats(run.input.zero_row + offset, length, length, to);
        } else {
          const float* from = image + (rows[tap] - run.input.first_row) * channels + offset;
          // Neighbouring taps often read neighbouring rows.
          while (mergeable && length < left && rows[tap + 1] == rows[tap] + 1) {
            ++tap;
            length = std::min(length + inputs, left);
          }
          copy_floats(from, length, data_end - from, to);
        }
        to += length;
        left -= length;
      }
    });
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
