// What the implementations of the sampled product have in common: what they are given, and how they are chosen.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/activation.h"
#include "core/context.h"
#include "core/layer.h"
#include "core/memory.h"
#include "core/tables.h"
#include "core/tiles.h"
#include "cpu/isa.h"

namespace perfonnx {

// Weights W [outputs, inputs, taps] of a convolution in `groups` groups; inputs counts the channels of one group.
struct WeightShape {
  std::int64_t outputs = 0;
  std::int64_t inputs = 0;
  std::int64_t taps = 0;
  std::int64_t groups = 1;

  std::int64_t input_channels() const noexcept { return inputs * groups; }
  std::int64_t outputs_per_group() const noexcept { return outputs / groups; }
  // Every group has one input and one output channel.
  bool depthwise() const noexcept { return inputs == 1 && outputs == groups && groups > 1; }
};

// The rows of a batch: image n has its rows at data + n * rows_per_image * channels.
struct InputRows {
  const float* data;
  std::int64_t images;
  std::int64_t rows_per_image;
  const float* zero_row;       // [channels]; stands where the row table says -1
  std::int64_t first_row = 0;  // what the row table calls the first row that is here
};

// Which sites of which images are computed, in the order of the output: site number n * table.sites + p for each row.
struct SiteList {
  const std::int64_t* numbers = nullptr;
  std::int64_t count = 0;
};

// Rows that are added to the sums before the activation: row source[p] of its image to site p of every image.
struct AddedRows {
  const float* data;    // [images, rows_per_image, outputs]
  std::int64_t images;  // 1: the same for the whole batch
  std::int64_t rows_per_image;
  const std::int32_t* source;  // [table.sites], -1: nothing is added; null: row p to site p
  const float* zero_row;       // [outputs]
};

// One run of a product.
struct ProductRun {
  const InputRows& input;
  RowTableView table;
  const Activation* activation;  // opened; null: none
  float* out;
  std::int64_t out_stride;
  const SiteList* list = nullptr;    // null: all sites of all images
  const AddedRows* added = nullptr;  // null: nothing

  std::int64_t total() const noexcept { return list != nullptr ? list->count : input.images * table.sites; }
};

// What is known of a layer when its kernel is created.
struct ProductLayer {
  const float* weights;  // [outputs, inputs, taps], these the grid's where there is one; null: not known yet
  const float* bias;     // [outputs] or null
  WeightShape shape;
  const KernelSet& kernels;
  const SiteGrid* grid;   // null: the sites are chosen at run time
  const RowTable* table;  // of the grid; null: it depends on the size of the input
  std::int64_t largest_tile = kLargestTile;
};

// An implementation made ready for a layer: its weights are packed. Const, for several threads at once.
class PreparedProduct {
 public:
  virtual ~PreparedProduct() = default;
  virtual void run(const ProductRun& run, Context& context) const = 0;
  // Of the tiles of outputs that it computes together. A run over part of the table must take whole rows of them.
  virtual std::int64_t edge() const noexcept { return 1; }
  // The weights as they lie in memory.
  virtual const AlignedArray<float>& packed() const noexcept = 0;
};

// What an implementation would make of a layer, which has to outlive the offer.
struct Offer {
  double cost = 0;  // of an image by estimate, in multiplies of the innermost loop
  std::function<std::unique_ptr<const PreparedProduct>()> prepare;  // at most once
};

class Implementation {
 public:
  virtual ~Implementation() = default;
  virtual const char* name() const noexcept = 0;
  // Why it cannot compute this layer; empty where it can.
  virtual std::string obstacle(const ProductLayer&) const { return {}; }
  // Why it had better not; empty where it does well.
  virtual std::string drawback(const ProductLayer&) const { return {}; }
  // Of a layer that it can compute.
  virtual Offer offer(const ProductLayer& layer) const = 0;
};

// Each in its file.
extern const Implementation& kDepthwise;
extern const Implementation& kMerged;
extern const Implementation& kWinograd5;
extern const Implementation& kWinograd3;
extern const Implementation& kWinograd4;
extern const Implementation& kWinograd2;
extern const Implementation& kWinogradLine4;
extern const Implementation& kDirect;
extern const Implementation& kGathered;
extern const Implementation& kColumns;
// All of them. Of those that are equally good the first is taken; kGathered computes every layer.
const std::vector<const Implementation*>& implementations();

}  // namespace perfonnx
