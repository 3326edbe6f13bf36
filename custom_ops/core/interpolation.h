// Interpolation: where every position of a map gets its value from.
#pragma once

#include <cstdint>
#include <vector>

namespace perfonnx {

// Rows of sites (number of the site, -1 = none), with or without weights: int32 [positions, per_position].
struct Interpolation {
  std::int64_t positions = 0;
  std::int64_t per_position = 1;
  std::vector<std::int32_t> rows;
  std::vector<float> weights;  // empty: all ones

  // One site each, value unchanged: an activation may then be applied once per site instead of once per position.
  bool copies() const noexcept { return per_position == 1 && weights.empty(); }
};

// The sources of a model, flat positions in the map or -1, checked against the mask and turned into numbers of sites.
// weights may be null. Weights of zero are dropped, so that barycentric tables of lattices become copies where they
// can. Throws Error naming the entry at fault.
Interpolation make_interpolation(const bool* mask, std::int64_t positions, const std::int32_t* source,
                                 const float* weights, std::int64_t per_position);

// The same for sources that are numbers of rows already. `largest` is set to the largest of them, -1 where there is
// none.
Interpolation make_row_interpolation(const std::int32_t* source, const float* weights, std::int64_t positions,
                                     std::int64_t per_position, std::int64_t* largest);

// Each site its own source, every other position none.
Interpolation make_identity_interpolation(const bool* mask, std::int64_t positions);

}  // namespace perfonnx
