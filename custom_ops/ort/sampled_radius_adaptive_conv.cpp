#include "ort/custom_op.h"
#include "ort/radius_inputs.h"

namespace perfonnx::ort {
namespace {

template <typename B>
struct SampledRadiusAdaptiveConvOp {
  using Backend = B;
  using Engine = typename B::SampledRadiusAdaptiveConv;
  static constexpr const char* kName = "SampledRadiusAdaptiveConv";

  static std::unique_ptr<const Engine> create(const KernelInfo& info) {
    const ConvInputs inputs(info);
    const RadiusInputs radius(info, inputs.conv);
    const VirtualMap map{read_map_size(info, "in_shape"), read_indices(info, "in_source")};
    return std::make_unique<const Engine>(inputs.conv, radius.radius, map, read_indices(info, "sites"),
                                          B::device(info));
  }

  template <typename Call>
  static void compute(const Engine& engine, Call& call) {
    const Rows s = call.rows("S");
    engine.check(s);
    void* r = call.output(s.images, engine.sites(), engine.outputs());
    auto context = call.context();
    engine.run(s, r, context);
  }
};

const Registration<SampledRadiusAdaptiveConvOp> kRegistration;

}  // namespace

}  // namespace perfonnx::ort
