#include "cpu/product.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

namespace perfonnx {
namespace {

// Sizes of the blocks; all of them only move work around, none changes a result except by the order of additions.
// A block of sites keeps its gathered inputs (kTilesPerBlock tiles of kGatherDepth floats a site) in the second cache.
// Where they are read in place and are few, a block may have more tiles.
constexpr std::int64_t kTilesPerBlock = 16;
constexpr std::int64_t kMostTilesPerBlock = 64;
constexpr std::int64_t kBlockBytes = 256 * 1024;
constexpr std::int64_t kPointerBytes = 96 * 1024;
// Copying the inputs of a tile pays where a panel of weights is too large for the second cache, so that the sum is cut
// into slices.
constexpr std::int64_t kDirectDepth = 2304;
// Rows a multiple of 4096 bytes apart all lie in one set of the first cache, which then holds fewer than a tile has.
constexpr std::int64_t kAliasedInputs = 1024;

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

class Product {
 public:
  Product(const InputRows& input, const RowTableView& table, const PackedWeights& weights, const Activation* activation,
          float* out, std::int64_t out_stride, const SiteList* list, const AddedRows* added, Context& context)
      : context_(context),
        input_(input),
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
    const std::int64_t tile = site_tile_ * weights.input_channels() * static_cast<std::int64_t>(sizeof(float));
    const std::int64_t most =
        gathers() ? kTilesPerBlock : std::clamp(kBlockBytes / tile, kTilesPerBlock, kMostTilesPerBlock);
    const std::int64_t in_block = std::clamp(kPointerBytes / pointers, std::int64_t{1}, most);
    tiles_ = ceil_div(total_, site_tile_);
    share_out(ceil_div(tiles_, in_block), weights.depthwise() ? 1 : shape.groups * weights.panels_per_group());
  }

  std::int64_t tasks() const noexcept { return blocks_ * panel_parts_; }

  void run(std::int64_t task) const {
    const EvenSplit whole{tiles_, blocks_};
    const std::int64_t block = task / panel_parts_;
    const std::int64_t first = whole.begin(block) * site_tile_;
    const std::int64_t count = std::min(whole.end(block) * site_tile_, total_) - first;
    const EvenSplit tiles{count, ceil_div(count, site_tile_)};
    std::vector<const float*> added_rows(static_cast<std::size_t>(added_ != nullptr ? count : 0));
    for (std::size_t p = 0; p < added_rows.size(); ++p) added_rows[p] = added_row(first + static_cast<std::int64_t>(p));
    const float* const* added = added_ != nullptr ? added_rows.data() : nullptr;
    if (weights_.depthwise()) {
      run_depthwise(first, count, added);
    } else {
      const EvenSplit panels{weights_.shape().groups * weights_.panels_per_group(), panel_parts_};
      const std::int64_t part = task % panel_parts_;
      if (gathers()) {
        run_gathered(first, tiles, added, panels.begin(part), panels.end(part));
      } else {
        run_direct(first, tiles, added, panels.begin(part), panels.end(part));
      }
    }
  }

 private:
  // Chooses the number of blocks, at least `fewest`, and of parts of the panels, by what the threads need when they
  // take one task after the other. A task costs its tiles times its panels, beside that reading the weights of each
  // panel and finding the inputs of each tile.
  void share_out(std::int64_t fewest, std::int64_t panels) {
    constexpr double kWeights = 0.3;  // of a panel, in tiles times panels
    constexpr double kInputs = 0.1;   // of a tile
    const std::int64_t threads = wanted_tasks();
    double least = std::numeric_limits<double>::infinity();
    for (std::int64_t parts = 1; parts <= std::min(panels, threads); ++parts) {
      const std::int64_t evenly = threads / std::gcd(parts, threads);
      for (const std::int64_t blocks : {fewest, std::min(ceil_div(fewest, evenly) * evenly, tiles_)}) {
        const auto in_task = static_cast<double>(ceil_div(tiles_, blocks));
        const double task = static_cast<double>(ceil_div(panels, parts)) * (in_task + kWeights) + in_task * kInputs;
        const double all = task * static_cast<double>(ceil_div(blocks * parts, threads));
        if (all < least) {
          least = all;
          blocks_ = blocks;
          panel_parts_ = parts;
        }
      }
    }
  }

  bool gathers() const {
    const WeightShape& shape = weights_.shape();
    return shape.taps * shape.inputs > kDirectDepth || shape.inputs % kAliasedInputs == 0;
  }

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

  // Calls visit(p, image, rows) for each of `count` sites: its image and its row of the table.
  template <typename Visit>
  void for_each_site(std::int64_t first, std::int64_t count, const Visit& visit) const {
    const std::int64_t image_size = input_.rows_per_image * weights_.input_channels();
    if (list_ != nullptr) {
      for (std::int64_t p = 0; p < count; ++p) {
        const std::int64_t number = list_->numbers[first + p];
        visit(p, input_.data + number / table_.sites * image_size, table_.rows + number % table_.sites * table_.taps);
      }
      return;
    }
    const float* image = input_.data + first / table_.sites * image_size;
    std::int64_t site = first % table_.sites;
    for (std::int64_t p = 0; p < count; ++p, ++site) {
      if (site == table_.sites) {
        site = 0;
        image += image_size;
      }
      visit(p, image, table_.rows + site * table_.taps);
    }
  }

  // [taps][count] pointers to the rows that a tile of sites reads.
  void fill_pointers(std::int64_t first, std::int64_t count, const float** pointers) const {
    const std::int64_t channels = weights_.input_channels();
    for_each_site(first, count, [&](std::int64_t p, const float* image, const std::int32_t* rows) {
      for (std::int64_t t = 0; t < table_.taps; ++t) {
        pointers[t * count + p] = rows[t] < 0 ? input_.zero_row : image + (rows[t] - input_.first_row) * channels;
      }
    });
  }

  // Walks along the sites of a table and through its runs.
  class Runs {
   public:
    Runs(const Product& product, std::int64_t row) : product_(product) {
      const RowTableView& table = product.table_;
      if (product.list_ != nullptr || table.runs->empty()) return;
      site_ = table.first + row % table.sites;
      run_ = std::upper_bound(table.runs->begin(), table.runs->end(), site_,
                              [](std::int64_t site, const SiteRun& run) { return site < run.begin; }) -
             1;
    }
    // How many of `count` rows of the output from `row` on, which do not lie in front of those asked for before, are
    // sites of one run of one image; and the step from one to the next.
    std::int64_t length(std::int64_t row, std::int64_t count, std::int64_t* step) {
      *step = 0;
      const RowTableView& table = product_.table_;
      if (product_.list_ != nullptr || table.runs->empty()) return 1;
      const std::int64_t in_image = row % table.sites;
      const std::int64_t site = table.first + in_image;
      if (site < site_) run_ = table.runs->begin();  // another image
      site_ = site;
      while (run_ + 1 != table.runs->end() && run_[1].begin <= site) ++run_;
      *step = run_->step;
      const std::int64_t end = run_ + 1 != table.runs->end() ? run_[1].begin : table.first + table.sites;
      return std::min({count, end - site, table.sites - in_image});
    }

   private:
    const Product& product_;
    std::int64_t site_ = 0;
    std::vector<SiteRun>::const_iterator run_;
  };

  // What the sites of a run from this one on read, a segment for each tap, or, where `merge`, for each number of taps
  // that lie behind each other. Returns the number of segments.
  std::int64_t fill_segments(std::int64_t row, std::int64_t step, bool merge, Segment* segments) const {
    const std::int64_t channels = weights_.input_channels();
    const auto inputs = static_cast<std::size_t>(weights_.shape().inputs);
    std::int64_t count = 0;
    for_each_site(row, 1, [&](std::int64_t, const float* image, const std::int32_t* rows) {
      for (std::int64_t t = 0; t < table_.taps; ++t) {
        if (merge && t > 0 && rows[t - 1] >= 0 && rows[t] == rows[t - 1] + 1) {
          segments[count - 1].inputs += inputs;
        } else if (rows[t] < 0) {
          segments[count++] = {input_.zero_row, 0, inputs, 0};
        } else {
          segments[count++] = {image + (rows[t] - input_.first_row) * channels, step * channels, inputs, 0};
        }
      }
    });
    return count;
  }

  // The last segment that moves on: what it reads, the others have not read yet.
  static std::size_t newest(const Segment* segments, std::int64_t count) {
    for (std::int64_t i = count; i-- > 0;) {
      if (segments[i].stride != 0) return static_cast<std::size_t>(i);
    }
    return static_cast<std::size_t>(count);
  }

  // Tiles of as many sites each: those of one run together, any other by itself.
  struct Tiles {
    std::int64_t begin;  // first site, from the block's first one on
    std::int64_t sites;  // of each tile
    std::int64_t tiles;
    std::int64_t segments;  // of a run: how many
  };

  // Reads the inputs where they are.
  void run_direct(std::int64_t first, const EvenSplit& split, const float* const* added, std::int64_t panel_begin,
                  std::int64_t panel_end) const {
    const WeightShape& shape = weights_.shape();
    std::vector<Tiles> all;
    std::vector<Segment> segments;
    std::vector<const float*> pointers;
    Runs runs(*this, first);
    for (std::int64_t i = 0; i < split.parts;) {
      Tiles here{split.begin(i), split.end(i) - split.begin(i), 1, 0};
      std::int64_t step = 0;
      const std::int64_t length = runs.length(first + here.begin, split.total - here.begin, &step);
      if (length >= here.sites) {
        const auto alike = [&](std::int64_t k) { return split.end(k) - split.begin(k) == here.sites; };
        while ((here.tiles + 1) * here.sites <= length && alike(i + here.tiles)) ++here.tiles;
        const std::size_t used = segments.size();
        segments.resize(used + static_cast<std::size_t>(shape.taps));
        here.segments = fill_segments(first + here.begin, step, shape.groups == 1, segments.data() + used);
        segments.resize(used + static_cast<std::size_t>(here.segments));
      } else {
        const std::size_t used = pointers.size();
        pointers.resize(used + static_cast<std::size_t>(here.sites * shape.taps));
        fill_pointers(first + here.begin, here.sites, pointers.data() + used);
      }
      all.push_back(here);
      i += here.tiles;
    }
    TileArgs args = tile_args();
    args.taps = static_cast<std::size_t>(shape.taps);
    args.inputs = static_cast<std::size_t>(shape.inputs);
    args.activate = activation_ != nullptr ? 1 : 0;
    const KernelSet& kernels = weights_.kernels();
    for (std::int64_t panel = panel_begin; panel < panel_end; ++panel) {
      const std::int64_t vectors = enter_panel(panel, 0, &args);
      const bool entered = panel == panel_begin || panel % weights_.panels_per_group() == 0;  // new inputs
      args.offset = static_cast<std::size_t>(panel / weights_.panels_per_group() * shape.inputs);
      args.segments = segments.data();
      args.rows = pointers.data();
      for (const Tiles& here : all) {
        const float* const* added_here = added == nullptr ? nullptr : added + here.begin;
        if (here.segments > 0) {
          args.tiles = static_cast<std::size_t>(here.tiles);
          args.segment_count = static_cast<std::size_t>(here.segments);
          args.ahead = entered ? newest(args.segments, here.segments) : args.segment_count;
          run_tile(kernels.strided[vectors - 1], first + here.begin, here.sites, added_here, args);
          args.segments += here.segments;
        } else {
          const float* const* next = args.rows + here.sites * shape.taps;
          const bool alike = &here != &all.back() && (&here)[1].sites == here.sites && (&here)[1].segments == 0;
          args.next_rows = entered && alike ? next : nullptr;
          run_tile(kernels.direct[vectors - 1], first + here.begin, here.sites, added_here, args);
          args.rows = next;
        }
      }
    }
  }

  // Copies the inputs of all tiles first, a slice of the sum over taps and channels at a time.
  void run_gathered(std::int64_t first, const EvenSplit& tiles, const float* const* added, std::int64_t panel_begin,
                    std::int64_t panel_end) const {
    const WeightShape& shape = weights_.shape();
    const EvenSplit slices{shape.taps * shape.inputs, ceil_div(shape.taps * shape.inputs, kGatherDepth)};
    Scratch<float> gathered(context_, static_cast<std::size_t>(tiles.total * kGatherStride));
    TileArgs args = tile_args();
    for (std::int64_t slice = 0; slice < slices.parts; ++slice) {
      const bool last = slice + 1 == slices.parts;
      args.inputs = static_cast<std::size_t>(slices.end(slice) - slices.begin(slice));
      args.accumulate = slice > 0 ? 1 : 0;
      args.activate = activation_ != nullptr && last ? 1 : 0;
      std::int64_t group = -1;
      for (std::int64_t panel = panel_begin; panel < panel_end; ++panel) {
        if (panel / weights_.panels_per_group() != group) {
          group = panel / weights_.panels_per_group();
          gather(first, tiles.total, group, slices.begin(slice), slices.end(slice), gathered.data());
        }
        const TileFunction* functions = weights_.kernels().gathered[enter_panel(panel, slices.begin(slice), &args) - 1];
        for (std::int64_t i = 0; i < tiles.parts; ++i) {
          const std::int64_t begin = tiles.begin(i);
          args.gathered = gathered.data() + begin * kGatherStride;
          run_tile(functions, first + begin, tiles.end(i) - begin, added != nullptr && last ? added + begin : nullptr,
                   args);
        }
      }
    }
  }

  // Inputs `begin` to `end` of the sum over taps and channels of a group, for some sites.
  void gather(std::int64_t first, std::int64_t count, std::int64_t group, std::int64_t begin, std::int64_t end,
              float* out) const {
    const std::int64_t inputs = weights_.shape().inputs;
    const std::int64_t channels = weights_.input_channels();
    const bool mergeable = weights_.shape().groups == 1;
    const std::int64_t first_tap = begin / inputs;
    const std::int64_t first_input = begin % inputs;
    const float* const data_end = input_.data + input_.images * input_.rows_per_image * channels;
    for_each_site(first, count, [&](std::int64_t p, const float* image, const std::int32_t* rows) {
      float* to = out + p * kGatherStride;
      std::int64_t tap = first_tap;
      std::int64_t input = first_input;
      for (std::int64_t left = end - begin; left > 0; ++tap, input = 0) {
        std::int64_t length = std::min(inputs - input, left);
        const std::int64_t offset = group * inputs + input;
        if (rows[tap] < 0) {
          copy_floats(input_.zero_row + offset, length, length, to);
        } else {
          const float* from = image + (rows[tap] - input_.first_row) * channels + offset;
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

  TileArgs tile_args() const {
    TileArgs args{};
    args.out_stride = static_cast<std::size_t>(out_stride_);
    if (activation_ != nullptr) {
      args.negative_slope = activation_->negative_slope;
      args.slopes = activation_->slopes_or_null();
      args.clip_min = activation_->clip_min;
      args.clip_max = activation_->clip_max;
    }
    return args;
  }

  // Points the arguments at a panel, from the given place of the sum on, and returns how many vectors its channels are.
  std::int64_t enter_panel(std::int64_t panel, std::int64_t from, TileArgs* args) const {
    const std::int64_t width = weights_.panel_width();
    const std::int64_t group = panel / weights_.panels_per_group();
    const std::int64_t in_group = panel % weights_.panels_per_group();
    const std::int64_t channels = std::min(width, weights_.outputs_per_group() - in_group * width);
    args->channels = static_cast<std::size_t>(channels);
    args->panel = weights_.panel(group, in_group) + from * width;
    args->bias = weights_.bias(group, in_group);
    args->column = static_cast<std::size_t>(group * weights_.outputs_per_group() + in_group * width);
    return ceil_div(channels, static_cast<std::int64_t>(weights_.kernels().vector));
  }

  void run_tile(const TileFunction* functions, std::int64_t row, std::int64_t sites, const float* const* added,
                TileArgs& args) const {
    args.out = out_ + row * out_stride_ + static_cast<std::int64_t>(args.column);
    args.added = added;
    functions[sites - 1](&args);
  }

  // Marks the taps of a kernel's line, which read the same rows one site later.
  void find_lines(Segment* segments) const {
    for (std::int64_t t = 0; t < table_.taps;) {
      const Segment& first = segments[t];
      std::int64_t length = 1;
      while (first.stride != 0 && length < 5 && t + length < table_.taps &&
             segments[t + length].base == first.base + length * first.stride) {
        ++length;
      }
      segments[t].line = length >= 5 ? 5 : length >= 3 ? 3 : 0;
      t += std::max(segments[t].line, 1);
    }
  }

  void run_depthwise(std::int64_t first, std::int64_t count, const float* const* added) const {
    const WeightShape& shape = weights_.shape();
    std::vector<Segment> segments(static_cast<std::size_t>(shape.taps));
    DepthwiseArgs args{};
    args.segments = segments.data();
    args.taps = static_cast<std::size_t>(shape.taps);
    args.weights = weights_.panel(0, 0);
    args.weight_stride = static_cast<std::size_t>(weights_.stride());
    args.bias = weights_.bias(0, 0);
    args.out_stride = static_cast<std::size_t>(out_stride_);
    args.channels = static_cast<std::size_t>(shape.outputs);
    args.activate = activation_ != nullptr ? 1 : 0;
    if (activation_ != nullptr) {
      args.negative_slope = activation_->negative_slope;
      args.slopes = activation_->slopes_or_null();
      args.clip_min = activation_->clip_min;
      args.clip_max = activation_->clip_max;
    }
    Runs runs(*this, first);
    for (std::int64_t begin = 0; begin < count;) {
      std::int64_t step = 0;
      const std::int64_t sites = runs.length(first + begin, count - begin, &step);
      fill_segments(first + begin, step, false, segments.data());
      find_lines(segments.data());
      args.ahead = newest(segments.data(), shape.taps);
      args.sites = static_cast<std::size_t>(sites);
      args.out = out_ + (first + begin) * out_stride_;
      args.added = added != nullptr ? added + begin : nullptr;
      weights_.kernels().depthwise(&args);
      begin += sites;
    }
  }

  Context& context_;
  const InputRows& input_;
  RowTableView table_;
  const PackedWeights& weights_;
  const Activation* activation_;
  float* out_;
  std::int64_t out_stride_;
  const SiteList* list_;
  const AddedRows* added_;
  std::int64_t total_;
  std::int64_t site_tile_;
  std::int64_t tiles_ = 0;
  std::int64_t blocks_ = 0;
  std::int64_t panel_parts_ = 1;
};

}  // namespace

void sampled_product(const InputRows& input, const RowTableView& table, const PackedWeights& weights,
                     const Activation* activation, float* out, std::int64_t out_stride, Context& context,
                     const SiteList* list, const AddedRows* added) {
  const std::int64_t total = list != nullptr ? list->count : input.images * table.sites;
  if (total == 0) return;
  const Product product(input, table, weights, activation, out, out_stride, list, added, context);
  context.parallel.run(static_cast<std::size_t>(product.tasks()),
                       [&](std::size_t task) { product.run(static_cast<std::int64_t>(task)); });
}

}  // namespace perfonnx
