#include "cpu/product/product.h"

#include <cstdio>
#include <utility>

#include "core/error.h"
#include "core/verbose.h"
#include "cpu/product/choosing.h"

namespace perfonnx {

const std::vector<const Implementation*>& implementations() {
  static const std::vector<const Implementation*> list{&kDepthwise,     &kDirect,    &kGathered,  &kColumns,
                                                       &kWinograd5,     &kWinograd3, &kWinograd4, &kWinograd2,
                                                       &kWinogradLine4, &kMerged};
  return list;
}

Product::Product(const ProductLayer& layer, std::string name, const std::string& only)
    : shape_(layer.shape), kernels_(layer.kernels) {
  const WeightShape& shape = shape_;
  if (shape.outputs < 1 || shape.inputs < 1 || shape.taps < 1) throw Error("input 'W': no dimension may be 0");
  if (shape.groups < 1 || shape.outputs % shape.groups != 0) {
    throw Error("attribute 'group': " + std::to_string(shape.groups) + " does not divide the " +
                std::to_string(shape.outputs) + " output channels of W");
  }
  const Choice choice = choose(layer, only);
  name_ = choice.implementation->name();
  prepared_ = choice.offer.prepare();
  if (verbose()) {
    decision_ = std::move(name) + ": " + name_ + (choice.passed_over.empty() ? "" : " (" + choice.passed_over + ")");
  }
}

Product::Product(const ConvConstants& conv, const SiteGrid& grid, const RowTable* table, const KernelSet& kernels)
    : Product({conv.weights,
               conv.bias,
               {conv.outputs, conv.inputs, static_cast<std::int64_t>(grid.taps.size()), conv.groups},
               kernels,
               &grid,
               table,
               conv.largest_tile},
              conv.layer, conv.implementation) {}

void Product::run(const ProductRun& run, Context& context) const {
  if (!decision_.empty() && !said_.exchange(true)) std::fprintf(stderr, "perfonnx: %s\n", decision_.c_str());
  if (run.total() > 0) prepared_->run(run, context);
}

}  // namespace perfonnx
