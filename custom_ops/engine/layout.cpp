#include "engine/layout.h"

#include <algorithm>
#include <type_traits>

namespace perfonnx {
namespace {

// Maps are turned in tiles of this many positions and channels: both sides of a tile stay in the first cache.
constexpr std::int64_t kPositions = 64;
constexpr std::int64_t kChannels = 16;

// Fewer blocks of positions than this are split over the channels too, so that a pool of threads stays busy.
constexpr std::int64_t kBlocks = 32;

template <typename To, typename From>
To convert(From value) {
  if constexpr (std::is_same_v<To, From>) {
    return value;  // halves that only move keep every bit
  } else {
    return from_float<To>(to_float(value));
  }
}

// Up to kPositions elements that lie side by side, converted at once where they have to be.
template <typename To, typename From>
class Strip {
 public:
  Strip(const From* from, std::int64_t) : from_(from) {}
  To operator[](std::int64_t i) const { return convert<To>(from_[i]); }

 private:
  const From* from_;
};
template <>
class Strip<float, Half> {
 public:
  Strip(const Half* from, std::int64_t count) { widen(from, static_cast<std::size_t>(count), floats_); }
  float operator[](std::int64_t i) const { return floats_[i]; }

 private:
  float floats_[kPositions];
};

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

  Blocks(std::int64_t images, std::int64_t positions, std::int64_t channels)
      : positions_(positions),
        channels_(channels),
        per_image_(ceil_div(positions, kPositions)),
        whole_(images * per_image_),
        parts_(whole_ == 0 || whole_ >= kBlocks ? 1
                                                : std::min(ceil_div(channels, kChannels), ceil_div(kBlocks, whole_))) {}

  std::int64_t count() const noexcept { return whole_ * parts_; }
  Block operator[](std::int64_t i) const noexcept {
    const std::int64_t begin = i / parts_ % per_image_ * kPositions;
    const EvenSplit split{ceil_div(channels_, kChannels), parts_};
    return {i / parts_ / per_image_, begin, std::min(kPositions, positions_ - begin),
            split.begin(i % parts_) * kChannels, std::min(channels_, split.end(i % parts_) * kChannels)};
  }

 private:
  std::int64_t positions_;
  std::int64_t channels_;
  std::int64_t per_image_;
  std::int64_t whole_;
  std::int64_t parts_;
};

template <typename From, typename To>
void map_to_rows(const From* x, std::int64_t images, std::int64_t channels, std::int64_t pixels,
                 const std::int32_t* sites, std::int64_t sites_count, To* rows, Context& context) {
  const Blocks blocks(images, sites_count, channels);
  for_each_item(context, blocks.count(), [&](std::int64_t number) {
    const Blocks::Block block = blocks[number];
    const std::int64_t count = block.count;
    To tile[kPositions][kChannels];
    for (std::int64_t c = block.channel_begin; c < block.channel_end; c += kChannels) {
      const std::int64_t here = std::min(kChannels, block.channel_end - c);
      for (std::int64_t j = 0; j < here; ++j) {
        const From* from = x + (block.image * channels + c + j) * pixels;
        if (sites == nullptr) {
          const Strip<To, From> strip(from + block.begin, count);
          for (std::int64_t i = 0; i < count; ++i) tile[i][j] = strip[i];
        } else {
          for (std::int64_t i = 0; i < count; ++i) tile[i][j] = convert<To>(from[sites[block.begin + i]]);
        }
      }
      To* to = rows + (block.image * sites_count + block.begin) * channels + c;
      for (std::int64_t i = 0; i < count; ++i) copy_channels(tile[i], here, to + i * channels);
    }
  });
}

// Calls value(n, q, c, count, out) for blocks of `count` channels of every position and writes what it leaves in out
// (room for kChannels) to Y, turned.
template <typename Tile, typename T, typename Value>
void rows_to_nchw(std::int64_t images, std::int64_t channels, std::int64_t positions, T* y, Context& context,
                  const Value& value) {
  const Blocks blocks(images, positions, channels);
  for_each_item(context, blocks.count(), [&](std::int64_t number) {
    const Blocks::Block block = blocks[number];
    Tile tile[kPositions][kChannels];
    for (std::int64_t c = block.channel_begin; c < block.channel_end; c += kChannels) {
      const std::int64_t here = std::min(kChannels, block.channel_end - c);
      for (std::int64_t i = 0; i < block.count; ++i) value(block.image, block.begin + i, c, here, tile[i]);
      for (std::int64_t j = 0; j < here; ++j) {
        T* to = y + (block.image * channels + c + j) * positions + block.begin;
        if constexpr (std::is_same_v<T, Half> && std::is_same_v<Tile, float>) {
          float strip[kPositions];
          for (std::int64_t i = 0; i < block.count; ++i) strip[i] = tile[i][j];
          narrow(strip, static_cast<std::size_t>(block.count), to);
        } else {
          for (std::int64_t i = 0; i < block.count; ++i) to[i] = convert<T>(tile[i][j]);
        }
      }
    }
  });
}

template <typename From, typename T>
void expand_typed(const ExpandArgs& args, T* y, Context& context) {
  const Interpolation& map = *args.interpolation;
  const std::int64_t depth = map.per_position;
  const float* weights = map.weights.empty() ? nullptr : map.weights.data();
  const auto row = [&](std::int64_t n, std::int32_t number, std::int64_t c) {
    return static_cast<const From*>(args.rows) + (n * args.sites + number) * args.row_stride + c;
  };
  const auto activate = [&](auto* out, std::int64_t count) {
    if (args.activation == nullptr) return;
    const Activation act = *args.activation;
    for (std::int64_t j = 0; j < count; ++j) out[j] = convert<std::decay_t<decltype(*out)>>(act(to_float(out[j])));
  };
  if (map.copies()) {
    rows_to_nchw<From>(args.images, args.channels, map.positions, y, context,
                       [&](std::int64_t n, std::int64_t q, std::int64_t c, std::int64_t count, From* out) {
                         const std::int32_t number = map.rows[static_cast<std::size_t>(q)];
                         if (number >= 0) {
                           copy_channels(row(n, number, c), count, out);
                         } else if (args.fill != nullptr) {
                           for (std::int64_t j = 0; j < count; ++j) out[j] = convert<From>(args.fill[c + j]);
                           return;
                         } else {
                           std::fill_n(out, count, From{});
                         }
                         activate(out, count);
                       });
    return;
  }
  rows_to_nchw<float>(args.images, args.channels, map.positions, y, context,
                      [&](std::int64_t n, std::int64_t q, std::int64_t c, std::int64_t count, float* out) {
                        std::fill_n(out, count, 0.0F);
                        for (std::int64_t k = q * depth; k < (q + 1) * depth; ++k) {
                          const std::int32_t number = map.rows[static_cast<std::size_t>(k)];
                          if (number < 0) continue;
                          const From* from = row(n, number, c);
                          const float weight = weights == nullptr ? 1.0F : weights[k];
                          for (std::int64_t j = 0; j < count; ++j) out[j] += weight * to_float(from[j]);
                        }
                        activate(out, count);
                      });
}

template <typename From>
void expand_rows(const ExpandArgs& args, void* y, Element element, Context& context) {
  if (element == Element::kHalf) {
    expand_typed<From>(args, static_cast<Half*>(y), context);
  } else {
    expand_typed<From>(args, static_cast<float*>(y), context);
  }
}

template <typename Function>
void in_pieces(std::int64_t count, Context& context, const Function& convert_piece) {
  constexpr std::int64_t kPiece = 4096;
  for_each_item(context, ceil_div(count, kPiece), [&](std::int64_t piece) {
    const std::int64_t begin = piece * kPiece;
    convert_piece(begin, static_cast<std::size_t>(std::min(kPiece, count - begin)));
  });
}

}  // namespace

void nchw_to_rows(const void* x, Element element, std::int64_t images, std::int64_t channels, std::int64_t pixels,
                  float* rows, Context& context) {
  if (element == Element::kHalf) {
    map_to_rows(static_cast<const Half*>(x), images, channels, pixels, nullptr, pixels, rows, context);
  } else {
    map_to_rows(static_cast<const float*>(x), images, channels, pixels, nullptr, pixels, rows, context);
  }
}

void compact(const void* x, Element element, std::int64_t images, std::int64_t channels, std::int64_t pixels,
             const std::int32_t* sites, std::int64_t count, void* rows, Context& context) {
  if (element == Element::kHalf) {
    map_to_rows(static_cast<const Half*>(x), images, channels, pixels, sites, count, static_cast<Half*>(rows), context);
  } else {
    map_to_rows(static_cast<const float*>(x), images, channels, pixels, sites, count, static_cast<float*>(rows),
                context);
  }
}

void to_floats(const Half* from, std::int64_t count, float* to, Context& context) {
  in_pieces(count, context, [&](std::int64_t begin, std::size_t size) { widen(from + begin, size, to + begin); });
}

void from_floats(const float* from, std::int64_t count, Half* to, Context& context) {
  in_pieces(count, context, [&](std::int64_t begin, std::size_t size) { narrow(from + begin, size, to + begin); });
}

void expand(const ExpandArgs& args, void* y, Element element, Context& context) {
  if (args.row_element == Element::kHalf) {
    expand_rows<Half>(args, y, element, context);
  } else {
    expand_rows<float>(args, y, element, context);
  }
}

}  // namespace perfonnx
