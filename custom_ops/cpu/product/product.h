// The sampled product of a layer: rows of the input, read through a row table, times its weights.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "core/context.h"
#include "core/layer.h"
#include "cpu/product/implementation.h"

namespace perfonnx {

class Product {
 public:
  // `name` is what PERFONNX_VERBOSE calls the layer; `only` names the implementation to take instead of the best that
  // applies. Throws Error for a shape that no convolution has, and where `only` does not apply.
  Product(const ProductLayer& layer, std::string name, const std::string& only = {});
  // Of a trimmed convolution at the sites of a grid. table: of the grid; null: it depends on the size of the input.
  Product(const ConvConstants& conv, const SiteGrid& grid, const RowTable* table, const KernelSet& kernels);

  const WeightShape& shape() const noexcept { return shape_; }
  const KernelSet& kernels() const noexcept { return kernels_; }
  std::int64_t outputs() const noexcept { return shape_.outputs; }
  std::int64_t input_channels() const noexcept { return shape_.input_channels(); }
  const char* implementation() const noexcept { return name_; }
  // Rows of the map that a run over a part of the table takes, or all that are left: a multiple of this.
  std::int64_t edge() const noexcept { return prepared_->edge(); }
  const AlignedArray<float>& packed() const noexcept { return prepared_->packed(); }

  // out [images * table.sites, out_stride] or [list.count, out_stride], of which the first `outputs` floats of each row
  // are written: bias + product (+ added), through the activation if one is given. Sites are stacked over the batch.
  void run(const ProductRun& run, Context& context) const;

 private:
  WeightShape shape_;
  const KernelSet& kernels_;
  const char* name_ = nullptr;
  std::unique_ptr<const PreparedProduct> prepared_;
  std::string decision_;  // to be said at the first run; empty: nothing
  mutable std::atomic<bool> said_{false};
};

}  // namespace perfonnx
