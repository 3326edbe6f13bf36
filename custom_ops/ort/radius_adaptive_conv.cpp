#include <cmath>

#include "ort/custom_op.h"
#include "ort/radius_inputs.h"

namespace perfonnx::ort {

RadiusInputs::RadiusInputs(const KernelInfo& info, const ConvConstants& conv) {
  const Constant alpha = info.required("W_alpha");
  alpha.expect_shape({1, conv.inputs * conv.groups, 1, 1}, "one number per input channel");
  alpha_weights_ = alpha.floats();
  radius.alpha_weights = alpha_weights_.data();
  if (const std::optional<Constant> bias = info.constant("B_alpha")) {
    bias->expect_shape({1}, "one number");
    radius.alpha_bias = bias->floats()[0];
  }
  if (const std::optional<Constant> bias = info.constant("B_ring")) {
    bias->expect_shape({conv.outputs}, "one number per output channel of W");
    ring_bias_ = bias->floats();
    radius.ring_bias = ring_bias_.data();
  }
  radius.center_gain = info.number("center_gain").value_or(0.0F);
  if (!std::isfinite(radius.center_gain)) throw Error("attribute 'center_gain': it is not finite");
}

namespace {

template <typename B>
struct RadiusAdaptiveConvOp {
  using Backend = B;
  using Engine = typename B::RadiusAdaptiveConv;
  static constexpr const char* kName = "RadiusAdaptiveConv";

  static std::unique_ptr<const Engine> create(const KernelInfo& info) {
    const ConvInputs inputs(info);
    const RadiusInputs radius(info, inputs.conv);
    return std::make_unique<const Engine>(inputs.conv, radius.radius, B::device(info));
  }

  template <typename Call>
  static void compute(const Engine& engine, Call& call) {
    const Images x = call.images("X");
    engine.check(x);
    void* y = call.output(x.images, engine.outputs(), engine.height(x), engine.width(x));
    auto context = call.context();
    engine.run(x, y, context);
  }
};

const Registration<RadiusAdaptiveConvOp> kRegistration;

}  // namespace

}  // namespace perfonnx::ort
