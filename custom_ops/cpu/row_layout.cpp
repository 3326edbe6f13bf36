// Compact and ExpandRows: into rows and out of them.
#include "cpu/row_operators.h"

namespace perfonnx {

void Compact::run(const Images& x, void* rows, Context& context) const {
  check(x);
  if (x.images == 0 || x.channels == 0 || sites(x) == 0) return;
  compact(x.data, x.element, x.images, x.channels, x.height * x.width, sites_.data(), sites(x), rows, kernels_,
          context);
}

void Expand::run(const Rows& s, void* y, Context& context) const {
  check(s);
  if (s.images == 0 || s.channels == 0 || map().positions() == 0) return;
  ExpandArgs args{};
  args.rows = s.data;
  args.row_element = s.element;
  args.images = s.images;
  args.sites = s.rows;
  args.channels = s.channels;
  args.interpolation = &sources_.interpolation();
  expand(args, y, s.element, kernels_, context);
}

}  // namespace perfonnx
