// The product behind the radius-adaptive convolution, on rows: the centre of every site, the ring of those whose gate
// is open.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/radius.h"
#include "cpu/product/chosen_tiles.h"
#include "cpu/product/product.h"

namespace perfonnx {

class RadiusProduct {
 public:
  // Throws Error unless the kernel is 3 x 3. grid: the sites, where they are known beforehand; else null.
  RadiusProduct(const ConvConstants& conv, const RadiusConstants& radius, const SiteGrid* grid,
                const KernelSet& kernels);

  std::int64_t outputs() const noexcept { return ring_.outputs(); }
  std::int64_t input_channels() const noexcept { return ring_.input_channels(); }

  // Where sums are long, the products cost so much more than what moves between them that their own way through the
  // weights, which fill the cache, matters alone: large blocks, one after the other, each shared out among threads.
  bool deep() const noexcept;
  // Sites of a block, so few that its sums stay in the second cache, from the products to where they are needed.
  std::int64_t block_sites() const noexcept;

  const KernelSet& kernels() const noexcept { return ring_.kernels(); }
  // The first sites of what has to be computed together, tiles of open sites; empty: each site by itself.
  std::vector<std::int64_t> groups() const {
    return tiles_ != nullptr ? tiles_->groups() : std::vector<std::int64_t>();
  }

  // out [count, outputs]: sites `first` to `first + count` of the batch (image * sites + site), through the activation
  // if it is not null.
  void run(const InputRows& input, const RadiusTables& tables, std::int64_t first, std::int64_t count,
           const Activation* activation, float* out, Context& context) const;

  const float* zero_row() const noexcept { return zero_row_.data(); }

 private:
  // The rings of the open sites, list, into out [list.count, outputs].
  void run_ring(const InputRows& input, const RowTable& table, const SiteList& list, float* out,
                Context& context) const;
  void gate(const InputRows& input, const RowTable& table, std::int64_t first, std::int64_t count, float* alpha) const;

  float center_gain_;
  float alpha_bias_;
  std::vector<float> alpha_weights_;  // padded to whole vectors
  std::vector<float> bias_;           // added behind the products; empty: the centre's own
  Product centre_;
  Product ring_;
  std::unique_ptr<const ChosenTiles> tiles_;  // of the rings, where many are open; null: never
  std::vector<float> zero_row_;
};

}  // namespace perfonnx
