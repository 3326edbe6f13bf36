#include "cpu/product/product.h"

#include <cstdio>
#include <utility>

#include "core/error.h"
#include "core/verbose.h"

namespace perfonnx {

const std::vector<const Implementation*>& implementations() {
  static const std::vector<const Implementation*> list{&kDepthwise, &kDirect, &kGathered};
  return list;
}

Product::Product(const float* weights, const float* bias, const WeightShape& shape, const KernelSet& kernels,
                 std::string layer, const std::string& only)
    : shape_(shape), kernels_(kernels) {
  if (shape.outputs < 1 || shape.inputs < 1 || shape.taps < 1) throw Error("input 'W': no dimension may be 0");
  if (shape.groups < 1 || shape.outputs % shape.groups != 0) {
    throw Error("attribute 'group': " + std::to_string(shape.groups) + " does not divide the " +
                std::to_string(shape.outputs) + " output channels of W");
  }
  const ProductLayer given{weights, bias, shape, kernels};
  std::string passed_over;
  for (const Implementation* implementation : implementations()) {
    const bool named = only == implementation->name();
    if (!only.empty() && !named) continue;
    const std::string obstacle = implementation->obstacle(given);
    if (obstacle.empty()) {
      name_ = implementation->name();
      prepared_ = implementation->prepare(given);
      break;
    }
    if (named) throw Error("implementation '" + only + "' does not apply: " + obstacle);
    passed_over += (passed_over.empty() ? "" : ", ") + ("not " + std::string(implementation->name())) + ": " + obstacle;
  }
  if (prepared_ == nullptr) throw Error("there is no implementation '" + only + "'");
  if (verbose()) {
    decision_ = std::move(layer) + ": " + name_ + (passed_over.empty() ? "" : " (" + passed_over + ")");
  }
}

void Product::run(const ProductRun& run, Context& context) const {
  if (!decision_.empty() && !said_.exchange(true)) std::fprintf(stderr, "perfonnx: %s\n", decision_.c_str());
  if (run.total() > 0) prepared_->run(run, context);
}

}  // namespace perfonnx
