// What implementations are chosen by: estimates of what they cost, and how exact they have to be.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "cpu/product/implementation.h"

namespace perfonnx {

// Why sums must not be taken in another order; empty where they may. Throws Error where the environment says something
// else.
std::string exactness_obstacle();

// An implementation and its offer for a layer, and why not the others.
struct Choice {
  const Implementation* implementation = nullptr;
  Offer offer;
  std::string passed_over;
};
// The cheapest by estimate, of equal ones the first, of those that can compute a layer and do well; or the one of that
// name. Throws Error where `only` does not apply.
Choice choose(const ProductLayer& layer, const std::string& only = {});

// Estimates, in multiplies of the innermost loop (17 to 19 ps on a Zen 4). Measured on layers of 8 to 512 channels.
class Estimate {
 public:
  explicit Estimate(const ProductLayer& layer);

  // A site that is computed directly, by so many taps.
  double site(double taps) const { return taps * (pairs() + kTap); }
  double site() const { return site(taps_); }
  // Some of them, one by one.
  double directly(std::int64_t sites, double factor = 1) const;

  // Multiplies for each tap or point: the output channels fill whole vectors.
  double pairs() const { return inputs_ * padded_; }
  double channels() const { return channels_; }
  double outputs() const { return outputs_; }
  // Weights for each tap or point.
  double weights() const { return inputs_ * outputs_; }

  // To read weights once.
  static double read(double weights) { return weights * (weights > kManyWeights ? kWeight : kNearWeight); }
  // To multiply while they are read.
  static double together(double multiplies, double reading);

  static constexpr double kScattered = 1.15;  // what scattered sites cost more than those of a dense layer
  static constexpr double kNearWeight = 3;    // a weight that comes from the last cache
  static constexpr double kOverlap = .35;     // the part of multiplies and weights that do not hide each other

 private:
  static constexpr double kTap = 78;                   // of a tap of a site, beside its multiplies
  static constexpr double kWeight = 12;                // a weight that comes from memory, as in layers of many
  static constexpr double kManyWeights = 1536 * 1024;  // more than a last cache keeps from run to run

  double taps_;
  double inputs_;    // of a group
  double channels_;  // of all groups
  double outputs_;
  double padded_;  // outputs, to whole vectors
};

// The offer of an implementation that computes site by site.
template <typename Prepared>
Offer site_by_site(const ProductLayer& layer) {
  const std::size_t sites = layer.grid != nullptr ? layer.grid->sites.size() : 1;
  return {Estimate(layer).directly(static_cast<std::int64_t>(sites)),
          [&layer] { return std::make_unique<const Prepared>(layer); }};
}

}  // namespace perfonnx
