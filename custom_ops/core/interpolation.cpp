#include "core/interpolation.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "core/error.h"
#include "core/geometry.h"
#include "core/memory.h"

namespace perfonnx {
namespace {

// The number of each site in raster order; -1 at the other positions.
std::vector<std::int32_t> ranks_of_mask(const bool* mask, std::int64_t positions) {
  std::vector<std::int32_t> ranks(static_cast<std::size_t>(positions), -1);
  std::int32_t next = 0;
  for (std::int64_t q = 0; q < positions; ++q) {
    if (mask[q]) ranks[static_cast<std::size_t>(q)] = next++;
  }
  return ranks;
}

// row(from, entry) turns an entry of source into the number of a row; entry() names the entry in messages.
template <typename Row>
Interpolation interpolation_from(const std::int32_t* source, const float* weights, std::int64_t positions,
                                 std::int64_t per_position, const Row& row) {
  check_entries("source", positions, per_position);
  Interpolation result;
  result.positions = positions;
  result.per_position = per_position;
  result.rows.resize(checked_product(static_cast<std::size_t>(positions), static_cast<std::size_t>(per_position)));
  bool simple = true;  // every position is one site as it is, or nothing
  for (std::int64_t q = 0; q < positions; ++q) {
    int used = 0;
    for (std::int64_t k = 0; k < per_position; ++k) {
      const std::size_t i = static_cast<std::size_t>(q * per_position + k);
      const auto entry = [&] { return "[" + std::to_string(q) + ", " + std::to_string(k) + "]"; };
      const std::int32_t number =
          row(source[i], [&] { return "input 'source': " + entry() + " = " + std::to_string(source[i]); });
      const float weight = weights == nullptr ? 1.0F : weights[i];
      if (!std::isfinite(weight)) throw Error("input 'weight': " + entry() + " is not finite");
      const bool counts = number >= 0 && weight != 0.0F;
      result.rows[i] = counts ? number : -1;
      if (counts) {
        ++used;
        simple = simple && weight == 1.0F;
      }
    }
    simple = simple && used <= 1;
  }
  if (simple) {
    std::vector<std::int32_t> one(static_cast<std::size_t>(positions), -1);
    for (std::size_t i = 0; i < result.rows.size(); ++i) {
      if (result.rows[i] >= 0) one[i / static_cast<std::size_t>(per_position)] = result.rows[i];
    }
    result.rows = std::move(one);
    result.per_position = 1;
  } else if (weights != nullptr) {
    result.weights.assign(weights, weights + result.rows.size());
  }
  return result;
}

}  // namespace

Interpolation make_interpolation(const bool* mask, std::int64_t positions, const std::int32_t* source,
                                 const float* weights, std::int64_t per_position) {
  const std::vector<std::int32_t> ranks = ranks_of_mask(mask, positions);
  return interpolation_from(source, weights, positions, per_position, [&](std::int32_t from, const auto& entry) {
    if (from < -1 || from >= positions) {
      throw Error(entry() + " is neither -1 nor a position of the map (0 to " + std::to_string(positions - 1) + ")");
    }
    if (from >= 0 && !mask[from]) throw Error(entry() + " is a position that is no site: the mask is false there");
    return from < 0 ? -1 : ranks[static_cast<std::size_t>(from)];
  });
}

Interpolation make_row_interpolation(const std::int32_t* source, const float* weights, std::int64_t positions,
                                     std::int64_t per_position, std::int64_t* largest) {
  *largest = -1;
  return interpolation_from(source, weights, positions, per_position, [&](std::int32_t from, const auto& entry) {
    if (from < -1) throw Error(entry() + " is neither -1 nor the number of a row");
    *largest = std::max<std::int64_t>(*largest, from);
    return from;
  });
}

Interpolation make_identity_interpolation(const bool* mask, std::int64_t positions) {
  Interpolation result;
  result.positions = positions;
  result.rows = ranks_of_mask(mask, positions);
  return result;
}

}  // namespace perfonnx
