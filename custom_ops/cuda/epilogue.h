// How the sums of a product end: the fused rest of a layer.
#pragma once

#include <utility>

#include "cuda/product.h"

namespace perfonnx::cuda {

// The activation of one channel. NaN stays NaN; with a slope of zero a negative infinity becomes zero.
class Activation {
 public:
  __device__ Activation(const Act& act, std::int64_t channel)
      : slope_(act.slopes != nullptr ? act.negative_slope * act.slopes[channel] : act.negative_slope),
        lower_(act.clip_min),
        upper_(act.clip_max) {
    if (slope_ == 0.0F) {
      slope_ = 1.0F;
      lower_ = larger(lower_, 0.0F);
    }
  }

  __device__ float operator()(float v) const {
    if (v < 0.0F) v *= slope_;
    return smaller(larger(v, lower_), upper_);
  }

 private:
  float slope_;
  float lower_;
  float upper_;
};

// kCount neighbouring elements at once.
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Vector {
  T values[kCount];
};

// A row of the product on its way out.
template <typename T>
struct RowEnd {
  std::int64_t start;  // its first element
  const T* added = nullptr;
  float alpha = 0.0F;

  // index: of the rows that are made.
  __device__ RowEnd(const Product& product, std::int32_t index) {
    const std::int32_t row = product.list != nullptr ? product.list[index] : index;
    const std::int64_t channels = static_cast<std::int64_t>(product.outputs) * product.groups;
    start = row * channels;
    if (product.ending == Ending::kPlain) {
      if (product.added != nullptr) {
        const std::int32_t image = row / product.sites;
        const std::int32_t site = row - image * product.sites.value;
        const std::int32_t source = product.added_source != nullptr ? product.added_source[site] : site;
        if (source >= 0) {
          added = static_cast<const T*>(product.added) + (image * product.added_per_image + source) * channels;
        }
      }
    } else {
      alpha = product.alpha[row];
    }
  }
};

// How the sums of kCount channels from `channel` on end in any row; the pointers are aligned for that many.
template <typename T, int kCount>
class ChannelsEnd {
 public:
  __device__ ChannelsEnd(const Product& product, std::int64_t channel)
      : ChannelsEnd(product, channel, std::make_integer_sequence<int, kCount>()) {
    if (product.bias != nullptr) bias_ = *reinterpret_cast<const Vector<float, kCount>*>(product.bias + channel);
  }

  // Writes the sums of a row that starts at `start`, where nothing but bias and activation follows.
  __device__ void finish(std::int64_t start, const float* sums) const {
    float v[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) v[i] = sums[i] + bias_.values[i];
    write(start, v);
  }

  // Writes the sums of any row.
  __device__ void finish(const RowEnd<T>& row, const float* sums) const {
    float v[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) v[i] = sums[i];
    if (product_.ending == Ending::kCentre) {
      const float factor = 1.0F + product_.center_gain * row.alpha;
#pragma unroll
      for (int i = 0; i < kCount; ++i) v[i] *= factor;
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) v[i] += bias_.values[i];
    if (row.added != nullptr) {
      const auto added = *reinterpret_cast<const Vector<T, kCount>*>(row.added + channel_);
#pragma unroll
      for (int i = 0; i < kCount; ++i) v[i] += widen(added.values[i]);
    }
    if (product_.ending != Ending::kPlain) {
      auto* kept = reinterpret_cast<Vector<float, kCount>*>(product_.sums + row.start + channel_);
      if (product_.ending == Ending::kRing) {
        const Vector<float, kCount> centre = *kept;
#pragma unroll
        for (int i = 0; i < kCount; ++i) v[i] = centre.values[i] + row.alpha * v[i];
      } else if (!(row.alpha <= 0.0F)) {
        Vector<float, kCount> result;
#pragma unroll
        for (int i = 0; i < kCount; ++i) result.values[i] = v[i];
        *kept = result;
        return;
      }
    }
    write(row.start, v);
  }

 private:
  template <int... kChannels>
  __device__ ChannelsEnd(const Product& product, std::int64_t channel, std::integer_sequence<int, kChannels...> /*all*/)
      : product_(product), channel_(channel), bias_{}, activations_{Activation(product.act, channel + kChannels)...} {}

  __device__ void write(std::int64_t start, const float* v) const {
    Vector<T, kCount> result;
#pragma unroll
    for (int i = 0; i < kCount; ++i) result.values[i] = narrow<T>(activations_[i](v[i]));
    *reinterpret_cast<Vector<T, kCount>*>(static_cast<T*>(product_.out) + start + channel_) = result;
  }

  const Product& product_;
  std::int64_t channel_;
  Vector<float, kCount> bias_;
  Activation activations_[kCount];
};

}  // namespace perfonnx::cuda
