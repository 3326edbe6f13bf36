// How the sums of a product end: the fused rest of a layer.
#pragma once

#include "cuda/product.h"

namespace perfonnx::cuda {

// The activation of one channel. NaN stays NaN; with a slope of zero a negative infinity becomes zero.
__device__ inline float activate(const Act& act, float v, std::int64_t channel) {
  if (v < 0.0F) {
    const float slope = act.slopes != nullptr ? act.negative_slope * act.slopes[channel] : act.negative_slope;
    v = slope == 0.0F ? 0.0F : v * slope;
  }
  v = v < act.clip_min ? act.clip_min : v;
  return v > act.clip_max ? act.clip_max : v;
}

// kCount neighbouring elements at once.
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Vector {
  T values[kCount];
};

// A row of the product on its way out.
template <typename T>
class RowEnd {
 public:
  // index: of the rows that are made.
  __device__ RowEnd(const Product& product, std::int32_t index) : product_(product) {
    const std::int32_t row = product.list != nullptr ? product.list[index] : index;
    const std::int64_t channels = static_cast<std::int64_t>(product.outputs) * product.groups;
    start_ = row * channels;
    if (product.ending == Ending::kPlain) {
      if (product.added != nullptr) {
        const std::int32_t image = row / product.sites;
        const std::int32_t site = row % product.sites;
        const std::int32_t source = product.added_source != nullptr ? product.added_source[site] : site;
        if (source >= 0) {
          added_ = static_cast<const T*>(product.added) + (image * product.added_per_image + source) * channels;
        }
      }
    } else {
      alpha_ = product.alpha[row];
    }
  }

  // Writes the sums of kCount channels from `channel` on; the pointers are aligned for that many.
  template <int kCount>
  __device__ void finish(const float* sums, std::int64_t channel) const {
    float v[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) v[i] = sums[i];
    T* out = static_cast<T*>(product_.out) + start_ + channel;
    float* kept = product_.sums + start_ + channel;
    if (product_.ending == Ending::kCentre) {
      const float factor = 1.0F + product_.center_gain * alpha_;
#pragma unroll
      for (int i = 0; i < kCount; ++i) v[i] *= factor;
    }
    if (product_.bias != nullptr) {
      const auto bias = *reinterpret_cast<const Vector<float, kCount>*>(product_.bias + channel);
#pragma unroll
      for (int i = 0; i < kCount; ++i) v[i] += bias.values[i];
    }
    if (product_.ending == Ending::kPlain) {
      if (added_ != nullptr) {
        const auto added = *reinterpret_cast<const Vector<T, kCount>*>(added_ + channel);
#pragma unroll
        for (int i = 0; i < kCount; ++i) v[i] += widen(added.values[i]);
      }
    }
    if (product_.ending == Ending::kCentre) {
      if (!(alpha_ <= 0.0F)) {
        Vector<float, kCount> result;
#pragma unroll
        for (int i = 0; i < kCount; ++i) result.values[i] = v[i];
        *reinterpret_cast<Vector<float, kCount>*>(kept) = result;
        return;
      }
    }
    if (product_.ending == Ending::kRing) {
      const auto centre = *reinterpret_cast<const Vector<float, kCount>*>(kept);
#pragma unroll
      for (int i = 0; i < kCount; ++i) v[i] = centre.values[i] + alpha_ * v[i];
    }
    Vector<T, kCount> result;
#pragma unroll
    for (int i = 0; i < kCount; ++i) result.values[i] = narrow<T>(activate(product_.act, v[i], channel + i));
    *reinterpret_cast<Vector<T, kCount>*>(out) = result;
  }

 private:
  const Product& product_;
  std::int64_t start_;
  const T* added_ = nullptr;
  float alpha_ = 0.0F;
};

}  // namespace perfonnx::cuda
