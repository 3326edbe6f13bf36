#include "cpu/product/panels.h"

#include <algorithm>

#include "cpu/act.h"

namespace perfonnx {

TileArgs PanelRun::tile_args() const {
  TileArgs args{};
  args.out_stride = static_cast<std::size_t>(run_.out_stride);
  args.act = act_of(run_.activation);
  return args;
}

std::int64_t PanelRun::enter_panel(std::int64_t panel, std::int64_t from, TileArgs* args) const {
  const std::int64_t width = weights_.panel_width();
  const std::int64_t outputs = weights_.shape().outputs_per_group();
  const std::int64_t in_group = panel % weights_.panels_per_group();
  const std::int64_t channels = std::min(width, outputs - in_group * width);
  args->channels = static_cast<std::size_t>(channels);
  args->panel = weights_.panel(group(panel), in_group) + from * width;
  args->bias = weights_.bias(group(panel), in_group);
  args->column = static_cast<std::size_t>(group(panel) * outputs + in_group * width);
  return ceil_div(channels, static_cast<std::int64_t>(weights_.kernels().vector));
}

void PanelRun::run_tile(const TileFunction* functions, std::int64_t row, std::int64_t sites, const float* const* added,
                        TileArgs& args) const {
  args.out = run_.out + row * run_.out_stride + static_cast<std::int64_t>(args.column);
  args.added = added;
  functions[sites - 1](&args);
}

}  // namespace perfonnx
