// The lowered operators: from maps to rows, from rows to rows, from rows to maps. As in operators.h, each is const
// after construction, the constructors check all constants of a model, and run checks the shapes that come with it.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "core/pooling.h"
#include "core/row_layers.h"
#include "core/rows.h"
#include "cpu/operators.h"

namespace perfonnx {

// Rows of a map at some positions.
class Compact {
 public:
  // As CompactSites.
  explicit Compact(const std::optional<Indices>& sites, const MapSize& size = {},
                   const KernelSet& kernels = default_kernels())
      : sites_(sites, size), kernels_(kernels) {}

  void check(const Images& x) const { sites_.check(x); }
  std::int64_t sites(const Images& x) const noexcept { return sites_.count(x); }
  // rows [x.images, sites, x.channels] of X's element type.
  void run(const Images& x, void* rows, Context& context) const;

 private:
  CompactSites sites_;
  const KernelSet& kernels_;
};

// The map that rows stand for.
class Expand {
 public:
  // As ExpandSources.
  Expand(const MapSize& map, const std::int32_t* source, const float* weight, std::int64_t per_position,
         const KernelSet& kernels = default_kernels())
      : sources_(map, source, weight, per_position), kernels_(kernels) {}

  void check(const Rows& s) const { sources_.check(s); }
  const MapSize& map() const noexcept { return sources_.map(); }
  // Y [s.images, s.channels, height, width] of S's element type.
  void run(const Rows& s, void* y, Context& context) const;

 private:
  ExpandSources sources_;
  const KernelSet& kernels_;
};

// A convolution from rows to rows.
class SampledConv {
 public:
  SampledConv(const ConvConstants& conv, const VirtualMap& map, const std::optional<Indices>& sites,
              const std::optional<AddedConstants>& added, const KernelSet& kernels);

  // Of its product.
  const char* implementation() const noexcept { return product_->implementation(); }
  // Whether run wants Z.
  bool adds() const noexcept { return added_->reads(); }
  void check(const Rows& s, const Rows* z) const;
  std::int64_t sites() const noexcept { return table_.sites; }
  std::int64_t outputs() const noexcept { return product_->outputs(); }
  // r [s.images, sites, outputs] of S's element type.
  void run(const Rows& s, const Rows* z, void* r, Context& context) const;

 private:
  Activation activation_;
  std::optional<Product> product_;
  RowIndex in_source_;
  RowTable table_;
  std::optional<AddedSources> added_;
  std::vector<float> zero_row_;  // for S
  std::vector<float> added_zero_row_;
};

// The radius-adaptive convolution from rows to rows.
class SampledRadiusAdaptiveConv {
 public:
  SampledRadiusAdaptiveConv(const ConvConstants& conv, const RadiusConstants& radius, const VirtualMap& map,
                            const std::optional<Indices>& sites, const KernelSet& kernels);

  void check(const Rows& s) const;
  std::int64_t sites() const noexcept { return tables_.ring.sites; }
  std::int64_t outputs() const noexcept { return product_->outputs(); }
  // r [s.images, sites, outputs] of S's element type.
  void run(const Rows& s, void* r, Context& context) const;

 private:
  Activation activation_;
  RowIndex in_source_;
  std::optional<RadiusProduct> product_;
  RadiusTables tables_;
  std::vector<std::int64_t> groups_;  // as the product says
};

// Max or average pooling from rows to rows.
class SampledPool {
 public:
  SampledPool(const PoolWindow& window, const VirtualMap& map, const std::optional<Indices>& sites,
              const KernelSet& kernels);

  void check(const Rows& s) const;
  std::int64_t sites() const noexcept { return table_.sites(); }
  // r [s.images, sites, s.channels] of S's element type.
  void run(const Rows& s, void* r, Context& context) const;

 private:
  const KernelSet& kernels_;
  bool average_;
  RowIndex in_source_;
  PoolTable table_;
};

}  // namespace perfonnx
