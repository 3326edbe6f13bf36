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
    // Tiles of the same rows follow each other, so that these are found in the second cache.
    const int across = (product.outputs + Sums::kOutputs - 1) / Sums::kOutputs;
    const int tile = static_cast<int>(blockIdx.x) / product.splits;
    split = static_cast<int>(blockIdx.x) % product.splits;
    group = tile % (across * product.groups) / across;
    output = tile % across * Sums::kOutputs;
    first = tile / (across * product.groups) * Sums::kRows;
    made = product.count != nullptr ? *product.count : product.total;
    first_slab = product.slabs * split / product.splits;
    end_slab = product.slabs * (split + 1) / product.splits;
    none = first >= made;
  }
};

// The packed weights of a tile's first slab; the next is slab_bytes on.
template <typename Sums>
__device__ const char* tile_weights(const Product& product, const Work<Sums>& work, std::int64_t slab_bytes) {
  return static_cast<const char*>(product.packed) + (work.group * product.slabs + work.first_slab) * slab_bytes +
         static_cast<std::int64_t>(work.output) * kSlab;
}

// The sums of a tile [kRows][kOutputs + kSumsPad] lie in shared memory; the splits' are added up.
template <typename Sums>
__device__ void end_tile(const Product& product, const Work<Sums>& work, const float* sums, int thread) {
  constexpr int kRows = Sums::kRows;
  constexpr int kOutputs = Sums::kOutputs;
  // Each block of the cluster ends some of the rows.
  const int begin_row = kRows * work.split / product.splits;
  const int end_row = kRows * (work.split + 1) / product.splits;
  constexpr int kWide = 4;
  const std::int64_t channels = static_cast<std::int64_t>(product.outputs) * product.groups;
  const bool wide = product.outputs % kWide == 0 && channels % kWide == 0;
  // Several at once, so that what they read is on its way at the same time.
  constexpr int kAtOnce = 4;
  const int end = end_row * (kOutputs / kWide);
  for (int i = begin_row * (kOutputs / kWide) + thread; i < end; i += kAtOnce * Sums::kThreads) {
    Vector<float, kWide> sum[kAtOnce] = {};
#pragma unroll 2
    for (int split = 0; split < product.splits; ++split) {
      const float* there = in_cluster(sums, split);
#pragma unroll
      for (int b = 0; b < kAtOnce; ++b) {
        const int item = i + b * Sums::kThreads;
        if (item >= end) continue;
        const int place = item / (kOutputs / kWide) * (kOutputs + kSumsPad) + item % (kOutputs / kWide) * kWide;
        const auto part = *reinterpret_cast<const Vector<float, kWide>*>(there + place);
#pragma unroll
        for (int k = 0; k < kWide; ++k) sum[b].values[k] += part.values[k];
      }
    }
#pragma unroll
    for (int b = 0; b < kAtOnce; ++b) {
      const int item = i + b * Sums::kThreads;
      const int row = item / (kOutputs / kWide);
      const int column = item % (kOutputs / kWide) * kWide;
      if (item >= end || work.first + row >= work.made || work.output + column >= product.outputs) continue;
      const RowEnd<typename Sums::Type> row_end(product, work.first + row);
      const std::int64_t channel = static_cast<std::int64_t>(work.group) * product.outputs + work.output + column;
      if (wide) {
        row_end.template finish<kWide>(sum[b].values, channel);
      } else {
#pragma unroll
        for (int k = 0; k < kWide; ++k) {
          if (work.output + column + k < product.outputs) row_end.template finish<1>(&sum[b].values[k], channel + k);
        }
      }
    }
  }
}

}  // namespace perfonnx::cuda
