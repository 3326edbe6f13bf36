#include "ort/masked_conv.h"

namespace perfonnx::ort {
namespace {

template <typename B>
struct PerforatedConvOp : MaskedConvOp<B> {
  using typename MaskedConvOp<B>::Engine;
  static constexpr const char* kName = "PerforatedConv";

  static std::unique_ptr<const Engine> create(const KernelInfo& info) {
    const ConvInputs inputs(info);
    const Mask mask = read_mask(info.required("mask"));
    const Constant source = info.required("source");
    if (source.type != ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32 || source.dims.size() != 2 ||
        source.dims[0] != mask.positions()) {
      throw Error("input 'source': shape " + shape_text(source.dims) + "; it must be int32 [" +
                  std::to_string(mask.positions()) + ", K], one row per position of the mask");
    }
    const std::optional<Constant> weight = info.constant("weight");
    std::vector<float> weights;
    if (weight) {
      weight->expect_shape(source.dims, "that of source");
      weights = weight->floats();
    }
    Interpolation interpolation =
        make_interpolation(mask.data, mask.positions(), static_cast<const std::int32_t*>(source.data),
                           weight ? weights.data() : nullptr, source.dims[1]);
    return std::make_unique<const Engine>(inputs.conv, mask, std::move(interpolation), nullptr, B::device(info));
  }
};

const Registration<PerforatedConvOp> kRegistration;

}  // namespace

}  // namespace perfonnx::ort
