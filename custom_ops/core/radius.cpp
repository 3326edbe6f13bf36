#include "core/radius.h"

#include <string>

#include "core/error.h"

namespace perfonnx {

const ConvConstants& checked_radius(const ConvConstants& conv) {
  const ConvGeometry& geometry = conv.geometry.checked();
  if (geometry.kernel[0] != 3 || geometry.kernel[1] != 3) {
    throw Error("input 'W': the kernel is " + std::to_string(geometry.kernel[0]) + " x " +
                std::to_string(geometry.kernel[1]) + ", but this operator needs 3 x 3");
  }
  return conv;
}

RadiusTables make_radius_tables(const SiteGrid& grid) {
  return {make_row_table(grid, {kCentreTap}), make_row_table(grid, ring_taps())};
}

}  // namespace perfonnx
