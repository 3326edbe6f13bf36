#include "cpu/layout.h"

#include <algorithm>
#include <type_traits>
#include <vector>

#include "cpu/half.h"

namespace perfonnx {
namespace {

// Maps are turned in tiles of this many positions and channels: both sides of a tile stay in the first cache.
constexpr std::int64_t kPositions = 64;
constexpr std::int64_t kChannels = 16;
// Positions of a block that needs no tile of its own.
constexpr std::int64_t kLongPositions = 256;

// Fewer blocks of positions than this are split over the channels too, so that a pool of threads stays busy.
constexpr std::int64_t kBlocks = 32;
// So many values are turned in a few microseconds.
constexpr std::int64_t kFewValues = 16 * 1024;

// Up to kChannels elements. A copy of known size is a few vector moves; one of unknown size may become a string
// instruction, which takes longer to start than the whole copy.
template <typename T>
void copy_channels(const T* from, std::int64_t count, T* to) {
  if (count == kChannels) {
    std::copy_n(from, kChannels, to);
  } else {
    for (std::int64_t j = 0; j < count; ++j) to[j] = from[j];
  }
}

// The parts in which a batch of maps is turned, each on any thread.
class Blocks {
 public:
  struct Block {
    std::int64_t image;
    std::int64_t begin;  // first position
    std::int64_t count;  // positions
    std::int64_t channel_begin;
    std::int64_t channel_end;
  };

  Blocks(std::int64_t images, std::int64_t positions, std::int64_t channels, std::int64_t length)
      : positions_(positions),
        channels_(channels),
        length_(length),
        per_image_(ceil_div(positions, length)),
        whole_(images * per_image_),
        parts_(whole_ == 0 || whole_ >= kBlocks ? 1
                                                : std::min(ceil_div(channels, kChannels), ceil_div(kBlocks, whole_))) {}

  // Calls function(block) for each of them; they may run at the same time, unless that takes longer to begin than all
  // of them together.
  template <typename Function>
  void for_each_block(Context& context, const Function& function) const {
    SerialFor serial;
    Context alone{serial, context.allocator};
    const bool few = whole_ * length_ * channels_ <= kFewValues;
    for_each_item(few ? alone : context, whole_ * parts_, [&](std::int64_t i) { function((*this)[i]); });
  }

 private:
  Block operator[](std::int64_t i) const noexcept {
    const std::int64_t begin = i / parts_ % per_image_ * length_;
    const EvenSplit split{ceil_div(channels_, kChannels), parts_};
    return {i / parts_ / per_image_, begin, std::min(length_, positions_ - begin), split.begin(i % parts_) * kChannels,
            std::min(channels_, split.end(i % parts_) * kChannels)};
  }

  std::int64_t positions_;
  std::int64_t channels_;
  std::int64_t length_;
  std::int64_t per_image_;
  std::int64_t whole_;
  std::int64_t parts_;
};

// to[j * to_stride + i] = from[i][offset + j] for i < lines and j < length, at most kChannels.
void turn(const KernelSet& kernels, const float* const* from, std::int64_t offset, std::int64_t lines,
          std::int64_t length, float* to, std::int64_t to_stride) {
  const TurnArgs args{
      from, static_cast<std::size_t>(offset),   static_cast<std::size_t>(lines), static_cast<std::size_t>(length),
      to,   static_cast<std::size_t>(to_stride)};
  kernels.f32->turn(&args);
}
void turn(const KernelSet& kernels, const float* const* from, std::int64_t offset, std::int64_t lines,
          std::int64_t length, Half* to, std::int64_t to_stride) {
  float tile[kChannels][kPositions];
  for (std::int64_t i = 0; i < lines; i += kPositions) {
    const std::int64_t count = std::min(kPositions, lines - i);
    turn(kernels, from + i, offset, count, length, tile[0], kPositions);
    for (std::int64_t j = 0; j < length; ++j) {
      narrow(tile[j], static_cast<std::size_t>(count), to + j * to_stride + i);
    }
  }
}

// One block: `count` pixels from `begin` on of `channels` channels of an image.
void turn_block(const KernelSet& kernels, const float* x, std::int64_t pixels, std::int64_t begin, std::int64_t count,
                std::int64_t channels, float* rows, std::int64_t row_stride) {
  const float* from[kChannels];
  for (std::int64_t j = 0; j < channels; ++j) from[j] = x + j * pixels;
  turn(kernels, from, begin, channels, count, rows, row_stride);
}
void turn_block(const KernelSet& kernels, const Half* x, std::int64_t pixels, std::int64_t begin, std::int64_t count,
                std::int64_t channels, float* rows, std::int64_t row_stride) {
  float tile[kChannels][kPositions];
  for (std::int64_t i = 0; i < count; i += kPositions) {
    const std::int64_t here = std::min(kPositions, count - i);
    for (std::int64_t j = 0; j < channels; ++j) {
      widen(x + j * pixels + begin + i, static_cast<std::size_t>(here), tile[j]);
    }
    turn_block(kernels, tile[0], kPositions, 0, here, channels, rows + i * row_stride, row_stride);
  }
}

template <typename T>
void part_to_rows(const MapPart& part, const T* x, float* rows, const KernelSet& kernels, Context& context) {
  const std::int64_t count = part.end - part.begin;
  const Blocks blocks(part.images, count, part.channels, kLongPositions);
  blocks.for_each_block(context, [&](const Blocks::Block& block) {
    for (std::int64_t c = block.channel_begin; c < block.channel_end; c += kChannels) {
      turn_block(kernels, x + (block.image * part.channels + c) * part.pixels, part.pixels, part.begin + block.begin,
                 block.count, std::min(kChannels, block.channel_end - c),
                 rows + (block.image * count + block.begin) * part.channels + c, part.channels);
    }
  });
}

template <typename T>
void runs_to_map(const RowsToMap& args, T* y, const KernelSet& kernels, Context& context) {
  context.parallel.run(static_cast<std::size_t>(ceil_div(args.channels, kChannels)), [&](std::size_t task) {
    const std::int64_t c = static_cast<std::int64_t>(task) * kChannels;
    const std::int64_t here = std::min(kChannels, args.channels - c);
    for (std::int64_t i = 0; i < args.run_count; ++i) {
      const Run& run = args.runs[i];
      turn(kernels, args.rows + run.entry, c, run.count, here, y + c * args.positions + run.position, args.positions);
    }
  });
}

// X [images, channels, pixels] -> rows [images, count, channels], the pixels that sites lists.
template <typename T>
void pick_rows(const T* x, std::int64_t images, std::int64_t channels, std::int64_t pixels, const std::int32_t* sites,
               std::int64_t sites_count, T* rows, Context& context) {
  const Blocks blocks(images, sites_count, channels, kPositions);
  blocks.for_each_block(context, [&](const Blocks::Block& block) {
    const std::int64_t count = block.count;
    T tile[kPositions][kChannels];
    for (std::int64_t c = block.channel_begin; c < block.channel_end; c += kChannels) {
      const std::int64_t here = std::min(kChannels, block.channel_end - c);
      for (std::int64_t j = 0; j < here; ++j) {
        const T* from = x + (block.image * channels + c + j) * pixels;
        if (sites == nullptr) {
          for (std::int64_t i = 0; i < count; ++i) tile[i][j] = from[block.begin + i];
        } else {
          for (std::int64_t i = 0; i < count; ++i) tile[i][j] = from[sites[block.begin + i]];
        }
      }
      T* to = rows + (block.image * sites_count + block.begin) * channels + c;
      for (std::int64_t i = 0; i < count; ++i) copy_channels(tile[i], here, to + i * channels);
    }
  });
}

// Writes a tile of `count` positions of `channels` channels to Y [channels, positions].
template <typename T>
void write_tile(const float (*tile)[kChannels], std::int64_t count, std::int64_t channels, T* y, std::int64_t positions,
                const KernelSet& kernels) {
  const float* from[kPositions];
  for (std::int64_t i = 0; i < count; ++i) from[i] = tile[i];
  turn(kernels, from, 0, count, channels, y, positions);
}
void write_tile(const Half (*tile)[kChannels], std::int64_t count, std::int64_t channels, Half* y,
                std::int64_t positions, const KernelSet&) {  // halves that only move keep every bit
  for (std::int64_t j = 0; j < channels; ++j) {
    for (std::int64_t i = 0; i < count; ++i) y[j * positions + i] = tile[i][j];
  }
}

// Calls value(n, q, c, count, out) for blocks of `count` channels of every position and writes what it leaves in out
// (room for kChannels) to Y, turned.
template <typename Tile, typename T, typename Value>
void rows_to_nchw(std::int64_t images, std::int64_t channels, std::int64_t positions, T* y, const KernelSet& kernels,
                  Context& context, const Value& value) {
  const Blocks blocks(images, positions, channels, kPositions);
  blocks.for_each_block(context, [&](const Blocks::Block& block) {
    Tile tile[kPositions][kChannels];
    for (std::int64_t c = block.channel_begin; c < block.channel_end; c += kChannels) {
      const std::int64_t here = std::min(kChannels, block.channel_end - c);
      for (std::int64_t i = 0; i < block.count; ++i) value(block.image, block.begin + i, c, here, tile[i]);
      write_tile(tile, block.count, here, y + (block.image * channels + c) * positions + block.begin, positions,
                 kernels);
    }
  });
}

// Each position is one row, or zero.
void expand_copies(const ExpandArgs& args, const float* rows, float* y, const KernelSet& kernels, Context& context) {
  const Interpolation& map = *args.interpolation;
  const std::vector<float> zeros(static_cast<std::size_t>(args.channels), 0.0F);
  const Blocks blocks(args.images, map.positions, args.channels, kLongPositions);
  blocks.for_each_block(context, [&](const Blocks::Block& block) {
    const float* from[kLongPositions];
    for (std::int64_t i = 0; i < block.count; ++i) {
      const std::int32_t row = map.rows[static_cast<std::size_t>(block.begin + i)];
      from[i] = row < 0 ? zeros.data() : rows + (block.image * args.sites + row) * args.channels;
    }
    for (std::int64_t c = block.channel_begin; c < block.channel_end; c += kChannels) {
      turn(kernels, from, c, block.count, std::min(kChannels, block.channel_end - c),
           y + (block.image * args.channels + c) * map.positions + block.begin, map.positions);
    }
  });
}
void expand_copies(const ExpandArgs& args, const Half* rows, Half* y, const KernelSet& kernels, Context& context) {
  const Interpolation& map = *args.interpolation;
  rows_to_nchw<Half>(args.images, args.channels, map.positions, y, kernels, context,
                     [&](std::int64_t n, std::int64_t q, std::int64_t c, std::int64_t count, Half* out) {
                       const std::int32_t row = map.rows[static_cast<std::size_t>(q)];
                       if (row < 0) {
                         std::fill_n(out, count, Half{});
                       } else {
                         copy_channels(rows + (n * args.sites + row) * args.channels + c, count, out);
                       }
                     });
}

template <typename From, typename T>
void expand_typed(const ExpandArgs& args, const From* rows, T* y, const KernelSet& kernels, Context& context) {
  const Interpolation& map = *args.interpolation;
  const std::int64_t depth = map.per_position;
  const float* weights = map.weights.empty() ? nullptr : map.weights.data();
  if constexpr (std::is_same_v<From, T>) {
    if (map.copies() && args.activation == nullptr) return expand_copies(args, rows, y, kernels, context);
  }
  rows_to_nchw<float>(args.images, args.channels, map.positions, y, kernels, context,
                      [&](std::int64_t n, std::int64_t q, std::int64_t c, std::int64_t count, float* out) {
                        std::fill_n(out, count, 0.0F);
                        for (std::int64_t k = q * depth; k < (q + 1) * depth; ++k) {
                          const std::int32_t number = map.rows[static_cast<std::size_t>(k)];
                          if (number < 0) continue;
                          const From* from = rows + (n * args.sites + number) * args.channels + c;
                          const float weight = weights == nullptr ? 1.0F : weights[k];
                          for (std::int64_t j = 0; j < count; ++j) out[j] += weight * to_float(from[j]);
                        }
                        if (args.activation != nullptr) {
                          const Activation& act = *args.activation;
                          for (std::int64_t j = 0; j < count; ++j) out[j] = act(out[j], c + j);
                        }
                      });
}

template <typename From>
void expand_rows(const ExpandArgs& args, void* y, Element element, const KernelSet& kernels, Context& context) {
  const auto* rows = static_cast<const From*>(args.rows);
  with_type_of(element,
               [&](auto type) { expand_typed(args, rows, static_cast<decltype(type)*>(y), kernels, context); });
}

template <typename Function>
void in_pieces(std::int64_t count, Context& context, const Function& convert_piece) {
  constexpr std::int64_t kPiece = 4096;
  for_each_item(context, ceil_div(count, kPiece), [&](std::int64_t piece) {
    const std::int64_t begin = piece * kPiece;
    convert_piece(begin, static_cast<std::size_t>(std::min(kPiece, count - begin)));
  });
}

void to_floats(const Half* from, std::int64_t count, float* to, Context& context) {
  in_pieces(count, context, [&](std::int64_t begin, std::size_t size) { widen(from + begin, size, to + begin); });
}

void from_floats(const float* from, std::int64_t count, Half* to, Context& context) {
  in_pieces(count, context, [&](std::int64_t begin, std::size_t size) { narrow(from + begin, size, to + begin); });
}

}  // namespace

void map_to_rows(const MapPart& part, float* rows, const KernelSet& kernels, Context& context) {
  with_type_of(part.element, [&](auto type) {
    part_to_rows(part, static_cast<const decltype(type)*>(part.data), rows, kernels, context);
  });
}

void rows_to_map(const RowsToMap& args, void* y, Element element, const KernelSet& kernels, Context& context) {
  with_type_of(element, [&](auto type) { runs_to_map(args, static_cast<decltype(type)*>(y), kernels, context); });
}

void compact(const void* x, Element element, std::int64_t images, std::int64_t channels, std::int64_t pixels,
             const std::int32_t* sites, std::int64_t count, void* rows, const KernelSet& kernels, Context& context) {
  with_type_of(element, [&](auto type) {
    using T = decltype(type);
    if (std::is_same_v<T, float> && sites == nullptr) {
      map_to_rows(MapPart{x, element, images, channels, pixels, 0, count}, static_cast<float*>(rows), kernels, context);
    } else {
      pick_rows(static_cast<const T*>(x), images, channels, pixels, sites, count, static_cast<T*>(rows), context);
    }
  });
}

void expand(const ExpandArgs& args, void* y, Element element, const KernelSet& kernels, Context& context) {
  with_type_of(args.row_element, [&](auto type) { expand_rows<decltype(type)>(args, y, element, kernels, context); });
}

FloatRows::FloatRows(const Rows& rows, Context& context) {
  with_type_of(rows.element, [&](auto type) {
    const auto* data = static_cast<const decltype(type)*>(rows.data);
    if constexpr (std::is_same_v<decltype(type), float>) {
      data_ = data;
    } else {
      const std::size_t count =
          checked_product(static_cast<std::size_t>(rows.images * rows.rows), static_cast<std::size_t>(rows.channels));
      copy_.emplace(context, count);
      to_floats(data, static_cast<std::int64_t>(count), copy_->data(), context);
      data_ = copy_->data();
    }
  });
}

FloatResult::FloatResult(void* out, Element element, std::int64_t count, Context& context) : out_(out), count_(count) {
  with_type_of(element, [&](auto type) {
    if constexpr (std::is_same_v<decltype(type), float>) {
      data_ = static_cast<float*>(out);
    } else {
      copy_.emplace(context, static_cast<std::size_t>(count));
      data_ = copy_->data();
    }
  });
}

void FloatResult::finish(Context& context) {
  if (copy_) from_floats(data_, count_, static_cast<Half*>(out_), context);
}

}  // namespace perfonnx
