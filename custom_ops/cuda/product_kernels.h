// Products of gathered rows: an implicit matrix product, in which the left factor is never written out. A block makes a
// tile of rows (sites) x outputs; slabs of 128 bytes of both factors, the taps of a row one after the other, go through
// shared memory, several of them on their way at once.
#pragma once

#include <algorithm>

#include "cuda/gather.h"
#include "cuda/sums.h"
#include "cuda/tile.h"

namespace perfonnx::cuda {

template <typename Sums, int kStages>
constexpr std::size_t shared_bytes() {
  constexpr std::size_t stages = static_cast<std::size_t>(kStages) * (Sums::kRows + Sums::kOutputs) * kSlab;
  constexpr std::size_t sums = static_cast<std::size_t>(Sums::kRows) * (Sums::kOutputs + kSumsPad) * sizeof(float);
  return stages > sums ? stages : sums;
}

// Every thread brings its chunks of both factors.
template <typename Sums, int kStages, int kBlocks, template <typename, int, int> class Gather>
__global__ void __launch_bounds__(Sums::kThreads, kBlocks) product_kernel(const __grid_constant__ Product product) {
  if constexpr (Sums::kBegins && !kHasWarpgroups) return;  // never launched there
  using T = typename Sums::Type;
  constexpr int kRows = Sums::kRows;
  constexpr int kOutputs = Sums::kOutputs;
  constexpr int kStride = Sums::kThreads / kChunks;
  static_assert(kStride % kChunks == 0 && kRows % kStride == 0 && kOutputs % kStride == 0);
  const Work<Sums> work(product);
  if (work.none) return;

  const auto thread = static_cast<int>(threadIdx.x);
  const int own_row = thread / kChunks;
  const int own_chunk = thread % kChunks;
  const int own_place = place(own_row, own_chunk);
  Gather<T, kRows / kStride, kStride> gather(product, work.first + own_row, work.made, work.group, work.first_slab,
                                             own_chunk);
  const std::int64_t slab_bytes = static_cast<std::int64_t>(product.outputs) * kSlab;
  const char* weights = tile_weights(product, work, slab_bytes) + own_place;
  const int outputs_left = product.outputs - work.output - own_row;  // nothing is read of those that are not there

  char* shared = shared_memory();
  const auto a_slab = [&](int stage) { return shared + stage * kRows * kSlab; };
  const auto b_slab = [&](int stage) { return shared + kStages * kRows * kSlab + stage * kOutputs * kSlab; };
  int brought = work.first_slab;
  const auto bring = [&](int stage) {
    if (brought < work.end_slab) {
      gather.bring(a_slab(stage) + own_place);
#pragma unroll
      for (int i = 0; i < kOutputs / kStride; ++i) {
        copy_async(b_slab(stage) + own_place + i * kStride * kSlab, weights + i * kStride * kSlab,
                   i * kStride < outputs_left);
      }
      weights += slab_bytes;
      ++brought;
    }
    commit_copies();  // an empty one too: waits count groups
  };

  Sums sums(thread);
  // Where sums are only begun, their slab is read for one round more.
  constexpr int kAhead = Sums::kBegins ? kStages - 2 : kStages - 1;
#pragma unroll
  for (int stage = 0; stage < kAhead; ++stage) bring(stage);
  int stage = 0;
  for (int slab = work.first_slab; slab < work.end_slab; ++slab, stage = stage == kStages - 1 ? 0 : stage + 1) {
    const int next = stage < kStages - kAhead ? stage + kAhead : stage + kAhead - kStages;
    wait_copies<kAhead - 1>();
    if constexpr (Sums::kRounds) {
#pragma unroll
      for (int i = 0; i < kRows / kStride; ++i) round_chunk(a_slab(stage) + own_place + i * kStride * kSlab);
    }
    if constexpr (Sums::kBegins) {
      show_to_products();
      __syncthreads();  // the slab is there for everyone, and everyone is done with the last but one
      sums.begin(a_slab(stage), b_slab(stage), slab == work.first_slab);
      bring(next);
      wait_products<1>();
    } else {
      __syncthreads();  // the slab is there for everyone, and everyone is done with the one before
      bring(next);
      sums.add(a_slab(stage), b_slab(stage));
    }
  }
  if constexpr (Sums::kBegins) wait_products<0>();
  wait_copies<0>();
  __syncthreads();

  auto* out = reinterpret_cast<float*>(shared);
  sums.store(out);
  if (product.splits > 1) {
    wait_for_cluster();
  } else {
    __syncthreads();
  }
  end_tile(product, work, out, thread);
  if (product.splits > 1) wait_for_cluster();  // the others may still read
}

// --- one input for each output -------------------------------------------------------------------------------------

// A thread makes kCount outputs of a row; packed [taps][outputs * groups] are floats.
template <typename T, int kCount>
__global__ void __launch_bounds__(kThreads) depthwise_kernel(const __grid_constant__ Product product) {
  const std::int64_t channels = static_cast<std::int64_t>(product.outputs) * product.groups;
  const std::int64_t per_row = channels / kCount;
  const std::int64_t item = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const std::int64_t index = item / per_row;
  const std::int32_t made = product.count != nullptr ? *product.count : product.total;
  if (index >= made) return;
  const std::int64_t channel = item % per_row * kCount;
  const auto at = static_cast<std::int32_t>(index);
  const std::int32_t row = product.list != nullptr ? product.list[at] : at;
  const std::int32_t* entries = product.table + static_cast<std::int64_t>(row % product.sites) * product.taps;
  // With several outputs to an input they are one at a time.
  const T* image = static_cast<const T*>(product.rows) + row / product.sites * product.rows_per_image * product.groups +
                   channel / product.outputs;
  const float* weights = static_cast<const float*>(product.packed) + channel;
  float sums[kCount] = {};
#pragma unroll 4
  for (int tap = 0; tap < product.taps; ++tap) {
    const std::int32_t from = entries[tap];
    if (from < 0) continue;
    const auto x =
        *reinterpret_cast<const Vector<T, kCount>*>(image + static_cast<std::int64_t>(from) * product.groups);
    const auto w = *reinterpret_cast<const Vector<float, kCount>*>(weights + tap * channels);
#pragma unroll
    for (int i = 0; i < kCount; ++i) sums[i] += widen(x.values[i]) * w.values[i];
  }
  const RowEnd<T> end(product, at);
  end.template finish<kCount>(sums, channel);
}

// Whether rows may be copied in chunks, and vectors of four elements read and written everywhere.
inline bool aligned_enough(const Product& product, std::size_t element_bytes) {
  return aligned(product.rows, kChunk) && aligned(product.out, 4 * element_bytes) &&
         aligned(product.added, 4 * element_bytes) && aligned(product.bias, 16) && aligned(product.sums, 16);
}

template <typename T>
int launch_depthwise(const Product& product, void* stream) {
  const std::int64_t channels = static_cast<std::int64_t>(product.outputs) * product.groups;
  constexpr int kWide = 4;
  const bool wide = product.outputs == 1 && channels % kWide == 0;
  const std::int64_t items = product.total * (wide ? channels / kWide : channels);
  auto* kernel = wide ? depthwise_kernel<T, kWide> : depthwise_kernel<T, 1>;
  return launch(kernel, {parts(items, kThreads)}, kThreads, 0, stream, product);
}

// --- which kernel --------------------------------------------------------------------------------------------------

// A tile's kernels, both ways of gathering.
struct Tile {
  int rows;
  int outputs;
  int threads;
  std::size_t shared;
  int blocks;     // that a multiprocessor holds at once
  double clocks;  // of a multiprocessor that a slab takes, as measured on an H100 and an H200
  void (*chunks)(Product);
  void (*elements)(Product);  // null: it cannot
  int capability = 0;         // that it needs, and no other; 0: any
};

template <typename Sums, int kStages, int kBlocks>
constexpr Tile tile(double clocks) {
  return {Sums::kRows,
          Sums::kOutputs,
          Sums::kThreads,
          shared_bytes<Sums, kStages>(),
          kBlocks,
          clocks,
          product_kernel<Sums, kStages, kBlocks, ChunkGather>,
          product_kernel<Sums, kStages, kBlocks, ElementGather>};
}

// Few channels are brought one by one, for which these are not made.
template <typename Sums, int kStages, int kBlocks>
constexpr Tile warpgroup_tile(double clocks) {
  return {Sums::kRows,
          Sums::kOutputs,
          Sums::kThreads,
          shared_bytes<Sums, kStages>(),
          kBlocks,
          clocks,
          product_kernel<Sums, kStages, kBlocks, ChunkGather>,
          nullptr,
          90};
}

template <typename T>
constexpr Tile kTensorTiles[] = {
    tile<TensorSums<T, 2, 4, 64, 64>, 4, 1>(3270),
    tile<TensorSums<T, 2, 2, 64, 64>, 3, 2>(1600),
    tile<TensorSums<T, 2, 2, 64, 32>, 4, 2>(1500),
    tile<TensorSums<T, 2, 2, 32, 32>, 4, 3>(650),
#ifdef PERFONNX_WARPGROUPS
    warpgroup_tile<WarpgroupSums<T, 2, 64, 256>, 4, 1>(2020),
    warpgroup_tile<WarpgroupSums<T, 2, 128, 128>, 4, 1>(2600),
    warpgroup_tile<WarpgroupSums<T, 2, 64, 128>, 3, 2>(1380),
    warpgroup_tile<WarpgroupSums<T, 2, 64, 64>, 3, 3>(920),
    warpgroup_tile<WarpgroupSums<T, 4, 64, 128>, 4, 1>(2300),
#endif
};

template <typename T>
constexpr Tile kPlainTiles[] = {
    tile<PlainSums<2, 4, 8, 8>, 3, 1>(4700),
    tile<PlainSums<1, 4, 8, 4>, 4, 2>(1300),
};

template <typename T, std::size_t kCount>
int launch_tiles(const Tile (&tiles)[kCount], Product product, std::int32_t wanted, void* stream) {
  DeviceLimits limits{};
  if (const int status = device_limits(&limits); status != 0) return status;
  const bool chunks = product.inputs % kPerChunk<T> == 0;
  const auto blocks_of = [&](const Tile& tile) {
    return parts(product.total, tile.rows) * parts(product.outputs, tile.outputs) * product.groups;
  };
  // Whole rounds of clusters: their slabs, and what a block does before and after them, in the time of others where a
  // multiprocessor holds several. As measured on an H100, larger clusters leave 1 of 32 multiprocessors idle.
  const auto clocks = [&](const Tile& tile, int splits) {
    constexpr double kSplit = 8000.0;
    const int usable = limits.multiprocessors - (splits > 2 ? limits.multiprocessors / 32 : 0);
    const std::int64_t places = std::max<std::int64_t>(static_cast<std::int64_t>(tile.blocks) * usable / splits, 1);
    const std::int64_t rounds = parts(blocks_of(tile), places);
    const double slabs = static_cast<double>(parts(product.slabs, splits)) * tile.clocks * tile.blocks;
    const double beside = tile.rows * tile.outputs / (4.0 * tile.blocks) + (splits > 1 ? kSplit : 0.0);
    return static_cast<double>(rounds) * (slabs + beside);
  };
  const Tile* best = nullptr;
  double least = 0.0;
  for (std::size_t i = 0; i < kCount; ++i) {
    const Tile& tile = tiles[i];
    if (tile.shared > limits.shared_bytes || !(chunks || tile.elements != nullptr)) continue;
    if (tile.capability != 0 && tile.capability != limits.capability) continue;
    if (wanted % 100 != 0 && wanted % 100 != static_cast<std::int32_t>(i) + 1) continue;
    for (int splits = 1; splits <= (limits.capability >= 90 ? kLargestCluster : 1); splits *= 2) {
      if (splits > product.slabs || (wanted >= 100 && wanted / 100 != splits)) continue;
      if (const double time = clocks(tile, splits); best == nullptr || time < least) {
        best = &tile;
        least = time;
        product.splits = splits;
      }
    }
  }
  if (best == nullptr) return kInvalidValue;
  return launch(chunks ? best->chunks : best->elements, {blocks_of(*best) * product.splits, product.splits},
                best->threads, best->shared, stream, product);
}

template <typename T>
int launch_product_of(Product product, Math math, std::int32_t tile, void* stream) {
  if (!aligned_enough(product, sizeof(T))) return kInvalidValue;
  if (is_depthwise(product.inputs, product.groups)) return launch_depthwise<T>(product, stream);
  const std::int64_t factors = static_cast<std::int64_t>(product.taps) * product.inputs;
  product.slabs = static_cast<std::int32_t>((factors * static_cast<int>(sizeof(T)) + kSlab - 1) / kSlab);
  if constexpr (sizeof(T) == 4) {
    if (math == kStrict) return launch_tiles<T>(kPlainTiles<T>, product, tile, stream);
  }
  return launch_tiles<T>(kTensorTiles<T>, product, tile, stream);
}

}  // namespace perfonnx::cuda
