// The tile of a product that a block makes, and how it ends.
#pragma once

#include "cuda/epilogue.h"
#include "cuda/packed.h"
#include "cuda/sums.h"

namespace perfonnx::cuda {

// What a block works at: some slabs of a tile, whose splits are a cluster.
template <typename Sums>
struct Work {
  int split;  // of product.splits
  int group;
  int output;          // the first, in the group
  std::int32_t first;  // row
  std::int32_t made;   // rows in all
  int first_slab;
  int end_slab;
  bool none;  // for the whole cluster

  __device__ explicit Work(const Product& product) {
    int tile = static_cast<int>(blockIdx.x);
    split = 0;
    if (product.splits > 1) {
      split = tile % product.splits;
      tile /= product.splits;
    }
    // Tiles of the same rows follow each other, so that these are found in the second cache.
    const int tile_row = tile / product.across;
    const int column = tile - tile_row * product.across.value;
    group = 0;
    output = column * Sums::kOutputs;
    if (product.groups > 1) {
      const int per_group = product.across.value / product.groups;
      group = column / per_group;
      output -= group * per_group * Sums::kOutputs;
    }
    first = tile_row * Sums::kRows;
    made = product.count != nullptr ? *product.count : product.total;
    first_slab = product.splits > 1 ? product.slabs * split / product.splits : 0;
    end_slab = product.splits > 1 ? product.slabs * (split + 1) / product.splits : product.slabs;
    none = first >= made;
  }
};

// From the packed weights of one slab to those of the next.
__device__ inline std::int64_t slab_bytes(const Product& product) {
  return static_cast<std::int64_t>(product.outputs) * kSlab;
}

// The packed weights of a tile's slab.
template <typename Sums>
__device__ const char* tile_weights(const Product& product, const Work<Sums>& work, int slab) {
  return static_cast<const char*>(product.packed) +
         (static_cast<std::int64_t>(work.group) * product.slabs + slab) * slab_bytes(product) +
         static_cast<std::int64_t>(work.output) * kSlab;
}

// Ends kWide outputs of a row at a time. A thread has the same ones in all its rows, of which several come at once, so
// that what they read is on its way at the same time. kSimple: after bias and activation they are written.
template <int kWide, bool kSimple, typename Sums>
__device__ void end_rows(const Product& product, const Work<Sums>& work, const float* sums, int thread) {
  constexpr int kAcross = Sums::kOutputs / kWide;
  constexpr int kDown = Sums::kThreads / kAcross;
  static_assert(kDown * kAcross == Sums::kThreads);
  constexpr int kAtOnce = 4;
  constexpr int kBetween = kDown * (Sums::kOutputs + kSumsPad);
  const int column = thread % kAcross * kWide;
  if (work.output + column >= product.outputs) return;
  const ChannelsEnd<typename Sums::Type, kWide> channels(
      product, static_cast<std::int64_t>(work.group) * product.outputs + work.output + column);
  [[maybe_unused]] const int row_channels = product.outputs * product.groups;
  // Each block of the cluster ends some of the rows.
  int begin = 0;
  int last = Sums::kRows;
  if (product.splits > 1) {
    begin = Sums::kRows * work.split / product.splits;
    last = Sums::kRows * (work.split + 1) / product.splits;
  }
  const int end = work.made - work.first < last ? work.made - work.first : last;
  for (int row = begin + thread / kAcross; row < end; row += kAtOnce * kDown) {
    const float* own = sums + row * (Sums::kOutputs + kSumsPad) + column;
    [[maybe_unused]] const std::int64_t start = static_cast<std::int64_t>(work.first + row) * row_channels;
    Vector<float, kWide> sum[kAtOnce] = {};
#pragma unroll
    for (int b = 0; b < kAtOnce; ++b) {
      if (row + b * kDown < end) sum[b] = *reinterpret_cast<const Vector<float, kWide>*>(own + b * kBetween);
    }
    for (int other = 1; other < product.splits; ++other) {
      const float* there = in_cluster(own, (work.split + other) % product.splits);
#pragma unroll
      for (int b = 0; b < kAtOnce; ++b) {
        if (row + b * kDown >= end) continue;
        const auto part = *reinterpret_cast<const Vector<float, kWide>*>(there + b * kBetween);
#pragma unroll
        for (int k = 0; k < kWide; ++k) sum[b].values[k] += part.values[k];
      }
    }
#pragma unroll
    for (int b = 0; b < kAtOnce; ++b) {
      const int index = row + b * kDown;
      if (index >= end) continue;
      if constexpr (kSimple) {
        channels.finish(start + b * kDown * row_channels, sum[b].values);
      } else {
        channels.finish(RowEnd<typename Sums::Type>(product, work.first + index), sum[b].values);
      }
    }
  }
}

// The sums of a tile [kRows][kOutputs + kSumsPad] lie in shared memory; the splits' are added up.
template <typename Sums>
__device__ void end_tile(const Product& product, const Work<Sums>& work, const float* sums, int thread) {
  constexpr int kWide = 4;
  const bool simple = product.ending == Ending::kPlain && product.list == nullptr && product.added == nullptr;
  if (product.outputs % kWide != 0) {
    end_rows<1, false>(product, work, sums, thread);
  } else if (simple) {
    end_rows<kWide, true>(product, work, sums, thread);
  } else {
    end_rows<kWide, false>(product, work, sums, thread);
  }
}

}  // namespace perfonnx::cuda
