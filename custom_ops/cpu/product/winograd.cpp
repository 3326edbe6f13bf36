// Winograd's algorithm (A. Lavin, S. Gray, arXiv 1509.09308) for layers of stride 1, exact up to rounding: tiles of 4 x
// 4 or 2 x 2 outputs of 3x3 kernels by 36 or 16 multiplies a pair of channels instead of 144 or 36; of 5 x 5 or 3 x 3
// outputs of 2x2 kernels by 36 or 16 instead of 100 or 36; of 2 x 2 outputs of 5x5 kernels by 36 instead of 100; of 4
// outputs in a line of kernels of 3, 5 or 7 taps in a line by 6, 8 or 10 instead of 12, 20 or 28.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <map>
#include <string>
#include <type_traits>
#include <vector>

#include "cpu/act.h"
#include "cpu/product/choosing.h"
#include "cpu/product/chosen_tiles.h"
#include "cpu/product/panels.h"

namespace perfonnx {
namespace {

// One dimension of tiles: `edge` outputs of a kernel of `taps` taps.
struct Axis {
  std::int64_t taps;
  std::int64_t edge;

  std::int64_t points() const noexcept { return edge + taps - 1; }
};

// Both dimensions.
struct Axes {
  Axis down;
  Axis across;

  std::int64_t points() const noexcept { return down.points() * across.points(); }
  MapSize tile() const noexcept { return {down.edge, across.edge}; }
  MapSize kernel() const noexcept { return {down.taps, across.taps}; }
};

// [points][taps]: the values of a kernel, taken for a polynomial, at the points, as Lagrange's interpolation weighs
// them; see f32_winograd_body.h.
std::vector<double> tap_factors(const Axis& axis) {
  if (axis.taps == 1) return {1};
  const std::int64_t pairs = axis.points() / 2 - 1;
  const double (&points)[4] = kWinogradPoints[pairs - 1];
  // The product of y - p^2 over all pairs but one.
  const auto product = [&](double y, std::int64_t without) {
    double result = 1;
    for (std::int64_t i = 0; i < pairs; ++i) result *= i == without ? 1 : y - points[i] * points[i];
    return result;
  };
  std::vector<double> factors(static_cast<std::size_t>(axis.points() * axis.taps));
  factors.front() = 1 / product(0, pairs);
  factors.back() = 1;
  double* to = factors.data() + axis.taps;
  for (std::int64_t i = 0; i < pairs; ++i) {
    for (const double point : {points[i], -points[i]}) {
      double value = 1 / (2 * point * point * product(point * point, i));
      for (std::int64_t t = 0; t < axis.taps; ++t, value *= point) *to++ = value;
    }
  }
  return factors;
}

// Turns kernels into their points, two at a time, each in a lane of vectors.
class KernelPoints {
 public:
  static constexpr std::int64_t kKernels = 8;  // a panel is a multiple of it

  explicit KernelPoints(const Axes& axes)
      : axes_(axes), down_(tap_factors(axes.down)), across_(tap_factors(axes.across)) {}

  // The taps of `count` kernels lie `taps_step` apart; up to kKernels there are kernels of zeros. Each point of all of
  // them lies `step` behind the one before: so far that lines which are written a float at a time would drive each
  // other out of the cache.
  void fill(const float* taps, std::int64_t taps_step, std::int64_t count, float* to, std::int64_t step) const {
    float together[kMostPoints][kKernels];
    if (count < kKernels) std::fill_n(together[0], kMostPoints * kKernels, 0.0F);
    for (std::int64_t first = 0; first < count; first += 2) {
      fill_two(taps + first * taps_step, first + 1 < count ? taps_step : 0, together[0] + first);
    }
    for (std::int64_t i = 0; i < axes_.points(); ++i, to += step) std::copy_n(together[i], kKernels, to);
  }

 private:
  typedef double Two __attribute__((vector_size(2 * sizeof(double))));
  static constexpr std::int64_t kMostTaps = 25;
  static constexpr std::int64_t kMostPoints = 36;

  void fill_two(const float* taps, std::int64_t taps_step, float* to) const {
    const auto& [down, across] = axes_;
    Two kernel[kMostTaps];
    for (std::int64_t t = 0; t < down.taps * across.taps; ++t) kernel[t] = Two{taps[t], taps[taps_step + t]};
    Two half[kMostPoints];
    for (std::int64_t j = 0; j < across.taps; ++j) turn(down, down_.data(), kernel + j, across.taps, half + j);
    Two point[kMostPoints];
    for (std::int64_t y = 0; y < down.points(); ++y) {
      turn(across, across_.data(), half + y * across.taps, 1, point + y * across.points());
    }
    for (std::int64_t i = 0; i < axes_.points(); ++i, to += kKernels) {
      to[0] = static_cast<float>(point[i][0]);
      to[1] = static_cast<float>(point[i][1]);
    }
  }
  // Along an axis; taps and points lie `step` apart.
  static void turn(const Axis& axis, const double* factors, const Two* taps, std::int64_t step, Two* points) {
    const auto turn_some = [&](auto count) {
      for (std::int64_t i = 0; i < axis.points(); ++i, factors += count) {
        Two sum = factors[0] * taps[0];
        for (std::int64_t t = 1; t < count; ++t) sum += factors[t] * taps[t * step];
        points[i * step] = sum;
      }
    };
    if (axis.taps == 3) {  // without a loop, since most kernels are
      turn_some(std::integral_constant<std::int64_t, 3>{});
    } else {
      turn_some(axis.taps);
    }
  }

  Axes axes_;
  std::vector<double> down_;
  std::vector<double> across_;
};

// Weights of every point: [points][groups][panels][inputs][panel width], and the bias padded to whole panels.
struct PackedPoints {
  PackedPoints(const ProductLayer& layer, const Axes& axes) {
    const std::int64_t outputs = layer.shape.outputs_per_group();
    const std::int64_t inputs = layer.shape.inputs;
    const auto width = static_cast<std::int64_t>(layer.kernels.f32->panel);
    const std::int64_t points = axes.points();
    panels_per_group = ceil_div(outputs, width);
    panels = layer.shape.groups * panels_per_group;
    panel_size = inputs * width;
    const std::int64_t point_size = panels * panel_size;
    weights =
        AlignedArray<float>(checked_product(static_cast<std::size_t>(points), static_cast<std::size_t>(point_size)));
    bias = AlignedArray<float>(static_cast<std::size_t>(panels * width));
    std::fill_n(bias.data(), bias.size(), 0.0F);
    if (layer.bias != nullptr) std::copy_n(layer.bias, layer.shape.outputs, bias.data());
    const KernelPoints kernels(axes);
    std::vector<std::int32_t> taps = layer.grid->taps;
    for (std::int32_t& tap : taps) {  // where it lies in the kernel of the tiles
      const std::int64_t columns = layer.grid->geometry.kernel[1];
      tap = static_cast<std::int32_t>(tap / columns * axes.across.taps + tap % columns);
    }
    const std::int64_t kernel_size = axes.kernel().positions();
    const bool whole = layer.shape.taps == kernel_size;
    std::vector<float> filled(static_cast<std::size_t>(whole ? 0 : KernelPoints::kKernels * kernel_size), 0.0F);
    for (std::int64_t panel = 0; panel < panels; ++panel) {
      const std::int64_t in_group = panel % panels_per_group * width;
      const std::int64_t first = panel / panels_per_group * outputs + in_group;
      const std::int64_t here = std::min(width, outputs - in_group);
      for (std::int64_t c = 0; c < inputs; ++c) {
        float* to = weights.data() + panel * panel_size + c * width;
        for (std::int64_t j = 0; j < width; j += KernelPoints::kKernels) {
          const std::int64_t count = std::clamp<std::int64_t>(here - j, 0, KernelPoints::kKernels);
          const float* from = layer.weights + ((first + j) * inputs + c) * layer.shape.taps;
          std::int64_t step = inputs * layer.shape.taps;
          if (!whole) {
            for (std::int64_t lane = 0; lane < count; ++lane) {
              float* kernel = filled.data() + lane * kernel_size;
              for (std::size_t t = 0; t < taps.size(); ++t)
                kernel[taps[t]] = from[lane * step + static_cast<std::int64_t>(t)];
            }
            from = filled.data();
            step = kernel_size;
          }
          kernels.fill(from, step, count, to + j, point_size);
        }
      }
    }
  }

  std::int64_t panels_per_group;
  std::int64_t panels;  // of all groups
  std::int64_t panel_size;
  AlignedArray<float> weights;
  AlignedArray<float> bias;
};

// What tiles cost, in multiplies of the innermost loop.
struct Costs {
  double points;  // multiplies of a tile, for each pair of channels
  double input;   // to transform a tile, for each channel
  double output;
  double tile;  // and for itself
};
constexpr double kRest = 200000;  // what it takes to start with sites outside tiles

constexpr std::int64_t kFewestInputs = 8;

class TileEstimate : public Estimate {
 public:
  using Estimate::Estimate;

  double tile(const Costs& costs) const {
    return costs.points * pairs() + costs.input * channels() + costs.output * outputs() + costs.tile;
  }
  // Fewest sites of a tile that is worth while.
  std::int64_t least(const Costs& costs) const {
    return std::max<std::int64_t>(static_cast<std::int64_t>(std::ceil(tile(costs) / (kScattered * site()))), 1);
  }
  // An image by tiles, its other sites directly.
  double by_tiles(const Costs& costs, std::int64_t tiles, std::int64_t rest, std::int64_t passes) const {
    const double all = costs.points * weights();
    const double again = static_cast<double>(std::max<std::int64_t>(passes - 1, 0)) * all * kNearWeight;
    return together(static_cast<double>(tiles) * tile(costs), tiles > 0 ? read(all) + again : 0) +
           (rest > 0 ? directly(rest, kScattered) + kRest : 0);
  }
};

// Tiles that are computed together, at most: weights that do not stay in a cache near the processor are read for each
// such block anew.
constexpr std::int64_t kHeavyBytes = 6 * 1024 * 1024;
std::int64_t block_tiles(const ProductLayer& layer, std::int64_t points) {
  constexpr std::int64_t kPoints = 36;  // those of smaller tiles take as much memory together
  const std::int64_t bytes =
      points * layer.shape.inputs * layer.shape.outputs * static_cast<std::int64_t>(sizeof(float));
  const auto tile = static_cast<std::int64_t>(layer.kernels.f32->site_tile);
  const std::int64_t several = std::max<std::int64_t>(28 / tile, 1) * tile * (kPoints / points);
  return bytes > kHeavyBytes ? 2 * several : several;
}

class Winograd final : public PreparedProduct {
 public:
  Winograd(const ProductLayer& layer, WinogradForm form, const Axes& axes, const Tiling& tiling, std::int64_t least)
      : shape_(layer.shape),
        kernels_(*layer.kernels.f32),
        form_(form),
        rows_(tiling.rows()),
        plan_(tiling.plan(least)),
        weights_(layer, axes),
        block_(block_tiles(layer, axes.points())) {
    for (std::int64_t t = 0; t < plan_.tiles; ++t) {
      const auto tile = plan_.outputs.begin() + t * plan_.writes();
      last_sites_.push_back(*std::max_element(tile, tile + plan_.writes()));
    }
    if (!plan_.rest.empty()) rest_ = (kDirect.drawback(layer).empty() ? kDirect : kGathered).offer(layer).prepare();
  }

  void run(const ProductRun& run, Context& context) const override {
    const std::int64_t first = run.table.first;
    run_tiles(run, {between(last_sites_, first, first + run.table.sites)}, context);
    run_rest(run, between(plan_.rest, first, first + run.table.sites), context);
  }

  // Some tiles of a run: all of a span in each image, or those that are listed.
  struct Span {
    std::int64_t begin;
    std::int64_t count;
  };
  struct Selection {
    Span span{0, 0};
    bool listed = false;
    std::vector<std::int64_t> tiles{};    // image * tiles of an image + tile
    std::vector<std::int32_t> outputs{};  // [tiles][tile]: row of the output, -1 = nobody wants it
  };
  void run_tiles(const ProductRun& run, const Selection& selection, Context& context) const;
  const TilePlan& plan() const noexcept { return plan_; }
  // How often the weights are read for so many tiles.
  std::int64_t passes(std::int64_t tiles) const noexcept { return ceil_div(tiles, block_); }

  std::int64_t edge() const noexcept override { return rows_; }
  const AlignedArray<float>& packed() const noexcept override { return weights_.weights; }

 private:
  // Tiles, or sites outside tiles, which are the same in every image: those between two sites that are the first of
  // their rows of tiles.
  static Span between(const std::vector<std::int32_t>& sites, std::int64_t begin, std::int64_t end) {
    const auto from = [&](std::int64_t limit) {
      return std::partition_point(sites.begin(), sites.end(), [&](std::int32_t site) { return site < limit; }) -
             sites.begin();
    };
    return {from(begin), from(end) - from(begin)};
  }

  // Points of some tiles, or their sums, in pieces of channels; see f32.h. Points lie an odd number of pieces, which
  // are cache lines, apart, so that those of a tile do not drive each other out of the cache.
  struct Points {
    Points(Context& context, std::int64_t points, std::int64_t tiles, std::int64_t channels)
        : piece_stride(tiles * kPiece),
          point_stride((ceil_div(channels, kPiece) * tiles | 1) * kPiece),
          memory(context, checked_product(static_cast<std::size_t>(points), static_cast<std::size_t>(point_stride))) {}
    // Where a channel of a point of a tile lies.
    float* at(std::int64_t point, std::int64_t tile, std::int64_t channel) {
      return memory.data() + point * point_stride + channel / kPiece * piece_stride + tile * kPiece + channel % kPiece;
    }
    std::int64_t piece_stride;
    std::int64_t point_stride;
    Scratch<float> memory;
  };

  // Tiles that are computed together, by their places in the selection, and what lies between their inputs and outputs.
  struct Block {
    Block(const Winograd& of, Context& context, const Selection& selected, std::int64_t begin, std::int64_t count)
        : selection(selected),
          first(begin),
          tiles(count),
          points(context, of.plan_.reads(), count, of.shape_.input_channels()),
          sums(context, of.plan_.reads(), count, of.weights_.panels * of.width()) {}
    const Selection& selection;
    std::int64_t first;
    std::int64_t tiles;
    Points points;
    Points sums;
  };

  // Some tiles of a block, and some pieces of their channels.
  struct Part {
    std::int64_t tile_begin;
    std::int64_t tile_end;
    std::int64_t channel_begin;
    std::int64_t channel_end;
  };

  // Image and tile at a place of the selection.
  struct At {
    std::int64_t image;
    std::int64_t tile;
  };
  At at(const Selection& selection, std::int64_t place) const noexcept {
    if (!selection.listed) return {place / selection.span.count, selection.span.begin + place % selection.span.count};
    const std::int64_t number = selection.tiles[static_cast<std::size_t>(place)];
    return {number / plan_.tiles, number % plan_.tiles};
  }

  // Calls function(part) for parts that together are all channels of all tiles of a block.
  template <typename Function>
  static void share_out(const Block& block, std::int64_t channels, Context& context, const Function& function) {
    const std::int64_t wanted = kParts * wanted_tasks();
    const EvenSplit tiles{block.tiles, std::min(block.tiles, wanted)};
    const EvenSplit pieces{ceil_div(channels, kPiece),
                           std::min(ceil_div(channels, kPiece), ceil_div(wanted, tiles.parts))};
    context.parallel.run(static_cast<std::size_t>(tiles.parts * pieces.parts), [&](std::size_t task) {
      const std::int64_t i = static_cast<std::int64_t>(task) / pieces.parts;
      const std::int64_t j = static_cast<std::int64_t>(task) % pieces.parts;
      function(
          Part{tiles.begin(i), tiles.end(i), pieces.begin(j) * kPiece, std::min(pieces.end(j) * kPiece, channels)});
    });
  }

  void read(const ProductRun& run, const Part& part, Block* block) const {
    const std::int64_t reads = plan_.reads();
    const std::int64_t channels = shape_.input_channels();
    const std::int64_t count = part.tile_end - part.tile_begin;
    std::vector<const float*> rows(static_cast<std::size_t>(count * reads));
    for (std::int64_t t = 0; t < count; ++t) {
      const At here = at(block->selection, block->first + part.tile_begin + t);
      const std::int32_t* numbers = plan_.inputs.data() + here.tile * reads;
      const float* image = run.input.data + here.image * run.input.rows_per_image * channels;
      for (std::int64_t i = 0; i < reads; ++i) {
        // What no site of the run reads need not be there.
        const std::int64_t row = numbers[i] - run.input.first_row;
        const bool there = numbers[i] >= 0 && row >= 0 && row < run.input.rows_per_image;
        rows[static_cast<std::size_t>(t * reads + i)] = there ? image + row * channels : run.input.zero_row;
      }
    }
    WinogradInputArgs args{};
    args.rows = rows.data();
    args.tiles = static_cast<std::size_t>(count);
    args.begin = static_cast<std::size_t>(part.channel_begin);
    args.end = static_cast<std::size_t>(part.channel_end);
    args.points = block->points.at(0, part.tile_begin, 0);
    args.point_stride = static_cast<std::size_t>(block->points.point_stride);
    args.piece_stride = static_cast<std::size_t>(block->points.piece_stride);
    kernels_.winograd_input[form_](&args);
  }

  // Some panels of output channels.
  struct Panels {
    std::int64_t begin;
    std::int64_t count;
  };
  Panels all_panels() const noexcept { return {0, weights_.panels}; }
  std::int64_t channel_at(std::int64_t panel) const noexcept {
    const std::int64_t of_group = panel / weights_.panels_per_group * shape_.outputs_per_group();
    return std::min(of_group + panel % weights_.panels_per_group * width(), shape_.outputs);
  }

  // A step of the products is a point and a panel.
  std::int64_t steps(const Panels& panels) const noexcept { return plan_.reads() * panels.count; }
  void multiply(const Panels& panels, std::int64_t begin, std::int64_t end, Block* block) const {
    // Weights that come from afar arrive in time where each of them is read twice: a few tiles are halved for that.
    constexpr std::int64_t kHalved = 8;
    const std::int64_t parts = ceil_div(block->tiles, static_cast<std::int64_t>(kernels_.site_tile));
    const EvenSplit tiles{block->tiles, std::max<std::int64_t>(parts, block->tiles < kHalved ? 1 : 2)};
    WinogradProductArgs args{};
    args.piece_stride = static_cast<std::size_t>(block->points.piece_stride);
    args.sum_piece_stride = static_cast<std::size_t>(block->sums.piece_stride);
    args.inputs = static_cast<std::size_t>(shape_.inputs);
    args.next_step = static_cast<std::size_t>(ceil_div(width(), tiles.parts));
    const auto weights_of = [&](std::int64_t step) {
      const std::int64_t panel = panels.begin + step % panels.count;
      return weights_.weights.data() + (step / panels.count * weights_.panels + panel) * weights_.panel_size;
    };
    for (std::int64_t step = begin; step < end; ++step) {
      const std::int64_t point = step / panels.count;
      const std::int64_t panel = panels.begin + step % panels.count;
      const std::int64_t group = panel / weights_.panels_per_group;
      const std::int64_t channel = channel_at(panel);
      const std::int64_t left = (group + 1) * shape_.outputs_per_group() - channel;
      const std::int64_t vectors = std::min<std::int64_t>(ceil_div(left, vector()), 2);
      args.panel = weights_of(step);
      args.next = weights_of(step + 1);
      for (std::int64_t i = 0; i < tiles.parts; ++i) {
        args.points = block->points.at(point, tiles.begin(i), group * shape_.inputs);
        args.sums = block->sums.at(point, tiles.begin(i), channel);
        kernels_.winograd_product[vectors - 1][tiles.end(i) - tiles.begin(i) - 1](&args);
        args.next += args.next_step * args.inputs;
      }
    }
  }

  void write(const ProductRun& run, const Part& part, Block* block) const {
    const Sites sites(run, shape_);
    const std::int64_t writes = plan_.writes();
    const std::int64_t count = part.tile_end - part.tile_begin;
    std::vector<float*> out(static_cast<std::size_t>(count * writes));
    std::vector<const float*> added(run.added != nullptr ? out.size() : 0);
    for (std::int64_t t = 0; t < count; ++t) {
      const std::int64_t place = block->first + part.tile_begin + t;
      const Selection& selection = block->selection;
      const At here = at(selection, place);
      const std::int32_t* numbers =
          selection.listed ? selection.outputs.data() + place * writes : plan_.outputs.data() + here.tile * writes;
      const std::int64_t before = selection.listed ? 0 : here.image * run.table.sites - run.table.first;
      for (std::int64_t i = 0; i < writes; ++i) {
        if (numbers[i] < 0) continue;
        const std::int64_t row = before + numbers[i];
        const auto to = static_cast<std::size_t>(t * writes + i);
        out[to] = run.out + row * run.out_stride;
        if (run.added != nullptr) added[to] = sites.added_row(row);
      }
    }
    WinogradOutputArgs args{};
    args.sums = block->sums.at(0, part.tile_begin, 0);
    args.point_stride = static_cast<std::size_t>(block->sums.point_stride);
    args.piece_stride = static_cast<std::size_t>(block->sums.piece_stride);
    args.tiles = static_cast<std::size_t>(count);
    args.begin = static_cast<std::size_t>(part.channel_begin);
    args.end = static_cast<std::size_t>(part.channel_end);
    args.bias = weights_.bias.data();
    args.out = out.data();
    args.added = run.added != nullptr ? added.data() : nullptr;
    args.act = act_of(run.activation);
    kernels_.winograd_output[form_](&args);
  }

  // The sites outside tiles, some at a time.
  void run_rest(const ProductRun& run, const Span& span, Context& context) const {
    constexpr std::int64_t kSites = 448;
    const std::int64_t total = run.input.images * span.count;
    if (total == 0) return;
    const std::int64_t threads = wanted_tasks();
    const EvenSplit split{total, std::min(ceil_div(ceil_div(total, kSites), threads) * threads, total)};
    for_each_alone(context, split.parts, [&](std::int64_t i, Context& inside) {
      const std::int64_t begin = split.begin(i);
      std::vector<std::int64_t> numbers(static_cast<std::size_t>(split.end(i) - begin));
      for (std::size_t k = 0; k < numbers.size(); ++k) {
        const std::int64_t number = begin + static_cast<std::int64_t>(k);
        const std::int32_t site = plan_.rest[static_cast<std::size_t>(span.begin + number % span.count)];
        numbers[k] = number / span.count * run.table.sites + site - run.table.first;
      }
      const auto count = static_cast<std::int64_t>(numbers.size());
      Scratch<float> out(inside, static_cast<std::size_t>(count * shape_.outputs));
      const SiteList list{numbers.data(), count};
      rest_->run({run.input, run.table, run.activation, out.data(), shape_.outputs, &list, run.added}, inside);
      const float* from = out.data();
      for (const std::int64_t number : numbers) {
        std::copy_n(from, shape_.outputs, run.out + number * run.out_stride);
        from += shape_.outputs;
      }
    });
  }

  std::int64_t vector() const noexcept { return static_cast<std::int64_t>(kernels_.vector); }
  std::int64_t width() const noexcept { return static_cast<std::int64_t>(kernels_.panel); }

  static constexpr std::int64_t kParts = 4;  // of a step, for each thread

  WeightShape shape_;
  const F32Kernels& kernels_;
  WinogradForm form_;
  std::int64_t rows_;  // of the map, which hold whole tiles
  TilePlan plan_;
  PackedPoints weights_;
  std::int64_t block_;
  std::vector<std::int32_t> last_sites_;         // of the tiles: their highest
  std::unique_ptr<const PreparedProduct> rest_;  // of sites outside tiles; null: there are none
};

// Either every thread takes blocks, and of few tiles some of the panels; or, where there are too few tiles for that or
// the weights are too many for each thread to read them all, a block at a time and each of its steps is shared out.
void Winograd::run_tiles(const ProductRun& run, const Selection& selection, Context& context) const {
  constexpr std::int64_t kSmall = 2 * 1024 * 1024;  // multiplies that are not worth three steps
  constexpr std::int64_t kFewSteps = 20;            // for each thread
  constexpr std::int64_t kFewTiles = 4;             // for a thread that reads all weights for them
  const std::int64_t total =
      selection.listed ? static_cast<std::int64_t>(selection.tiles.size()) : run.input.images * selection.span.count;
  if (total == 0) return;
  const std::int64_t threads = wanted_tasks();
  const bool heavy = static_cast<std::int64_t>(weights_.weights.size() * sizeof(float)) > kHeavyBytes;
  const bool small = total * plan_.reads() * shape_.inputs * shape_.outputs < kSmall;
  const bool enough = !heavy && total >= threads * kFewTiles;
  const bool alone = enough || small || threads == 1;
  std::int64_t blocks = ceil_div(total, block_);
  // As many for each thread; a few tiles more in each are better than a block more.
  if (enough) blocks = ceil_div(ceil_div(5 * total, 6 * block_), threads) * threads;
  const EvenSplit split{total, blocks};
  if (alone) {
    // Few tiles are read by every thread that takes some of their panels, which costs little beside the products.
    const std::int64_t parts = enough ? 1 : std::min(ceil_div(threads, blocks), weights_.panels);
    const EvenSplit panels_of{weights_.panels, parts};
    std::vector<std::atomic<std::int64_t>> taken(static_cast<std::size_t>(blocks));  // parts of each block
    for_each_alone(context, blocks * parts, [&](std::int64_t i, Context& inside) {
      std::atomic<std::int64_t>& next = taken[static_cast<std::size_t>(i / parts)];
      std::int64_t part = next++;
      if (part >= parts) return;
      const std::int64_t begin = split.begin(i / parts);
      Block block(*this, inside, selection, begin, split.end(i / parts) - begin);
      read(run, {0, block.tiles, 0, shape_.input_channels()}, &block);
      for (; part < parts; part = next++) {
        const Panels panels{panels_of.begin(part), panels_of.end(part) - panels_of.begin(part)};
        multiply(panels, 0, steps(panels), &block);
        write(run, {0, block.tiles, channel_at(panels.begin), channel_at(panels.begin + panels.count)}, &block);
      }
    });
    return;
  }
  for (std::int64_t i = 0; i < blocks; ++i) {
    Block block(*this, context, selection, split.begin(i), split.end(i) - split.begin(i));
    share_out(block, shape_.input_channels(), context, [&](const Part& part) { read(run, part, &block); });
    // Few steps are a task each, so that the threads can take as many.
    const std::int64_t steps = this->steps(all_panels());
    const EvenSplit steps_of{steps, steps < kFewSteps * threads ? steps : kParts * threads};
    context.parallel.run(static_cast<std::size_t>(steps_of.parts), [&](std::size_t task) {
      const auto part = static_cast<std::int64_t>(task);
      multiply(all_panels(), steps_of.begin(part), steps_of.end(part), &block);
    });
    share_out(block, shape_.outputs, context, [&](const Part& part) { write(run, part, &block); });
  }
}

class ChosenWinograd final : public ChosenTiles {
 public:
  ChosenWinograd(const ProductLayer& layer, Winograd winograd, const Costs& costs, std::int64_t group_sites)
      : winograd_(std::move(winograd)),
        estimate_(layer),
        costs_(costs),
        least_(estimate_.least(costs)),
        of_site_(layer.grid->sites.size(), Of{-1, 0}) {
    const TilePlan& plan = winograd_.plan();
    for (std::int64_t i = 0; i < static_cast<std::int64_t>(plan.outputs.size()); ++i) {
      const std::int32_t site = plan.outputs[static_cast<std::size_t>(i)];
      if (site < 0) continue;
      of_site_[static_cast<std::size_t>(site)] = {static_cast<std::int32_t>(i / plan.writes()),
                                                  static_cast<std::int32_t>(i % plan.writes())};
    }
    const std::int64_t row = winograd_.edge() * layer.grid->output_width;  // positions
    for (std::size_t i = 0; i < layer.grid->sites.size(); ++i) {
      const auto site = static_cast<std::int64_t>(i);
      const bool enough = groups_.empty() || site - groups_.back() >= group_sites;
      if (enough && (i == 0 || layer.grid->sites[i] / row != layer.grid->sites[i - 1] / row)) groups_.push_back(site);
    }
  }

  std::vector<std::int64_t> run(const ProductRun& run, Context& context) const override {
    const SiteList& list = *run.list;
    Winograd::Selection selection;
    selection.listed = true;
    std::vector<std::int64_t> rest;
    for (std::int64_t begin = 0; begin < list.count;) {
      const std::int64_t image = list.numbers[begin] / run.table.sites;
      const auto next = std::upper_bound(groups_.begin(), groups_.end(), list.numbers[begin] % run.table.sites);
      const std::int64_t limit = image * run.table.sites + (next == groups_.end() ? run.table.sites : *next);
      const std::int64_t end = std::lower_bound(list.numbers + begin, list.numbers + list.count, limit) - list.numbers;
      select(run, image, begin, end, &selection, &rest);
      begin = end;
    }
    winograd_.run_tiles(run, selection, context);
    return rest;
  }
  const std::vector<std::int64_t>& groups() const noexcept override { return groups_; }

 private:
  // Where a site lies.
  struct Of {
    std::int32_t tile;  // -1: in none, since its position has another site
    std::int32_t place;
  };

  // Sorts the listed sites of one group of an image.
  void select(const ProductRun& run, std::int64_t image, std::int64_t begin, std::int64_t end,
              Winograd::Selection* selection, std::vector<std::int64_t>* rest) const {
    const TilePlan& plan = winograd_.plan();
    const auto of = [&](std::int64_t place) {
      return of_site_[static_cast<std::size_t>(run.list->numbers[place] % run.table.sites)];
    };
    std::map<std::int32_t, std::int64_t> sites;  // by tile
    for (std::int64_t i = begin; i < end; ++i) {
      if (const std::int32_t tile = of(i).tile; tile >= 0) ++sites[tile];
    }
    std::int64_t tiles = 0;
    std::int64_t inside = 0;
    for (const auto& [tile, count] : sites) {
      tiles += count >= least_ ? 1 : 0;
      inside += count >= least_ ? count : 0;
    }
    const double by_tiles = estimate_.by_tiles(costs_, tiles, end - begin - inside, winograd_.passes(tiles));
    const bool none = by_tiles > estimate_.directly(end - begin, Estimate::kScattered);
    for (auto& [tile, count] : sites) {  // from here on: its place, -1 where it is not taken
      if (none || count < least_) {
        count = -1;
        continue;
      }
      count = static_cast<std::int64_t>(selection->tiles.size());
      selection->tiles.push_back(image * plan.tiles + tile);
      selection->outputs.resize(selection->outputs.size() + static_cast<std::size_t>(plan.writes()), -1);
    }
    for (std::int64_t i = begin; i < end; ++i) {
      const Of here = of(i);
      const std::int64_t place = here.tile < 0 ? -1 : sites.find(here.tile)->second;
      if (place < 0) {
        rest->push_back(i);
      } else {
        selection->outputs[static_cast<std::size_t>(place * plan.writes() + here.place)] = static_cast<std::int32_t>(i);
      }
    }
  }

  Winograd winograd_;
  TileEstimate estimate_;
  Costs costs_;
  std::int64_t least_;  // sites of a tile that is worth while
  std::vector<Of> of_site_;
  std::vector<std::int64_t> groups_;
};

// A kernel of `taps` taps in a line, or of as many down as across. Where those are more than 2, a kernel may have one
// less, at which there are zeros.
struct Form {
  WinogradForm number;
  std::int64_t taps;
  Costs costs;
};
constexpr Form kSquares5[] = {{kSquare5Of2, 2, {36, 230, 400, 600}}};
constexpr Form kSquares3[] = {{kSquare3Of2, 2, {16, 80, 150, 350}}};
constexpr Form kSquares4[] = {{kSquare4Of3, 3, {36, 230, 300, 500}}};
constexpr Form kSquares2[] = {{kSquare2Of3, 3, {16, 80, 100, 300}}, {kSquare2Of5, 5, {36, 230, 250, 500}}};
constexpr Form kLines4[] = {
    {kLine4Of3, 3, {6, 45, 55, 1000}}, {kLine4Of5, 5, {8, 60, 70, 1200}}, {kLine4Of7, 7, {10, 80, 85, 1400}}};

class WinogradImplementation final : public Implementation {
 public:
  template <std::size_t N>
  constexpr WinogradImplementation(const char* name, const char* kernels, std::int64_t edge, bool line,
                                   const Form (&forms)[N])
      : name_(name), kernels_(kernels), edge_(edge), line_(line), forms_(forms), form_count_(N) {}

  const char* name() const noexcept override { return name_; }
  std::string obstacle(const ProductLayer& layer) const override {
    if (layer.grid == nullptr) return "its sites are not known beforehand";
    if (form_of(layer) == nullptr) return "its kernel is not " + std::string(kernels_);
    const ConvGeometry& geometry = layer.grid->geometry;
    if (geometry.strides[0] != 1 || geometry.strides[1] != 1) return "its strides are not 1";
    const WeightShape& shape = layer.shape;
    const bool whole = shape.inputs % kPiece == 0 && shape.outputs_per_group() % kPiece == 0;
    return shape.groups == 1 || whole ? "" : "the channels of its groups are no multiples of " + std::to_string(kPiece);
  }
  std::string drawback(const ProductLayer& layer) const override {
    if (const std::string exact = exactness_obstacle(); !exact.empty()) return exact;
    if (std::min(edge_, kLargestTile) > layer.largest_tile)
      return "its attribute largest_tile is " + std::to_string(layer.largest_tile);
    if (layer.shape.inputs < kFewestInputs) return "sums of so few channels do not pay for being started";
    return {};
  }
  Offer offer(const ProductLayer& layer) const override {
    const auto tiling = std::make_shared<const Tiling>(tiling_of(layer));
    const auto [least, cost] = best(layer, *tiling);
    return {cost, [this, &layer, tiling, least = least] {
              return std::make_unique<const Winograd>(layer, form_of(layer)->number, axes_of(layer), *tiling, least);
            }};
  }
  std::unique_ptr<const ChosenTiles> prepare_chosen(const ProductLayer& layer, std::int64_t group_sites) const {
    const Axes axes = axes_of(layer);
    const Form& form = *form_of(layer);
    Winograd winograd(layer, form.number, axes, tiling_of(layer), 1);
    return std::make_unique<const ChosenWinograd>(layer, std::move(winograd), form.costs, group_sites);
  }

 private:
  // Null: of this kernel there is none.
  const Form* form_of(const ProductLayer& layer) const {
    const auto [down, across] = layer.grid->geometry.kernel;
    const std::int64_t larger = std::max(down, across);
    const std::int64_t smaller = std::min(down, across);
    const auto fits = [&, larger, smaller](const Form& form) {
      if (line_ || larger <= 2) return larger == form.taps && smaller == (line_ ? 1 : form.taps);
      return larger <= form.taps && smaller >= form.taps - 1;
    };
    const Form* const end = forms_ + form_count_;
    const Form* const found = std::find_if(forms_, end, fits);
    return found != end ? found : nullptr;
  }
  Axes axes_of(const ProductLayer& layer) const {
    const std::int64_t taps = form_of(layer)->taps;
    const auto axis = [&](std::int64_t own) { return own > 1 ? Axis{taps, edge_} : Axis{1, 1}; };
    const auto [down, across] = layer.grid->geometry.kernel;
    return {axis(down), axis(across)};
  }
  Tiling tiling_of(const ProductLayer& layer) const {
    const Axes axes = axes_of(layer);
    return Tiling(*layer.grid, axes.tile(), axes.kernel());
  }
  struct Best {
    std::int64_t least;  // sites of a tile
    double cost;         // of an image
  };
  // Either tiles of few sites are left to the direct kernel, or, lest that reads its weights for them, none.
  Best best(const ProductLayer& layer, const Tiling& tiling) const {
    const TileEstimate estimate(layer);
    const Costs& costs = form_of(layer)->costs;
    const auto with = [&](std::int64_t least) {
      const Tiling::Count count = tiling.count(least);
      const std::int64_t passes = ceil_div(count.tiles, block_tiles(layer, axes_of(layer).points()));
      return Best{least, estimate.by_tiles(costs, count.tiles, count.rest, passes)};
    };
    const Best some = with(estimate.least(costs));
    const Best all = with(1);
    return all.cost < some.cost ? all : some;
  }

  const char* name_;
  const char* kernels_;
  std::int64_t edge_;
  bool line_;
  const Form* forms_;
  std::size_t form_count_;
};

const WinogradImplementation kSquare3("winograd3", "2 x 2", 3, false, kSquares3);
const WinogradImplementation kSquare5("winograd5", "2 x 2", 5, false, kSquares5);
const WinogradImplementation kSquare2("winograd2", "3 x 3 or 5 x 5, or a line less", 2, false, kSquares2);
const WinogradImplementation kSquare4("winograd4", "3 x 3, or a line less", 4, false, kSquares4);
const WinogradImplementation kLine4("winograd4_line", "a line of 3, 5 or 7 taps", 4, true, kLines4);

}  // namespace

std::unique_ptr<const ChosenTiles> make_chosen_tiles(const ProductLayer& layer, std::int64_t group_sites) {
  const WinogradImplementation* best = nullptr;
  double least = Estimate(layer).directly(static_cast<std::int64_t>(layer.grid->sites.size()));
  for (const WinogradImplementation* tiles : {&kSquare4, &kSquare2}) {
    if (!tiles->obstacle(layer).empty() || !tiles->drawback(layer).empty()) continue;
    const double cost = tiles->offer(layer).cost;
    if (cost >= least) continue;
    best = tiles;
    least = cost;
  }
  return best != nullptr ? best->prepare_chosen(layer, group_sites) : nullptr;
}

const Implementation& kWinograd5 = kSquare5;
const Implementation& kWinograd3 = kSquare3;
const Implementation& kWinograd4 = kSquare4;
const Implementation& kWinograd2 = kSquare2;
const Implementation& kWinogradLine4 = kLine4;

}  // namespace perfonnx
