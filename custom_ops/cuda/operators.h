// The operators on the device, composed of the steps of launch.h. As their counterparts in cpu/, each is const after
// construction and serves several threads at once; the constructors check all constants of a model (Error) and put the
// tables on the device; run checks the shapes that come with it, and puts its work on the run's stream.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <optional>
#include <vector>

#include "core/images.h"
#include "core/interpolation.h"
#include "core/layer.h"
#include "core/pooling.h"
#include "core/radius.h"
#include "core/row_layers.h"
#include "core/size_cache.h"
#include "cuda/memory.h"

namespace perfonnx::cuda {

// Taps of a convolution's weights, packed by the first run, which says how it wants products made: that is an option of
// onnxruntime's provider, which a kernel is not told when it is created.
class Weights {
 public:
  // taps: which of them, in this order.
  Weights(const Memory& memory, const ConvConstants& conv, const std::vector<std::int32_t>& taps);

  const WeightShape& shape() const noexcept { return shape_; }
  std::int64_t input_channels() const noexcept { return shape_.inputs * shape_.groups; }
  const void* packed(perfonnx::Element element, const Run& run) const;

 private:
  Memory memory_;
  WeightShape shape_;
  std::int64_t all_taps_;
  DeviceArray<std::int32_t> taps_;
  mutable std::mutex mutex_;
  mutable std::atomic<const void*> ready_{nullptr};
  mutable DeviceArray<float> given_;  // until they are packed
  mutable DeviceBytes packed_;
};

// An activation whose slopes are on the device.
class DeviceActivation {
 public:
  DeviceActivation(const Memory& memory, const Activation& opened);
  const Act& act() const noexcept { return act_; }

 private:
  DeviceArray<float> slopes_;
  Act act_;
};

class Compact {
 public:
  Compact(const std::optional<Indices>& sites, const MapSize& size, const Memory& memory);

  void check(const Images& x) const { sites_.check(x); }
  std::int64_t sites(const Images& x) const noexcept { return sites_.count(x); }
  // rows [x.images, sites, x.channels] of X's element type.
  void run(const Images& x, void* rows, const Run& run) const;

 private:
  CompactSites sites_;
  DeviceArray<std::int32_t> table_;
};

class Expand {
 public:
  // As ExpandSources.
  Expand(const MapSize& map, const std::int32_t* source, const float* weight, std::int64_t per_position,
         const Memory& memory);

  void check(const Rows& s) const { sources_.check(s); }
  const MapSize& map() const noexcept { return sources_.map(); }
  // Y [s.images, s.channels, height, width] of S's element type.
  void run(const Rows& s, void* y, const Run& run) const;

 private:
  ExpandSources sources_;
  DeviceArray<std::int32_t> table_;
  DeviceArray<float> weights_;
};

// The rows that an operator reads: at each position of its map, and for each site.
template <typename Table>
struct ReadRows {
  RowIndex in_source;
  Table table;
};

class SampledConv {
 public:
  SampledConv(const ConvConstants& conv, const VirtualMap& map, const std::optional<Indices>& sites,
              const std::optional<AddedConstants>& added, const Memory& memory);

  // Whether run wants Z.
  bool adds() const noexcept { return added_.reads(); }
  void check(const Rows& s, const Rows* z) const;
  std::int64_t sites() const noexcept { return sites_; }
  std::int64_t outputs() const noexcept { return weights_.shape().outputs; }
  // r [s.images, sites, outputs] of S's element type.
  void run(const Rows& s, const Rows* z, void* r, const Run& run) const;

 private:
  SampledConv(const ConvConstants& conv, ReadRows<RowTable> read, const std::optional<AddedConstants>& added,
              const Memory& memory);

  RowIndex in_source_;
  std::int64_t sites_;
  AddedSources added_;
  Weights weights_;
  DeviceActivation activation_;
  DeviceArray<float> bias_;
  DeviceArray<std::int32_t> table_;
  DeviceArray<std::int32_t> added_table_;
};

class DeviceRadiusTables {
 public:
  DeviceRadiusTables() = default;
  DeviceRadiusTables(const Memory& memory, const RadiusTables& tables, void* stream)
      : centre_(memory, tables.centre.rows, stream), ring_(memory, tables.ring.rows, stream) {}
  const std::int32_t* centre() const noexcept { return centre_.data(); }
  const std::int32_t* ring() const noexcept { return ring_.data(); }

 private:
  DeviceArray<std::int32_t> centre_;  // [sites]
  DeviceArray<std::int32_t> ring_;    // [sites, 8]
};

// What the radius-adaptive operators have beside their tables.
class RadiusLayer {
 public:
  // Throws Error unless the kernel is 3 x 3.
  RadiusLayer(const ConvConstants& conv, const RadiusConstants& radius, const Memory& memory);

  std::int64_t outputs() const noexcept { return ring_.shape().outputs; }
  std::int64_t input_channels() const noexcept { return ring_.input_channels(); }
  // out [s.images, sites, outputs]
  void run(const Rows& s, std::int64_t sites, const DeviceRadiusTables& tables, void* out, const Run& run) const;

 private:
  Weights centre_;
  Weights ring_;
  DeviceActivation activation_;
  DeviceArray<float> bias_;
  DeviceArray<float> ring_bias_;
  DeviceArray<float> alpha_weights_;
  float alpha_bias_;
  float center_gain_;
};

class SampledRadiusAdaptiveConv {
 public:
  SampledRadiusAdaptiveConv(const ConvConstants& conv, const RadiusConstants& radius, const VirtualMap& map,
                            const std::optional<Indices>& sites, const Memory& memory);

  void check(const Rows& s) const;
  std::int64_t sites() const noexcept { return sites_; }
  std::int64_t outputs() const noexcept { return layer_.outputs(); }
  // r [s.images, sites, outputs] of S's element type.
  void run(const Rows& s, void* r, const Run& run) const;

 private:
  RadiusLayer layer_;
  RowIndex in_source_;
  std::int64_t sites_ = 0;
  DeviceRadiusTables tables_;
};

class SampledPool {
 public:
  SampledPool(const PoolWindow& window, const VirtualMap& map, const std::optional<Indices>& sites,
              const Memory& memory);

  void check(const Rows& s) const { in_source_.check("S", s); }
  std::int64_t sites() const noexcept { return sites_; }
  // r [s.images, sites, s.channels] of S's element type.
  void run(const Rows& s, void* r, const Run& run) const;

 private:
  SampledPool(const PoolWindow& window, ReadRows<PoolTable> read, const Memory& memory);

  bool average_;
  RowIndex in_source_;
  std::int64_t sites_;
  DeviceArray<std::int64_t> begin_;
  DeviceArray<std::int32_t> entries_;
  DeviceArray<float> repeats_;
  DeviceArray<float> divisors_;
};

// A convolution at the sites of a mask, and an interpolation that fills the map.
class MaskedConv {
 public:
  // fill [outputs] or null: what positions without a site hold, as it is.
  MaskedConv(const ConvConstants& conv, const Mask& mask, const Interpolation& interpolation, const float* fill,
             const Memory& memory);

  // Size of Y for X: [images, outputs, height, width] of the mask. Throws Error where X does not fit.
  void check(const Images& x) const;
  std::int64_t outputs() const noexcept { return weights_.shape().outputs; }
  std::int64_t height() const noexcept { return map_.height; }
  std::int64_t width() const noexcept { return map_.width; }
  // Y is of X's element type.
  void run(const Images& x, void* y, const Run& run) const;

 private:
  ConvGeometry geometry_;
  std::vector<std::int32_t> taps_;  // that are read
  MapSize map_;
  std::vector<std::int32_t> sites_;
  std::int64_t per_position_;
  bool copies_;
  Weights weights_;
  DeviceActivation activation_;
  DeviceArray<float> bias_;
  DeviceArray<float> fill_;
  DeviceArray<std::int32_t> source_;
  DeviceArray<float> source_weights_;
  Memory memory_;
  SizeCache<DeviceArray<std::int32_t>> tables_;
};

class RadiusAdaptiveConv {
 public:
  RadiusAdaptiveConv(const ConvConstants& conv, const RadiusConstants& radius, const Memory& memory);

  void check(const Images& x) const;
  std::int64_t outputs() const noexcept { return layer_.outputs(); }
  std::int64_t height(const Images& x) const noexcept { return geometry_.output_size(0, x.height); }
  std::int64_t width(const Images& x) const noexcept { return geometry_.output_size(1, x.width); }
  // Y is of X's element type.
  void run(const Images& x, void* y, const Run& run) const;

 private:
  ConvGeometry geometry_;
  RadiusLayer layer_;
  Memory memory_;
  SizeCache<DeviceRadiusTables> tables_;
};

}  // namespace perfonnx::cuda
