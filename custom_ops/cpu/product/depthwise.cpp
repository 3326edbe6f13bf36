// One channel in and one out in every group: channels side by side are as many independent convolutions.
#include <algorithm>
#include <vector>

#include "cpu/act.h"
#include "cpu/product/choosing.h"
#include "cpu/product/pack.h"
#include "cpu/product/shares.h"
#include "cpu/product/sites.h"

namespace perfonnx {
namespace {

class Depthwise final : public PreparedProduct {
 public:
  explicit Depthwise(const ProductLayer& layer) : weights_(layer) {}

  void run(const ProductRun& run, Context& context) const override {
    const auto site_tile = static_cast<std::int64_t>(weights_.kernels().site_tile);
    const Shares shares(run.total(), site_tile, tiles_in_place(weights_.shape(), site_tile), 1);
    shares.for_each_task(context, [&](const Shares::Task& task) { run_task(run, task); });
  }
  const AlignedArray<float>& packed() const noexcept override { return weights_.data(); }

 private:
  // Marks the taps of a kernel's line, which read the same rows one site later.
  static void find_lines(Segment* segments, std::int64_t taps) {
    for (std::int64_t t = 0; t < taps;) {
      const Segment& first = segments[t];
      std::int64_t length = 1;
      while (first.stride != 0 && length < 5 && t + length < taps &&
             segments[t + length].base == first.base + length * first.stride) {
        ++length;
      }
      segments[t].line = length >= 5 ? 5 : length >= 3 ? 3 : 0;
      t += std::max(segments[t].line, 1);
    }
  }

  void run_task(const ProductRun& run, const Shares::Task& task) const {
    const WeightShape& shape = weights_.shape();
    const Sites sites(run, shape);
    const std::int64_t first = task.first;
    const std::int64_t count = task.count;
    const std::vector<const float*> added = sites.added_rows(first, count);
    std::vector<Segment> segments(static_cast<std::size_t>(shape.taps));
    DepthwiseArgs args{};
    args.segments = segments.data();
    args.taps = static_cast<std::size_t>(shape.taps);
    args.weights = weights_.data().data();
    args.weight_stride = static_cast<std::size_t>(weights_.stride());
    args.bias = weights_.bias();
    args.out_stride = static_cast<std::size_t>(run.out_stride);
    args.channels = static_cast<std::size_t>(shape.outputs);
    args.act = act_of(run.activation);
    Sites::Runs runs(run, first);
    for (std::int64_t begin = 0; begin < count;) {
      std::int64_t step = 0;
      const std::int64_t here = runs.length(first + begin, count - begin, &step);
      sites.fill_segments(first + begin, step, false, segments.data());
      find_lines(segments.data(), shape.taps);
      args.ahead = Sites::newest(segments.data(), shape.taps);
      args.sites = static_cast<std::size_t>(here);
      args.out = run.out + (first + begin) * run.out_stride;
      args.added = added.empty() ? nullptr : added.data() + begin;
      weights_.kernels().depthwise(&args);
      begin += here;
    }
  }

  PackedTaps weights_;
};

class DepthwiseImplementation final : public Implementation {
 public:
  const char* name() const noexcept override { return "depthwise"; }
  std::string obstacle(const ProductLayer& layer) const override {
    return layer.shape.depthwise() ? "" : "its groups are not one channel in and one out each";
  }
  Offer offer(const ProductLayer& layer) const override { return site_by_site<Depthwise>(layer); }
};

const DepthwiseImplementation kImplementation;

}  // namespace

const Implementation& kDepthwise = kImplementation;

}  // namespace perfonnx
