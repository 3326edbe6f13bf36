#include "ort/masked_conv.h"

namespace perfonnx::ort {
namespace {

template <typename B>
struct SparseConvOp : MaskedConvOp<B> {
  using typename MaskedConvOp<B>::Engine;
  static constexpr const char* kName = "SparseConv";

  static std::unique_ptr<const Engine> create(const KernelInfo& info) {
    const ConvInputs inputs(info);
    const Mask mask = read_mask(info.required("mask"));
    std::vector<float> fill(static_cast<std::size_t>(inputs.conv.outputs), 0.0F);
    if (const std::optional<Constant> given = info.constant("fill")) {
      given->expect_shape({inputs.conv.outputs}, "one number per output channel of W");
      fill = given->floats();
    }
    return std::make_unique<const Engine>(inputs.conv, mask, make_identity_interpolation(mask.data, mask.positions()),
                                          fill.data(), B::device(info));
  }
};

const Registration<SparseConvOp> kRegistration;

}  // namespace

}  // namespace perfonnx::ort
