#include "ort/masked_conv.h"

namespace perfonnx::ort {
namespace {

struct SparseConvOp : MaskedConvOp {
  static constexpr const char* kName = "SparseConv";

  static std::unique_ptr<const Engine> create(const KernelInfo& info) {
    const ConvInputs inputs(info);
    const Mask mask = read_mask(info.required("mask"));
    std::vector<float> fill;
    if (const std::optional<Constant> given = info.constant("fill")) {
      given->expect_shape({inputs.conv.outputs}, "one number per output channel of W");
      fill = given->floats();
    }
    return std::unique_ptr<const Engine>(
        new Engine(make_sparse_conv(inputs.conv, mask, fill.empty() ? nullptr : fill.data(), default_kernels())));
  }
};

const Registration<SparseConvOp> kRegistration;

}  // namespace

}  // namespace perfonnx::ort
