// Between NCHW maps and rows. Squares of positions x channels are turned in shared memory, so that both sides are read
// and written along their lines.
#include "cuda/epilogue.h"

namespace perfonnx::cuda {
namespace {

constexpr int kSquare = 32;
constexpr int kLines = kThreads / kSquare;  // of a square that are moved at once
constexpr int kPitch = kSquare + 1;         // so that columns lie in different banks

// The square of a block: squares of an image's positions follow each other, then those of its channels.
struct Square {
  std::int64_t image;
  std::int64_t position;
  std::int64_t channel;

  __device__ Square(std::int64_t positions, std::int64_t channels) {
    const std::int64_t down = parts(positions, kSquare);
    const std::int64_t across = parts(channels, kSquare);
    const std::int64_t block = blockIdx.x;
    image = block / (down * across);
    channel = block / down % across * kSquare;
    position = block % down * kSquare;
  }
};

Blocks squares(std::int64_t images, std::int64_t positions, std::int64_t channels) {
  return {images * parts(positions, kSquare) * parts(channels, kSquare)};
}

template <typename T>
__global__ void __launch_bounds__(kThreads) compact_kernel(const __grid_constant__ CompactArgs args) {
  auto* turned = reinterpret_cast<T*>(shared_memory());
  const Square square(args.count, args.channels);
  const auto thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kSquare;
  const int line = thread / kSquare;
  const std::int64_t site = square.position + lane;
  if (site < args.count) {
    const std::int64_t pixel = args.sites != nullptr ? args.sites[site] : site;
    const T* x = static_cast<const T*>(args.x) + square.image * args.channels * args.pixels + pixel;
#pragma unroll
    for (int i = 0; i < kSquare; i += kLines) {
      const std::int64_t channel = square.channel + line + i;
      if (channel < args.channels) turned[(line + i) * kPitch + lane] = x[channel * args.pixels];
    }
  }
  __syncthreads();
  const std::int64_t channel = square.channel + lane;
  if (channel >= args.channels) return;
  T* rows = static_cast<T*>(args.rows) + square.image * args.count * args.channels + channel;
#pragma unroll
  for (int i = 0; i < kSquare; i += kLines) {
    const std::int64_t to = square.position + line + i;
    if (to < args.count) rows[to * args.channels] = turned[lane * kPitch + line + i];
  }
}

// kOne: every position has one source and no weight; what several positions need is then on its way at the same time.
template <typename T, bool kOne>
__global__ void __launch_bounds__(kThreads) expand_kernel(const __grid_constant__ ExpandArgs args) {
  auto* turned = reinterpret_cast<T*>(shared_memory());
  const Square square(args.positions, args.channels);
  const auto thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kSquare;
  const int line = thread / kSquare;
  constexpr int kEach = kSquare / kLines;
  const std::int64_t channel = square.channel + lane;
  if (channel < args.channels) {
    const T* rows = static_cast<const T*>(args.rows) + square.image * args.rows_per_image * args.channels + channel;
    const Activation activation(args.act, channel);
    const float fill = args.fill != nullptr ? args.fill[channel] : activation(0.0F);
    float sums[kEach];
    bool some[kEach];
    if constexpr (kOne) {
      std::int32_t sources[kEach];
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const std::int64_t position = square.position + line + i * kLines;
        sources[i] = position < args.positions ? args.source[position] : -1;
        some[i] = sources[i] >= 0;
      }
#pragma unroll
      for (int i = 0; i < kEach; ++i) sums[i] = some[i] ? widen(rows[sources[i] * args.channels]) : 0.0F;
    } else {
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const std::int64_t position = square.position + line + i * kLines;
        sums[i] = 0.0F;
        some[i] = false;
        if (position >= args.positions) continue;
        const std::int32_t* sources = args.source + position * args.per_position;
        const float* weights = args.weight != nullptr ? args.weight + position * args.per_position : nullptr;
#pragma unroll 1
        for (int k = 0; k < static_cast<int>(args.per_position); ++k) {
          const std::int32_t source = sources[k];
          if (source < 0) continue;
          some[i] = true;
          const float value = widen(rows[source * args.channels]);
          sums[i] += weights != nullptr ? weights[k] * value : value;
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      turned[(line + i * kLines) * kPitch + lane] = narrow<T>(some[i] ? activation(sums[i]) : fill);
    }
  }
  __syncthreads();
  const std::int64_t position = square.position + lane;
  if (position >= args.positions) return;
  T* y = static_cast<T*>(args.y) + square.image * args.channels * args.positions + position;
#pragma unroll
  for (int i = 0; i < kSquare; i += kLines) {
    const std::int64_t to = square.channel + line + i;
    if (to < args.channels) y[to * args.positions] = turned[lane * kPitch + line + i];
  }
}

}  // namespace
}  // namespace perfonnx::cuda

using namespace perfonnx::cuda;

int perfonnx_cuda_compact(const CompactArgs* args, void* stream) {
  return with_type_of(args->element, [&](auto value) {
    using T = decltype(value);
    return launch(compact_kernel<T>, squares(args->images, args->count, args->channels), kThreads,
                  kSquare * kPitch * sizeof(T), stream, *args);
  });
}

int perfonnx_cuda_expand(const ExpandArgs* args, void* stream) {
  return with_type_of(args->element, [&](auto value) {
    using T = decltype(value);
    const bool one = args->per_position == 1 && args->weight == nullptr;
    return launch(one ? expand_kernel<T, true> : expand_kernel<T, false>,
                  squares(args->images, args->positions, args->channels), kThreads, kSquare * kPitch * sizeof(T),
                  stream, *args);
  });
}
