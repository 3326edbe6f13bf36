#include "engine/layout.h"

#include <algorithm>

namespace perfonnx {
namespace {

// Maps are turned in tiles of this many positions and channels: both sides of a tile stay in the first cache.
constexpr std::int64_t kPositions = 64;
constexpr std::int64_t kChannels = 16;

template <typename T>
void nchw_to_rows_typed(const T* x, std::int64_t images, std::int64_t channels, std::int64_t pixels, float* rows,
                        Context& context) {
  const std::int64_t blocks = ceil_div(pixels, kPositions);
  for_each_item(context, images * blocks, [&](std::int64_t block) {
    const std::int64_t n = block / blocks;
    const std::int64_t begin = block % blocks * kPositions;
    const std::int64_t count = std::min(kPositions, pixels - begin);
    float tile[kPositions][kChannels];
    for (std::int64_t c = 0; c < channels; c += kChannels) {
      const std::int64_t here = std::min(kChannels, channels - c);
      for (std::int64_t j = 0; j < here; ++j) {
        const T* from = x + (n * channels + c + j) * pixels + begin;
        for (std::int64_t i = 0; i < count; ++i) tile[i][j] = to_float(from[i]);
      }
      float* to = rows + (n * pixels + begin) * channels + c;
      if (here == kChannels) {
        for (std::int64_t i = 0; i < count; ++i) std::copy_n(tile[i], kChannels, to + i * channels);
      } else {
        for (std::int64_t i = 0; i < count; ++i) std::copy_n(tile[i], here, to + i * channels);
      }
    }
  });
}

// Calls value(n, q, c, count, out) for blocks of `count` channels of every position and writes what it leaves in out
// (room for kChannels) to Y, turned.
template <typename T, typename Value>
void rows_to_nchw(std::int64_t images, std::int64_t channels, std::int64_t positions, T* y, Context& context,
                  const Value& value) {
  const std::int64_t blocks = ceil_div(positions, kPositions);
  for_each_item(context, images * blocks, [&](std::int64_t block) {
    const std::int64_t n = block / blocks;
    const std::int64_t begin = block % blocks * kPositions;
    const std::int64_t count = std::min(kPositions, positions - begin);
    float tile[kPositions][kChannels];
    for (std::int64_t c = 0; c < channels; c += kChannels) {
      const std::int64_t here = std::min(kChannels, channels - c);
      for (std::int64_t i = 0; i < count; ++i) value(n, begin + i, c, here, tile[i]);
      for (std::int64_t j = 0; j < here; ++j) {
        T* to = y + (n * channels + c + j) * positions + begin;
        for (std::int64_t i = 0; i < count; ++i) to[i] = from_float<T>(tile[i][j]);
      }
    }
  });
}

template <typename T>
void expand_typed(const ExpandArgs& args, T* y, Context& context) {
  const Interpolation& map = *args.interpolation;
  const std::int64_t depth = map.per_position;
  const float* weights = map.weights.empty() ? nullptr : map.weights.data();
  const auto row = [&](std::int64_t n, std::int32_t number, std::int64_t c) {
    return args.rows + (n * args.sites + number) * args.row_stride + c;
  };
  const auto activate = [&](float* out, std::int64_t count) {
    if (args.activation == nullptr) return;
    const Activation act = *args.activation;
    for (std::int64_t j = 0; j < count; ++j) out[j] = act(out[j]);
  };
  if (map.copies()) {
    rows_to_nchw(args.images, args.channels, map.positions, y, context,
                 [&](std::int64_t n, std::int64_t q, std::int64_t c, std::int64_t count, float* out) {
                   const std::int32_t number = map.rows[static_cast<std::size_t>(q)];
                   if (number >= 0) {
                     std::copy_n(row(n, number, c), count, out);
                   } else if (args.fill != nullptr) {
                     std::copy_n(args.fill + c, count, out);
                     return;
                   } else {
                     std::fill_n(out, count, 0.0F);
                   }
                   activate(out, count);
                 });
    return;
  }
  rows_to_nchw(args.images, args.channels, map.positions, y, context,
               [&](std::int64_t n, std::int64_t q, std::int64_t c, std::int64_t count, float* out) {
                 std::fill_n(out, count, 0.0F);
                 for (std::int64_t k = q * depth; k < (q + 1) * depth; ++k) {
                   const std::int32_t number = map.rows[static_cast<std::size_t>(k)];
                   if (number < 0) continue;
                   const float* from = row(n, number, c);
                   const float weight = weights == nullptr ? 1.0F : weights[k];
                   for (std::int64_t j = 0; j < count; ++j) out[j] += weight * from[j];
                 }
                 activate(out, count);
               });
}

template <typename T>
void combine_typed(const CombineArgs& args, T* y, Context& context) {
  rows_to_nchw(args.images, args.channels, args.positions, y, context,
               [&](std::int64_t n, std::int64_t q, std::int64_t c, std::int64_t count, float* out) {
                 const std::int64_t i = n * args.positions + q;
                 const float alpha = args.alpha[i];
                 const float gain = 1.0F + args.center_gain * alpha;
                 const float* centre = args.centre + i * args.centre_stride + c;
                 const float* bias = args.bias + c;
                 for (std::int64_t j = 0; j < count; ++j) out[j] = gain * centre[j] + bias[j];
                 if (args.ring_row[i] >= 0) {
                   const float* ring = args.ring + args.ring_row[i] * args.channels + c;
                   for (std::int64_t j = 0; j < count; ++j) out[j] += alpha * ring[j];
                 }
                 if (args.activation != nullptr) {
                   const Activation act = *args.activation;
                   for (std::int64_t j = 0; j < count; ++j) out[j] = act(out[j]);
                 }
               });
}

}  // namespace

void nchw_to_rows(const void* x, Element element, std::int64_t images, std::int64_t channels, std::int64_t pixels,
                  float* rows, Context& context) {
  if (element == Element::kHalf) {
    nchw_to_rows_typed(static_cast<const Half*>(x), images, channels, pixels, rows, context);
  } else {
    nchw_to_rows_typed(static_cast<const float*>(x), images, channels, pixels, rows, context);
  }
}

void expand(const ExpandArgs& args, void* y, Element element, Context& context) {
  if (element == Element::kHalf) {
    expand_typed(args, static_cast<Half*>(y), context);
  } else {
    expand_typed(args, static_cast<float*>(y), context);
  }
}

void combine_radius_adaptive(const CombineArgs& args, void* y, Element element, Context& context) {
  if (element == Element::kHalf) {
    combine_typed(args, static_cast<Half*>(y), context);
  } else {
    combine_typed(args, static_cast<float*>(y), context);
  }
}

}  // namespace perfonnx
