// Products of gathered rows: an implicit matrix product, in which the left factor is never written out. A block makes a
// tile of rows (sites) x outputs; slabs of 128 bytes of both factors, the taps of a row one after the other, go through
// shared memory, several of them on their way at once. A row of a slab is eight chunks of 16 bytes, and chunk c of row
// r lies at place c ^ (r % 8), so that eight rows' chunks lie in different banks.
#pragma once

#include "cuda/epilogue.h"
#include "cuda/packed.h"
#include "cuda/product.h"
#include "cuda/warpgroup.h"

namespace perfonnx::cuda {

// Floats between the rows of sums in shared memory, beside the outputs: stores of fragments then meet all banks.
constexpr int kSumsPad = 8;

// A chunk of floats in shared memory becomes TF32.
__device__ inline void round_chunk(char* chunk) {
  auto* values = reinterpret_cast<Vector<std::uint32_t, 4>*>(chunk);
  Vector<std::uint32_t, 4> rounded = *values;
#pragma unroll
  for (std::uint32_t& bits : rounded.values) bits = round_tf32(bits);
  *values = rounded;
}

template <typename T>
constexpr int kPerChunk = kChunk / static_cast<int>(sizeof(T));

// --- the inner products of a slab ----------------------------------------------------------------------------------

// Of a block of kWarpsM x kWarpsN warps, each of which has kM x kN sums, by the tensor cores.
template <typename T, int kWarpsM, int kWarpsN, int kM, int kN>
class TensorSums {
 public:
  using Type = T;
  static constexpr bool kRounds = sizeof(T) == 4;  // floats become TF32
  static constexpr bool kBegins = false;
  static constexpr int kRows = kWarpsM * kM;
  static constexpr int kOutputs = kWarpsN * kN;
  static constexpr int kThreads = kWarpsM * kWarpsN * kWarp;

  __device__ explicit TensorSums(int thread)
      : lane_(thread % kWarp),
        row_(thread / kWarp / kWarpsN * kM),
        output_(thread / kWarp % kWarpsN * kN),
        // The rows of fragments differ by multiples of eight: their chunks move alike.
        a_place_(place(row_ + lane_ % 16, lane_ / 16)),
        b_place_(place(output_ + lane_ % 8 + lane_ / 16 * 8, lane_ / 8 % 2)) {
#pragma unroll
    for (int i = 0; i < kM / 16; ++i) {
#pragma unroll
      for (int j = 0; j < kN / 8; ++j) {
#pragma unroll
        for (int k = 0; k < 4; ++k) sums_[i][j][k] = 0.0F;
      }
    }
  }

  __device__ void add(const char* a_slab, const char* b_slab) {
#pragma unroll
    for (int step = 0; step < kChunks / 2; ++step) {
      std::uint32_t a[kM / 16][4];
      std::uint32_t b[kN / 8][2];
#pragma unroll
      for (int i = 0; i < kM / 16; ++i) {
        load_matrices(a[i], a_slab + i * 16 * kSlab + (a_place_ ^ (step * 2 * kChunk)));
      }
#pragma unroll
      for (int j = 0; j < kN / 16; ++j) {
        std::uint32_t two[4];
        load_matrices(two, b_slab + j * 16 * kSlab + (b_place_ ^ (step * 2 * kChunk)));
        b[2 * j][0] = two[0];
        b[2 * j][1] = two[1];
        b[2 * j + 1][0] = two[2];
        b[2 * j + 1][1] = two[3];
      }
#pragma unroll
      for (int i = 0; i < kM / 16; ++i) {
#pragma unroll
        for (int j = 0; j < kN / 8; ++j) multiply_matrices<T>(sums_[i][j], a[i], b[j]);
      }
    }
  }

  // sums [kRows][kOutputs + kSumsPad]
  __device__ void store(float* sums) const {
#pragma unroll
    for (int i = 0; i < kM / 16; ++i) {
#pragma unroll
      for (int j = 0; j < kN / 8; ++j) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float* to =
              sums + (row_ + i * 16 + half * 8 + lane_ / 4) * (kOutputs + kSumsPad) + output_ + j * 8 + 2 * (lane_ % 4);
          *reinterpret_cast<Vector<float, 2>*>(to) = {{sums_[i][j][2 * half], sums_[i][j][2 * half + 1]}};
        }
      }
    }
  }

 private:
  int lane_;
  int row_;
  int output_;
  int a_place_;
  int b_place_;
  float sums_[kM / 16][kN / 8][4];
};

// Of a block of kGroups warpgroups, each of which has kM x kN sums, by products that go on while slabs are brought.
template <typename T, int kGroups, int kM, int kN>
class WarpgroupSums {
 public:
  using Type = T;
  static constexpr bool kRounds = sizeof(T) == 4;  // floats become TF32
  static constexpr bool kBegins = true;
  static constexpr int kRows = kGroups * kM;
  static constexpr int kOutputs = kN;
  static constexpr int kSums = kM * kN / kWarpgroup;  // of a thread
  static constexpr int kThreads = kGroups * kWarpgroup;

  __device__ explicit WarpgroupSums(int thread) : thread_(thread) {}  // the first products define the sums

  __device__ void begin(const char* a_slab, const char* b_slab, bool first) {
    const char* a = a_slab + thread_ / kWarpgroup * kM * kSlab;
    arrive_for_products();
#pragma unroll
    for (int step = 0; step < kChunks / 2; ++step) {
#pragma unroll
      for (int i = 0; i < kM / 64; ++i) {
        begin_product<T>(sums_[i], a + i * 64 * kSlab + step * 2 * kChunk, b_slab + step * 2 * kChunk,
                         !first || step > 0);
      }
    }
    commit_products();
  }

  // sums [kRows][kOutputs + kSumsPad]
  __device__ void store(float* sums) const {
    const int lane = thread_ % kWarp;
    const int row = thread_ / kWarpgroup * kM + thread_ % kWarpgroup / kWarp * 16 + lane / 4;
#pragma unroll
    for (int i = 0; i < kM / 64; ++i) {
#pragma unroll
      for (int k = 0; k < kN / 2; k += 2) {
        float* to = sums + (row + i * 64 + k / 2 % 2 * 8) * (kOutputs + kSumsPad) + k / 4 * 8 + 2 * (lane % 4);
        *reinterpret_cast<Vector<float, 2>*>(to) = {{sums_[i][k], sums_[i][k + 1]}};
      }
    }
  }

 private:
  int thread_;
  float sums_[kM / 64][kN / 2];
};

// By plain multiply-adds of floats: kM x kN sums a thread, 8 x 4 threads a warp, whose rows and outputs alternate.
template <int kWarpsM, int kWarpsN, int kM, int kN>
class PlainSums {
 public:
  using Type = float;
  static constexpr bool kRounds = false;
  static constexpr bool kBegins = false;
  static constexpr int kRows = kWarpsM * 8 * kM;
  static constexpr int kOutputs = kWarpsN * 4 * kN;
  static constexpr int kThreads = kWarpsM * kWarpsN * kWarp;

  __device__ explicit PlainSums(int thread)
      : row_(thread / kWarp / kWarpsN * 8 + thread % kWarp / 4), output_(thread / kWarp % kWarpsN * 4 + thread % 4) {
#pragma unroll
    for (int i = 0; i < kM; ++i) {
#pragma unroll
      for (int j = 0; j < kN; ++j) sums_[i][j] = 0.0F;
    }
  }

  __device__ void add(const char* a_slab, const char* b_slab) {
#pragma unroll 2
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      Vector<float, 4> a[kM];
#pragma unroll
      for (int i = 0; i < kM; ++i) {
        a[i] = *reinterpret_cast<const Vector<float, 4>*>(a_slab + place(row_ + i * 8 * kWarpsM, chunk));
      }
#pragma unroll
      for (int j = 0; j < kN; ++j) {
        const auto b = *reinterpret_cast<const Vector<float, 4>*>(b_slab + place(output_ + j * 4 * kWarpsN, chunk));
#pragma unroll
        for (int k = 0; k < 4; ++k) {
#pragma unroll
          for (int i = 0; i < kM; ++i) sums_[i][j] += a[i].values[k] * b.values[k];
        }
      }
    }
  }

  __device__ void store(float* sums) const {
#pragma unroll
    for (int i = 0; i < kM; ++i) {
#pragma unroll
      for (int j = 0; j < kN; ++j) {
        sums[(row_ + i * 8 * kWarpsM) * (kOutputs + kSumsPad) + output_ + j * 4 * kWarpsN] = sums_[i][j];
      }
    }
  }

 private:
  int row_;
  int output_;
  float sums_[kM][kN];
};

// --- what comes in -------------------------------------------------------------------------------------------------

// The rows of a block's tile that one thread brings: rows `first`, `first` + kStride, ...; of their slabs one chunk.
template <int kCount, int kStride>
class GatheredRows {
 public:
  __device__ GatheredRows(const Product& product, std::int32_t first, std::int32_t made) : table_(product.table) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const std::int32_t index = first + i * kStride;
      entries_[i] = -1;
      images_[i] = 0;
      if (index >= made) continue;
      const std::int32_t row = product.list != nullptr ? product.list[index] : index;
      entries_[i] = row % product.sites * product.taps;
      images_[i] = row / product.sites * static_cast<std::int32_t>(product.rows_per_image);
    }
  }

  // In the image, -1: there is none.
  __device__ std::int32_t row(int i, int tap, int taps) const {
    return entries_[i] >= 0 && tap < taps ? table_[entries_[i] + tap] : -1;
  }
  // In the batch.
  __device__ std::int64_t in_batch(int i, std::int32_t row) const { return images_[i] + row; }

 private:
  const std::int32_t* table_;
  std::int32_t entries_[kCount];  // the first of a row; -1: there is no such row
  std::int32_t images_[kCount];   // the first row of its image
};

// Where channels come in whole chunks: they are copied.
template <typename T, int kCount, int kStride>
class ChunkGather {
 public:
  // group: that of the channels.
  __device__ ChunkGather(const Product& product, std::int32_t first, std::int32_t made, int group, int slab, int chunk)
      : rows_(product, first, made),
        channels_(static_cast<const char*>(product.rows) +
                  static_cast<std::int64_t>(group) * product.inputs * static_cast<int>(sizeof(T))),
        taps_(product.taps),
        per_tap_(product.inputs / kPerChunk<T>),
        row_bytes_(product.inputs * product.groups * static_cast<int>(sizeof(T))),
        tap_((slab * kChunks + chunk) / per_tap_),
        within_((slab * kChunks + chunk) % per_tap_) {
    look_up();
  }

  // The thread's chunks of the next slab, to places kStride rows apart.
  __device__ void bring(char* to) {
    const char* from = channels_ + within_ * kChunk;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const bool valid = entries_[i] >= 0;
      const std::int64_t offset = rows_.in_batch(i, valid ? entries_[i] : 0) * row_bytes_;
      copy_async(to + i * kStride * kSlab, from + offset, valid);
    }
    within_ += kChunks;
    if (within_ >= per_tap_) {
      do {
        within_ -= per_tap_;
        ++tap_;
      } while (within_ >= per_tap_);
      look_up();  // a slab ahead of its use
    }
  }

 private:
  __device__ void look_up() {
#pragma unroll
    for (int i = 0; i < kCount; ++i) entries_[i] = rows_.row(i, tap_, taps_);
  }

  GatheredRows<kCount, kStride> rows_;
  const char* channels_;
  std::int32_t entries_[kCount];
  int taps_;
  int per_tap_;
  int row_bytes_;
  int tap_;
  int within_;
};

// For any number of channels: one element after the other.
template <typename T, int kCount, int kStride>
class ElementGather {
 public:
  __device__ ElementGather(const Product& product, std::int32_t first, std::int32_t made, int group, int slab,
                           int chunk)
      : rows_(product, first, made),
        group_(static_cast<const T*>(product.rows) + static_cast<std::int64_t>(group) * product.inputs),
        taps_(product.taps),
        inputs_(product.inputs),
        channels_(static_cast<std::int64_t>(product.inputs) * product.groups),
        factor_((slab * kChunks + chunk) * kPerChunk<T>) {}

  __device__ void bring(char* to) {
    const int first_tap = factor_ / inputs_;
    const int first_channel = factor_ % inputs_;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      Vector<T, kPerChunk<T>> chunk;
      int tap = first_tap;
      int channel = first_channel;
      std::int32_t row = rows_.row(i, tap, taps_);
#pragma unroll
      for (int e = 0; e < kPerChunk<T>; ++e) {
        chunk.values[e] = row >= 0 ? group_[rows_.in_batch(i, row) * channels_ + channel] : narrow<T>(0.0F);
        if (++channel == inputs_) {
          channel = 0;
          row = rows_.row(i, ++tap, taps_);
        }
      }
      *reinterpret_cast<Vector<T, kPerChunk<T>>*>(to + i * kStride * kSlab) = chunk;
    }
    factor_ += kChunks * kPerChunk<T>;
  }

 private:
  GatheredRows<kCount, kStride> rows_;
  const T* group_;
  int taps_;
  int inputs_;
  std::int64_t channels_;
  int factor_;  // of the first factor of a sum that the thread's chunk holds
};

// --- the kernel ----------------------------------------------------------------------------------------------------

template <typename Sums, int kStages>
constexpr std::size_t shared_bytes() {
  constexpr std::size_t stages = static_cast<std::size_t>(kStages) * (Sums::kRows + Sums::kOutputs) * kSlab;
  constexpr std::size_t sums = static_cast<std::size_t>(Sums::kRows) * (Sums::kOutputs + kSumsPad) * sizeof(float);
  return stages > sums ? stages : sums;
}

// What a block works at: some slabs of a tile. Blocks of a cluster are kPair tiles of different rows and the same
// outputs, times the splits.
template <typename Sums, int kPair>
struct Work {
  int rank;   // in the cluster
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
    const auto block = static_cast<int>(blockIdx.x);
    const int cluster = block / (kPair * product.splits);
    rank = block % (kPair * product.splits);
    split = rank / kPair;
    group = cluster % (across * product.groups) / across;
    output = cluster % across * Sums::kOutputs;
    const std::int32_t pair = cluster / (across * product.groups) * kPair;
    first = (pair + rank % kPair) * Sums::kRows;
    made = product.count != nullptr ? *product.count : product.total;
    first_slab = product.slabs * split / product.splits;
    end_slab = product.slabs * (split + 1) / product.splits;
    none = pair * Sums::kRows >= made;
  }
};

// The packed weights of a tile's first slab; the next is slab_bytes on.
template <typename Sums, int kPair>
__device__ const char* tile_weights(const Product& product, const Work<Sums, kPair>& work, std::int64_t slab_bytes) {
  return static_cast<const char*>(product.packed) + (work.group * product.slabs + work.first_slab) * slab_bytes +
         static_cast<std::int64_t>(work.output) * kSlab;
}

// The sums of a tile [kRows][kOutputs + kSumsPad] lie in shared memory; the splits' are added up.
template <typename Sums, int kPair>
__device__ void end_tile(const Product& product, const Work<Sums, kPair>& work, const float* sums, int thread) {
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
      const float* there = in_cluster(sums, split * kPair + work.rank % kPair);
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

// Every thread brings its chunks of both factors.
template <typename Sums, int kStages, int kBlocks, template <typename, int, int> class Gather>
__global__ void __launch_bounds__(Sums::kThreads, kBlocks) product_kernel(const __grid_constant__ Product product) {
  if constexpr (Sums::kBegins && !kHasWarpgroups) return;  // never launched there
  using T = typename Sums::Type;
  constexpr int kRows = Sums::kRows;
  constexpr int kOutputs = Sums::kOutputs;
  constexpr int kStride = Sums::kThreads / kChunks;
  static_assert(kStride % kChunks == 0 && kRows % kStride == 0 && kOutputs % kStride == 0);
  const Work<Sums, 1> work(product);
  if (work.none) return;

  const auto thread = static_cast<int>(threadIdx.x);
  const int own_row = thread / kChunks;
  const int own_chunk = thread % kChunks;
  const int own_place = place(own_row, own_chunk);
  Gather<T, kRows / kStride, kStride> gather(product, work.first + own_row, work.made, work.group, work.first_slab,
                                             own_chunk);
  const std::int64_t slab_bytes = static_cast<std::int64_t>(product.outputs) * kSlab;
  const char* weights = tile_weights(product, work, slab_bytes) + own_place;

  char* shared = shared_memory();
  const auto a_slab = [&](int stage) { return shared + stage * kRows * kSlab; };
  const auto b_slab = [&](int stage) { return shared + kStages * kRows * kSlab + stage * kOutputs * kSlab; };
  int brought = work.first_slab;
  const auto bring = [&](int stage) {
    if (brought < work.end_slab) {
      gather.bring(a_slab(stage) + own_place);
#pragma unroll
      for (int i = 0; i < kOutputs / kStride; ++i) {
        const bool valid = work.output + own_row + i * kStride < product.outputs;
        copy_async(b_slab(stage) + own_place + i * kStride * kSlab,
                   valid ? weights + i * kStride * kSlab : static_cast<const char*>(product.packed), valid);
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

// A warpgroup of its own brings the rows, and one of its threads asks for the weights. Those come to kPair blocks,
// whose outputs are the same, at once: each asks for its part of them.
template <typename Sums, int kStages, int kPair, int kBlocks>
__global__ void __launch_bounds__(Sums::kThreads + kWarpgroup, kBlocks)
    parted_kernel(const __grid_constant__ Product product) {
  if constexpr (!kHasWarpgroups) return;  // never launched there
  using T = typename Sums::Type;
  constexpr int kRows = Sums::kRows;
  constexpr int kOutputs = Sums::kOutputs;
  constexpr int kStride = kWarpgroup / kChunks;
  constexpr int kGroups = Sums::kThreads / kWarpgroup;
  constexpr int kThreads = Sums::kThreads + kWarpgroup;
  // Registers of a thread: what those who bring slabs can do without, those who multiply take. They must not ask for
  // more than the block starts with, which would never come.
  constexpr int kAtStart = 65536 / (kThreads * kBlocks) / 8 * 8;
  constexpr int kMultiplying = Sums::kSums / 8 * 8 + (kBlocks == 1 ? 48 : 32);
  constexpr int kBringing = (kThreads / kWarpgroup * kAtStart - kGroups * kMultiplying) / 8 * 8;
  constexpr bool kShares = kMultiplying > kAtStart;
  static_assert(kBringing >= 48);
  const Work<Sums, kPair> work(product);
  if (work.none) return;

  const auto thread = static_cast<int>(threadIdx.x);
  char* shared = shared_memory();
  const auto a_slab = [&](int stage) { return shared + stage * kRows * kSlab; };
  const auto b_slab = [&](int stage) { return shared + kStages * kRows * kSlab + stage * kOutputs * kSlab; };
  auto* there = reinterpret_cast<Signal*>(shared + kStages * (kRows + kOutputs) * kSlab);  // a slab, in its stage
  Signal* done = there + kStages;                                                          // with it
  const int slabs = work.end_slab - work.first_slab;
  const int pair_rank = work.rank % kPair;
  const int pair_first = work.rank - pair_rank;
  if (thread == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      start_signal(there + stage, kWarpgroup + 1);
      start_signal(done + stage, kPair * kGroups);
    }
  }
  wait_for_cluster();

  if (thread >= Sums::kThreads) {
    if constexpr (kShares) give_registers<kBringing>();
    const int own = thread - Sums::kThreads;
    const int own_place = place(own / kChunks, own % kChunks);
    ChunkGather<T, kRows / kStride, kStride> gather(product, work.first + own / kChunks, work.made, work.group,
                                                    work.first_slab, own % kChunks);
    const int outputs = product.outputs - work.output < kOutputs ? product.outputs - work.output : kOutputs;
    const int part_first = pair_rank * (kOutputs / kPair);
    const int part = outputs - part_first < kOutputs / kPair ? outputs - part_first : kOutputs / kPair;
    const std::int64_t slab_bytes = static_cast<std::int64_t>(product.outputs) * kSlab;
    const char* weights = tile_weights(product, work, slab_bytes) + part_first * kSlab;
    // A slab is on its way while this many others are waited for; then two lie ready for the sums to begin.
    constexpr int kAhead = kStages - 2;
    for (int slab = 0; slab < slabs + kAhead; ++slab) {
      if (slab >= kAhead) {
        const int stage = (slab - kAhead) % kStages;
        wait_copies<kAhead - 1>();
        if constexpr (Sums::kRounds) {
#pragma unroll
          for (int i = 0; i < kRows / kStride; ++i) round_chunk(a_slab(stage) + own_place + i * kStride * kSlab);
        }
        show_to_products();
        arrive(there + stage);
      }
      if (slab < slabs) {
        const int stage = slab % kStages;
        if (slab >= kStages) wait_for_signal(done + stage, (slab / kStages - 1) % 2);
        if (own == 0) {
          announce(there + stage, outputs * kSlab);
          if (part > 0) {
            copy_to_blocks<kPair>(b_slab(stage) + part_first * kSlab, weights, part * kSlab, there + stage, pair_first);
          }
          weights += slab_bytes;
        }
        gather.bring(a_slab(stage) + own_place);
      }
      commit_copies();
    }
    wait_for_cluster();  // the sums are there
    wait_for_cluster();  // and read
  } else {
    if constexpr (kShares) take_registers<kMultiplying>();
    Sums sums(thread);
    // A stage is free for everyone who brings something.
    const auto leave = [&](int slab) {
      if (thread % kWarpgroup < kPair) arrive_in_cluster(done + slab % kStages, pair_first + thread % kWarpgroup);
    };
    for (int slab = 0; slab < slabs; ++slab) {
      const int stage = slab % kStages;
      wait_for_signal(there + stage, slab / kStages % 2);
      sums.begin(a_slab(stage), b_slab(stage), slab == 0);
      wait_products<1>();
      if (slab > 0) leave(slab - 1);
    }
    wait_products<0>();
    wait_for_threads(Sums::kThreads);
    auto* out = reinterpret_cast<float*>(shared);
    sums.store(out);
    wait_for_cluster();
    end_tile(product, work, out, thread);
    wait_for_cluster();  // the others may still read
  }
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
  double clocks;  // that a slab takes where a multiprocessor has no other: measured on an H100 at 1.97 GHz
  void (*chunks)(Product);
  void (*elements)(Product);  // null: it cannot
  int capability = 0;         // that it needs, and no other; 0: any
  int pair = 1;               // tiles of rows that make a cluster
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

template <typename Sums, int kStages, int kPair, int kBlocks>
constexpr Tile parted_tile(double clocks) {
  constexpr std::size_t kSignals = 2 * kStages * sizeof(Signal);
  constexpr std::size_t kSlabs = static_cast<std::size_t>(kStages) * (Sums::kRows + Sums::kOutputs) * kSlab + kSignals;
  constexpr std::size_t kLargest = shared_bytes<Sums, kStages>();
  return {Sums::kRows,
          Sums::kOutputs,
          Sums::kThreads + kWarpgroup,
          kSlabs > kLargest ? kSlabs : kLargest,
          kBlocks,
          clocks,
          parted_kernel<Sums, kStages, kPair, kBlocks>,
          nullptr,
          90,
          kPair};
}

template <typename T>
constexpr Tile kTensorTiles[] = {
    tile<TensorSums<T, 2, 4, 64, 64>, 4, 1>(3270),
    tile<TensorSums<T, 2, 2, 64, 64>, 3, 2>(1600),
    tile<TensorSums<T, 2, 2, 64, 32>, 4, 2>(1100),
    tile<TensorSums<T, 2, 2, 32, 32>, 4, 3>(600),
#ifdef PERFONNX_WARPGROUPS
    warpgroup_tile<WarpgroupSums<T, 2, 64, 256>, 4, 1>(2020),
    warpgroup_tile<WarpgroupSums<T, 2, 128, 128>, 4, 1>(2600),
    warpgroup_tile<WarpgroupSums<T, 2, 64, 128>, 3, 2>(1380),
    warpgroup_tile<WarpgroupSums<T, 2, 64, 64>, 3, 3>(900),
    // Their clocks are not known yet: taken by their numbers alone.
    parted_tile<WarpgroupSums<T, 2, 64, 256>, 4, 1, 1>(1e9),
    parted_tile<WarpgroupSums<T, 2, 64, 256>, 4, 2, 1>(1e9),
    parted_tile<WarpgroupSums<T, 2, 64, 256>, 4, 4, 1>(1e9),
    parted_tile<WarpgroupSums<T, 2, 128, 128>, 4, 2, 1>(1e9),
    parted_tile<WarpgroupSums<T, 2, 64, 128>, 6, 4, 1>(1e9),
    parted_tile<WarpgroupSums<T, 2, 64, 64>, 4, 4, 2>(1e9),
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
    const std::int64_t down = parts(parts(product.total, tile.rows), tile.pair) * tile.pair;
    return down * parts(product.outputs, tile.outputs) * product.groups;
  };
  // Whole rounds of blocks: their slabs, and what a block does before and after them.
  const auto clocks = [&](const Tile& tile, int splits) {
    constexpr double kBeside = 5000.0;
    constexpr double kSplit = 4000.0;
    const std::int64_t rounds =
        parts(blocks_of(tile) * splits, static_cast<std::int64_t>(tile.blocks) * limits.multiprocessors);
    const auto slabs = static_cast<double>(parts(product.slabs, splits));
    return static_cast<double>(rounds) * (slabs * tile.clocks * tile.blocks + kBeside + (splits > 1 ? kSplit : 0.0));
  };
  const Tile* best = nullptr;
  double least = 0.0;
  for (std::size_t i = 0; i < kCount; ++i) {
    const Tile& tile = tiles[i];
    if (tile.shared > limits.shared_bytes || !(chunks || tile.elements != nullptr)) continue;
    if (tile.capability != 0 && tile.capability != limits.capability) continue;
    if (wanted % 100 != 0 && wanted % 100 != static_cast<std::int32_t>(i) + 1) continue;
    for (int splits = 1; splits <= (limits.capability >= 90 ? kLargestCluster : 1); splits *= 2) {
      if (splits * tile.pair > kLargestCluster) continue;
      if (splits > product.slabs || (wanted >= 100 && wanted / 100 != splits)) continue;
      if (const double time = clocks(tile, splits); best == nullptr || time < least) {
        best = &tile;
        least = time;
        product.splits = splits;
      }
    }
  }
  if (best == nullptr) return kInvalidValue;
  return launch(chunks ? best->chunks : best->elements,
                {blocks_of(*best) * product.splits, best->pair * product.splits}, best->threads, best->shared, stream,
                product);
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
