// The gathered factor of a product: chunks of the rows that a table names, for slabs.
#pragma once

#include "cuda/epilogue.h"
#include "cuda/packed.h"
#include "cuda/product.h"

namespace perfonnx::cuda {

template <typename T>
constexpr int kPerChunk = kChunk / static_cast<int>(sizeof(T));

// The rows of a block's tile that one thread brings: rows `first`, `first` + kStride, ...; of their slabs one chunk. In
// place of rows that are not made come copies of the last one, which nobody reads.
template <int kCount, int kStride>
class GatheredRows {
 public:
  __device__ GatheredRows(const Product& product, std::int32_t first, std::int32_t made)
      : table_(product.table), taps_(product.taps) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const std::int32_t index = first + i * kStride < made ? first + i * kStride : made - 1;
      const std::int32_t row = product.list != nullptr ? product.list[index] : index;
      const std::int32_t image = row / product.sites;
      entries_[i] = (row - image * product.sites.value) * product.taps;
      images_[i] = image * static_cast<std::int32_t>(product.rows_per_image);
    }
  }

  // In the image, -1: there is none.
  __device__ std::int32_t row(int i, int tap) const { return tap < taps_ ? table_[entries_[i] + tap] : -1; }
  // In the batch.
  __device__ std::int32_t in_batch(int i, std::int32_t row) const { return images_[i] + row; }

 private:
  const std::int32_t* table_;
  int taps_;
  std::int32_t entries_[kCount];  // the first of a row
  std::int32_t images_[kCount];   // the first row of its image
};

// Where channels come in whole chunks: they are copied. What a slab asks of a thread decides how fast slabs come, so
// where a chunk lies is found out once for a tap.
template <typename T, int kCount, int kStride>
class ChunkGather {
  static_assert(kCount <= 32);

 public:
  // group: that of the channels.
  __device__ ChunkGather(const Product& product, std::int32_t first, std::int32_t made, int group, int slab, int chunk)
      : rows_(product, first, made),
        channels_(in_registers(static_cast<const char*>(product.rows) +
                               static_cast<std::int64_t>(group) * product.inputs * static_cast<int>(sizeof(T)))),
        per_tap_(product.inputs / kPerChunk<T>),
        row_chunks_(per_tap_ * product.groups),
        tap_((slab * kChunks + chunk) / per_tap_),
        within_((slab * kChunks + chunk) % per_tap_) {
    look_up();
    move_on();
  }

  // The thread's chunks of the next slab, to places kStride rows apart.
  __device__ void bring(SharedPlace to) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const std::uint64_t chunk = from_[i] + static_cast<std::uint32_t>(within_);
      copy_async(to + i * kStride * kSlab, channels_ + chunk * kChunk, valid_ & 1U << i);
    }
    within_ += kChunks;
    if (within_ < per_tap_) return;
    within_ -= per_tap_;
    ++tap_;
    if (within_ >= per_tap_) {  // several taps in a slab
      do {
        within_ -= per_tap_;
        ++tap_;
      } while (within_ >= per_tap_);
      look_up();
    }
    move_on();
  }

 private:
  __device__ void look_up() {
#pragma unroll
    for (int i = 0; i < kCount; ++i) next_[i] = rows_.row(i, tap_);
  }

  // The tap's rows, which were looked up before, are brought from here on; those of the next tap are looked up.
  __device__ void move_on() {
    valid_ = 0;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const bool valid = next_[i] >= 0;
      from_[i] = static_cast<std::uint32_t>(rows_.in_batch(i, valid ? next_[i] : 0) * row_chunks_);
      if (valid) valid_ |= 1U << i;
      next_[i] = rows_.row(i, tap_ + 1);
    }
  }

  GatheredRows<kCount, kStride> rows_;
  const char* channels_;
  std::uint32_t from_[kCount];  // the tap's first chunk
  std::uint32_t valid_;         // a bit for each: there is such a row
  std::int32_t next_[kCount];
  int per_tap_;
  int row_chunks_;
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
        inputs_(product.inputs),
        channels_(static_cast<std::int64_t>(product.inputs) * product.groups),
        factor_((slab * kChunks + chunk) * kPerChunk<T>) {}

  __device__ void bring(SharedPlace to) {
    const int first_tap = factor_ / inputs_;
    const int first_channel = factor_ % inputs_;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      Vector<T, kPerChunk<T>> chunk;
      int tap = first_tap;
      int channel = first_channel;
      std::int32_t row = rows_.row(i, tap);
#pragma unroll
      for (int e = 0; e < kPerChunk<T>; ++e) {
        chunk.values[e] = row >= 0 ? group_[static_cast<std::int64_t>(rows_.in_batch(i, row)) * channels_ + channel]
                                   : narrow<T>(0.0F);
        if (++channel == inputs_) {
          channel = 0;
          row = rows_.row(i, ++tap);
        }
      }
      *shared_pointer<Vector<T, kPerChunk<T>>>(to + i * kStride * kSlab) = chunk;
    }
    factor_ += kChunks * kPerChunk<T>;
  }

 private:
  GatheredRows<kCount, kStride> rows_;
  const T* group_;
  int inputs_;
  std::int64_t channels_;
  int factor_;  // of the first factor of a sum that the thread's chunk holds
};

}  // namespace perfonnx::cuda
