// Products of gathered rows: an implicit matrix product, in which the left factor is never written out. A block makes a
// tile of rows (sites) x outputs; slabs of 128 bytes of both factors, the taps of a row one after the other, go through
// shared memory, several of them on their way at once.
#pragma once

#include <algorithm>
#include <type_traits>

#include "cuda/gather.h"
#include "cuda/sums.h"
#include "cuda/tile.h"

namespace perfonnx::cuda {

// The shared memory of a block's stages, and in the end of its sums.
template <typename Sums, int kStages>
constexpr std::size_t kStageBytes =
    std::max(static_cast<std::size_t>(kStages) * (Sums::kRows + Sums::kOutputs) * kSlab,
             static_cast<std::size_t>(Sums::kRows) * (Sums::kOutputs + kSumsPad) * sizeof(float));

template <typename Sums>
__device__ void end_sums(const Product& product, const Work<Sums>& work, const Sums& sums, float* shared, int thread) {
  sums.store(shared);
  if (product.splits > 1) {
    wait_for_cluster();
  } else {
    __syncthreads();
  }
  end_tile(product, work, shared, thread);
  if (product.splits > 1) wait_for_cluster();  // the others may still read
}

// Every thread brings its chunks of both factors.
template <typename Sums, int kStages, int kBlocks, template <typename, int, int> class Gather>
__global__ void __launch_bounds__(Sums::kThreads, kBlocks) product_kernel(const __grid_constant__ Product product) {
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
  const char* weights = tile_weights(product, work, work.first_slab) + own_place;
  const int outputs_left = product.outputs - work.output - own_row;  // nothing is read of those that are not there

  char* shared = shared_memory();
  const auto a_slab = [&](int stage) { return shared + stage * kRows * kSlab; };
  const auto b_slab = [&](int stage) { return shared + kStages * kRows * kSlab + stage * kOutputs * kSlab; };
  int brought = work.first_slab;
  const auto bring = [&](int stage) {
    if (brought < work.end_slab) {
      gather.bring(shared_place(a_slab(stage) + own_place));
      const SharedPlace to = shared_place(b_slab(stage) + own_place);
#pragma unroll
      for (int i = 0; i < kOutputs / kStride; ++i) {
        copy_async(to + i * kStride * kSlab, weights + i * kStride * kSlab, i * kStride < outputs_left ? 1 : 0);
      }
      weights += slab_bytes(product);
      ++brought;
    }
    commit_copies();  // an empty one too: waits count groups
  };

  Sums sums(thread);
#pragma unroll
  for (int stage = 0; stage < kStages - 1; ++stage) bring(stage);
  int stage = 0;
  for (int slab = work.first_slab; slab < work.end_slab; ++slab, stage = stage == kStages - 1 ? 0 : stage + 1) {
    wait_copies<kStages - 2>();
    if constexpr (Sums::kRounds) {
#pragma unroll
      for (int i = 0; i < kRows / kStride; ++i) round_chunk(a_slab(stage) + own_place + i * kStride * kSlab);
    }
    __syncthreads();  // the slab is there for everyone, and everyone is done with the one before
    bring(stage == 0 ? kStages - 1 : stage - 1);
    sums.add(a_slab(stage), b_slab(stage));
  }
  wait_copies<0>();
  __syncthreads();
  end_sums(product, work, sums, reinterpret_cast<float*>(shared), thread);
}

// By warpgroups: every thread brings its chunks of the rows, and one of them asks for the tile's weights of a slab,
// which lie in one piece. Products are only begun, and go on while threads bring the next slabs. That takes as long if
// a slab costs a warp some 200 instructions, which is why addresses are kept in registers.
template <typename Sums, int kStages, int kBlocks>
__global__ void __launch_bounds__(Sums::kThreads, kBlocks) warpgroup_kernel(const __grid_constant__ Product product) {
  if constexpr (!kHasWarpgroups) return;  // never launched there
  using T = typename Sums::Type;
  constexpr int kRows = Sums::kRows;
  constexpr int kOutputs = Sums::kOutputs;
  constexpr int kStride = Sums::kThreads / kChunks;
  static_assert(kStride % kChunks == 0 && kRows % kStride == 0);
  const Work<Sums> work(product);
  if (work.none) return;

  const auto thread = static_cast<int>(threadIdx.x);
  const bool first_warp = __shfl_sync(0xFFFFFFFFU, thread / kWarp, 0) == 0;
  char* shared = shared_memory();
  const SharedPlace there = shared_place(shared + kStageBytes<Sums, kStages>);  // signals: a slab's weights, by stage
  if (thread == 0) {
    for (int stage = 0; stage < kStages; ++stage) start_signal(there + stage * sizeof(Signal));
  }
  __syncthreads();

  const int own_row = thread / kChunks;
  const int own_chunk = thread % kChunks;
  const int own_place = place(own_row, own_chunk);
  ChunkGather<T, kRows / kStride, kStride> gather(product, work.first + own_row, work.made, work.group, work.first_slab,
                                                  own_chunk);
  const char* weights = tile_weights(product, work, 0);
  const int outputs = product.outputs - work.output < kOutputs ? product.outputs - work.output : kOutputs;
  constexpr int kWeights = kStages * kRows * kSlab;  // where they begin
  const SharedPlace own = shared_place(shared + own_place);
  const SharedPlace begin = shared_place(shared);
  int brought = work.first_slab;
  const auto bring = [&](int stage) {
    if (brought < work.end_slab) {
      if (first_warp) {
        copy_whole(begin + kWeights + stage * kOutputs * kSlab, weights + brought * slab_bytes(product),
                   outputs * kSlab, there + stage * sizeof(Signal));
      }
      gather.bring(own + stage * kRows * kSlab);
      ++brought;
    }
    commit_copies();  // an empty one too: waits count groups
  };

  Sums sums(thread);
  const Factor a_first = describe_factor(shared);
  const Factor b_first = describe_factor(shared + kWeights);
  constexpr int kAhead = kStages - 1 - Sums::kPending;
#pragma unroll 1
  for (int stage = 0; stage < kAhead; ++stage) bring(stage);
  int slab = work.first_slab;
  int stage = 0;
  int parity = 0;
  const auto turn = [&](auto set) {
    wait_copies<kAhead - 1>();
    if constexpr (!Sums::kHolds) show_to_products();
    wait_for_signal(there + stage * sizeof(Signal), parity);
    __syncthreads();  // the slab is there for everyone, and everyone is done with those that are not pending
    sums.template begin<set.value>(begin + stage * kRows * kSlab, a_first + stage * (kRows * kSlab / kChunk),
                                   b_first + stage * (kOutputs * kSlab / kChunk), slab == work.first_slab);
    bring(stage < kStages - kAhead ? stage + kAhead : stage + kAhead - kStages);
    wait_products<Sums::kPending>();
    ++slab;
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  };
  if constexpr (Sums::kHolds && Sums::kPending > 0) {
    while (slab + 1 < work.end_slab) {
      turn(std::integral_constant<int, 0>());
      turn(std::integral_constant<int, 1>());
    }
    if (slab < work.end_slab) turn(std::integral_constant<int, 0>());
  } else {
    while (slab < work.end_slab) turn(std::integral_constant<int, 0>());
  }
  wait_products<0>();
  wait_copies<0>();
  __syncthreads();
  end_sums(product, work, sums, reinterpret_cast<float*>(shared), thread);
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
  const std::int32_t image_number = row / product.sites;
  const std::int32_t* entries =
      product.table + static_cast<std::int64_t>(row - image_number * product.sites.value) * product.taps;
  // With several outputs to an input they are one at a time.
  const T* image = static_cast<const T*>(product.rows) + image_number * product.rows_per_image * product.groups +
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
  ChannelsEnd<T, kCount>(product, channel).finish(RowEnd<T>(product, at), sums);
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
  double clocks;  // of a multiprocessor that a slab takes, as measured on an H200
  void (*chunks)(Product);
  void (*elements)(Product);  // null: it cannot
  int capability = 0;         // that it needs, and no other; 0: any
};

// The clocks are those of floats (as TF32, if by tensor cores) and of smaller elements.
template <typename Sums, int kStages, int kBlocks>
constexpr Tile tile(double clocks, double clocks_of_smaller) {
  return {Sums::kRows,
          Sums::kOutputs,
          Sums::kThreads,
          kStageBytes<Sums, kStages>,
          kBlocks,
          sizeof(typename Sums::Type) == 4 ? clocks : clocks_of_smaller,
          product_kernel<Sums, kStages, kBlocks, ChunkGather>,
          product_kernel<Sums, kStages, kBlocks, ElementGather>};
}

// Few channels are brought one by one, for which these are not made.
template <typename Sums, int kStages, int kBlocks>
constexpr Tile warpgroup_tile(double clocks, double clocks_of_smaller) {
  return {Sums::kRows,
          Sums::kOutputs,
          Sums::kThreads,
          kStageBytes<Sums, kStages> + kStages * sizeof(Signal),
          kBlocks,
          sizeof(typename Sums::Type) == 4 ? clocks : clocks_of_smaller,
          warpgroup_kernel<Sums, kStages, kBlocks>,
          nullptr,
          90};
}

// Floats are held in registers, of which three blocks have too few.
template <typename T>
constexpr int kNarrowBlocks = sizeof(T) == 4 ? 2 : 3;

template <typename T>
constexpr Tile kTensorTiles[] = {
    tile<TensorSums<T, 2, 4, 64, 64>, 4, 1>(3270, 3270),
    tile<TensorSums<T, 2, 2, 64, 64>, 3, 2>(1600, 1240),
    tile<TensorSums<T, 2, 2, 64, 32>, 4, 2>(1500, 1100),
    tile<TensorSums<T, 2, 2, 32, 32>, 4, 3>(520, 390),
#ifdef PERFONNX_WARPGROUPS
    warpgroup_tile<WarpgroupSums<T, 2, 256, 1>, 4, 1>(1260, 1160),
    warpgroup_tile<WarpgroupSums<T, 3, 128, 1>, 5, 1>(1290, 1080),
    warpgroup_tile<WarpgroupSums<T, 2, 128, 0>, 3, 2>(850, 775),
    warpgroup_tile<WarpgroupSums<T, 2, 64, 0>, 6 - kNarrowBlocks<T>, kNarrowBlocks<T>>(610, 540),
    warpgroup_tile<WarpgroupSums<T, 1, 64, 0>, 3, 4>(350, 350),
#endif
};

template <typename T>
constexpr Tile kPlainTiles[] = {
    tile<PlainSums<2, 4, 8, 8>, 3, 1>(4700, 4700),
    tile<PlainSums<1, 4, 8, 4>, 4, 2>(1300, 1300),
};

template <typename T, std::size_t kCount>
int launch_tiles(const Tile (&tiles)[kCount], Product product, std::int32_t wanted, void* stream) {
  DeviceLimits limits{};
  if (const int status = device_limits(&limits); status != 0) return status;
  const bool chunks = product.inputs % kPerChunk<T> == 0;
  const auto blocks_of = [&](const Tile& tile) {
    return parts(product.total, tile.rows) * parts(product.outputs, tile.outputs) * product.groups;
  };
  // Rounds of clusters, the last of which may leave multiprocessors fewer blocks than they can hold: their slabs, and
  // what blocks do before and after them. As measured on an H100, larger clusters leave 1 of 32 multiprocessors idle.
  const auto clocks = [&](const Tile& tile, int splits) {
    constexpr double kBlock = 2600.0;
    constexpr double kSum = 0.137;
    constexpr double kSplit = 3600.0;
    const int usable = limits.multiprocessors - (splits > 2 ? limits.multiprocessors / 32 : 0);
    const std::int64_t places = std::max<std::int64_t>(static_cast<std::int64_t>(tile.blocks) * usable / splits, 1);
    const double beside = kBlock + kSum * tile.rows * tile.outputs + (splits > 1 ? kSplit : 0.0);
    const auto round_of = [&](std::int64_t held) {
      return static_cast<double>(parts(product.slabs, splits) * held) * tile.clocks + beside;
    };
    const std::int64_t blocks = blocks_of(tile);
    const std::int64_t rest = blocks % places;
    const double last = rest == 0 ? 0.0 : round_of(std::min<std::int64_t>(parts(rest * splits, usable), tile.blocks));
    return static_cast<double>(blocks / places) * round_of(tile.blocks) + last;
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
  product.across = Divisor(parts(product.outputs, best->outputs) * product.groups);
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
