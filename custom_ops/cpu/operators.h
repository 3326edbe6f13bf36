// The canonical operators, NCHW in and NCHW out, composed of the engine's steps. Each is const after construction: one
// object serves several threads at once. All constants of a model are checked by the constructors (Error); the shapes
// that come with a run are checked by run.
#pragma once

#include <cstdint>
#include <vector>

#include "core/images.h"
#include "core/interpolation.h"
#include "core/kernel_taps.h"
#include "core/layer.h"
#include "core/size_cache.h"
#include "core/tables.h"
#include "cpu/layout.h"
#include "cpu/product/product.h"
#include "cpu/radius_product.h"

namespace perfonnx {

// A convolution at the sites of a mask, and an interpolation that fills the map.
//
// The map is made in bands of rows, and these in steps: the lines of the input that a step reads are turned into a
// buffer that stays in the second cache and multiplied; then the positions that the band's sites feed are written.
class MaskedConv {
 public:
  // fill [outputs] or null: what positions without a site hold, as it is.
  MaskedConv(const ConvConstants& conv, const Mask& mask, Interpolation interpolation, const float* fill,
             const KernelSet& kernels);

  // Size of Y for X: [images, outputs, height, width] of the mask. Throws Error where X does not fit.
  void check(const Images& x) const;
  // Of its product.
  const char* implementation() const noexcept { return product_.implementation(); }
  std::int64_t outputs() const noexcept { return product_.outputs(); }
  std::int64_t height() const noexcept { return height_; }
  std::int64_t width() const noexcept { return width_; }
  // Y is of X's element type.
  void run(const Images& x, void* y, Context& context) const;

 private:
  MaskedConv(const TrimmedConv& trimmed, const Mask& mask, Interpolation interpolation, const float* fill,
             const KernelSet& kernels);

  // Rows of the map, from the first that has a site to the last, but rows of tiles whole.
  struct Step {
    std::int64_t row_begin;
    std::int64_t row_end;
    std::int64_t site_begin;
    std::int64_t site_end;
  };
  struct Band {
    std::size_t step_begin;
    std::size_t step_end;
    std::int64_t site_begin;
    std::int64_t site_end;
    std::size_t run_begin;
    std::size_t run_end;
    std::size_t entry_begin;
    std::size_t entry_end;
  };
  // A band of some images.
  struct Part {
    std::int64_t image;
    std::int64_t images;
    const Band* band;
  };
  void make_bands();
  // band_rows: the first row of each band, and the end.
  void make_runs(const std::vector<std::int64_t>& band_rows);
  void run_part(const Images& x, const RowTable& table, const Part& part, float* sums, void* y, Context& context) const;
  void multiply(const Images& x, const RowTable& table, const Part& part, float* sums, Context& context) const;
  void write(const Images& x, const Part& part, const float* sums, void* y, Context& context) const;

  ConvGeometry geometry_;           // trimmed,
  std::vector<std::int32_t> taps_;  // and what it reads
  Activation activation_;
  std::int64_t height_;
  std::int64_t width_;
  std::vector<std::int32_t> sites_;
  Product product_;
  SizeCache<RowTable> tables_;
  Interpolation interpolation_;
  std::vector<float> fill_;  // the row of positions that have no site
  std::vector<float> zero_row_;
  std::int64_t images_per_part_ = 1;
  std::vector<Band> bands_;
  std::vector<Step> steps_;
  // Where the interpolation copies: which site each position of a band's runs is, -1 for the fill.
  std::vector<Run> runs_;
  std::vector<std::int32_t> entries_;
};

// source [positions, per_position], weight the same or null.
MaskedConv make_perforated_conv(const ConvConstants& conv, const Mask& mask, const std::int32_t* source,
                                const float* weight, std::int64_t per_position, const KernelSet& kernels);
MaskedConv make_sparse_conv(const ConvConstants& conv, const Mask& mask, const float* fill, const KernelSet& kernels);

class RadiusAdaptiveConv {
 public:
  RadiusAdaptiveConv(const ConvConstants& conv, const RadiusConstants& radius, const KernelSet& kernels);

  void check(const Images& x) const;
  std::int64_t outputs() const noexcept { return product_.outputs(); }
  std::int64_t height(const Images& x) const noexcept { return geometry_.output_size(0, x.height); }
  std::int64_t width(const Images& x) const noexcept { return geometry_.output_size(1, x.width); }
  void run(const Images& x, void* y, Context& context) const;

 private:
  // Whole images, or rows `row_begin` to `row_end` of the map of one.
  struct Part {
    std::int64_t image;
    std::int64_t images;
    std::int64_t row_begin;
    std::int64_t row_end;
  };
  // Rows of the map that are computed together, so that what they read stays in the cache.
  std::int64_t band_rows(const Images& x) const;
  void run_part(const Images& x, const RadiusTables& tables, const Part& part, std::int64_t block_sites, void* y,
                Context& context) const;

  ConvGeometry geometry_;
  Activation activation_;
  RadiusProduct product_;
  SizeCache<RadiusTables> tables_;
};

}  // namespace perfonnx
