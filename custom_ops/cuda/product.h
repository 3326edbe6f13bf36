// Products of gathered rows on the device, with the ways in which their sums can end.
#pragma once

#include <algorithm>

#include "cuda/device.h"
#include "cuda/launch.h"

namespace perfonnx::cuda {

enum class Ending {
  kPlain,   // act(sum + bias + added)
  kCentre,  // of the radius-adaptive form: (1 + center_gain * alpha) * sum + bias, finished where alpha is not above 0
  kRing,    // its rest: act(what kCentre left + alpha * (sum + bias))
};

// A divisor above 0, of numbers from 0 to 2^31 - 1, by a multiplication (Granlund and Montgomery, Division by invariant
// integers using multiplication, 1994, figure 4.1): a division takes some 20 instructions.
struct Divisor {
  std::int32_t value = 1;
  std::uint32_t multiplier = 1;
  int shift = 0;

  Divisor() = default;
  explicit Divisor(std::int64_t divisor) : value(static_cast<std::int32_t>(divisor)) {
    while (std::int64_t{1} << shift < divisor) ++shift;
    multiplier =
        static_cast<std::uint32_t>((std::uint64_t{1} << 32) * ((std::uint64_t{1} << shift) - divisor) / divisor + 1);
  }
};
__device__ inline std::int32_t operator/(std::int32_t number, const Divisor& divisor) {
  const auto n = static_cast<std::uint32_t>(number);
  const auto high = static_cast<std::uint32_t>(static_cast<std::uint64_t>(n) * divisor.multiplier >> 32);
  return static_cast<std::int32_t>((high + n) >> divisor.shift);
}

// What a kernel needs to know. A `row` of the product is a site of an image, number image * sites + site.
struct Product {
  std::int32_t total;  // rows of the product: images * sites
  Divisor sites;
  std::int32_t taps;
  std::int32_t inputs;   // of a group
  std::int32_t outputs;  // of a group
  std::int32_t groups;
  Divisor across;       // tiles of the same rows
  std::int32_t splits;  // blocks, a cluster, that share the slabs of a tile
  std::int32_t slabs;   // pieces of 128 bytes that the factors of a sum fill
  std::int64_t rows_per_image;
  const void* rows;
  const void* packed;
  const float* bias;
  const std::int32_t* table;
  const std::int32_t* list;   // the rows of the product that are made, or null: all
  const std::int32_t* count;  // how many they are
  const void* added;
  const std::int32_t* added_source;
  std::int64_t added_per_image;  // 0: the same rows for every image
  const float* alpha;            // [total]
  float center_gain;
  float* sums;  // [total, outputs * groups], from kCentre to kRing
  Act act;
  void* out;
  Ending ending;
};

// Whether so many things can be numbered.
constexpr bool few_enough(std::int64_t count, std::int64_t each) {
  constexpr std::int64_t kMost = 0x7FFFFFFF;
  return count == 0 || each <= kMost / count;
}
template <typename Args>
bool few_enough(const Args& args) {
  const std::int64_t chunks = (args.shape.inputs * args.shape.groups + 3) / 4;  // of 16 bytes, in a row of floats
  return few_enough(args.images, args.sites) && few_enough(args.images, args.rows_per_image) &&
         few_enough(args.images * args.rows_per_image, chunks) && few_enough(args.sites, args.shape.taps);
}

// What ProductArgs and RadiusArgs say alike; the rest is null.
template <typename Args>
Product product_of(const Args& args) {
  Product product{};
  product.total = static_cast<std::int32_t>(args.images * args.sites);
  product.sites = Divisor(std::max<std::int64_t>(args.sites, 1));
  product.inputs = static_cast<std::int32_t>(args.shape.inputs);
  product.outputs = static_cast<std::int32_t>(args.shape.outputs / args.shape.groups);
  product.groups = static_cast<std::int32_t>(args.shape.groups);
  product.rows_per_image = args.rows_per_image;
  product.rows = args.rows;
  product.act = args.act;
  product.out = args.out;
  return product;
}

// `tile` as in ProductArgs.
int launch_product(const Product& product, Element element, Math math, std::int32_t tile, void* stream);
// Of elements T, in a file for each.
template <typename T>
int launch_product_of(Product product, Math math, std::int32_t tile, void* stream);

}  // namespace perfonnx::cuda
