#include "ort/custom_op.h"

namespace perfonnx::ort {
namespace {

template <typename B>
struct ExpandOp {
  using Backend = B;
  using Engine = typename B::Expand;
  static constexpr const char* kName = "ExpandRows";

  static std::unique_ptr<const Engine> create(const KernelInfo& info) {
    const MapSize map = read_map_size(info, "shape");
    const Constant source = info.required("source");
    if (source.type != ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32 || source.dims.size() != 2 ||
        source.dims[0] != map.positions()) {
      throw Error("input 'source': shape " + shape_text(source.dims) + "; it must be int32 [" +
                  std::to_string(map.positions()) + ", K], one row per position of the map of " + map.text());
    }
    const std::optional<Constant> weight = info.constant("weight");
    std::vector<float> weights;
    if (weight) {
      weight->expect_shape(source.dims, "that of source");
      weights = weight->floats();
    }
    return std::make_unique<const Engine>(map, static_cast<const std::int32_t*>(source.data),
                                          weight ? weights.data() : nullptr, source.dims[1], B::device(info));
  }

  template <typename Call>
  static void compute(const Engine& engine, Call& call) {
    const Rows s = call.rows("S");
    engine.check(s);
    void* y = call.output(s.images, s.channels, engine.map().height, engine.map().width);
    auto context = call.context();
    engine.run(s, y, context);
  }
};

const Registration<ExpandOp> kRegistration;

}  // namespace

}  // namespace perfonnx::ort
