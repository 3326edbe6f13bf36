#include "ort/api.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

namespace perfonnx::ort {
namespace {

// The string that a function of the form f(char* out, size_t* size) gives; empty on any failure.
template <typename Function>
std::string text(const OrtApi& api, const Function& function) {
  std::size_t size = 0;
  if (OrtStatus* status = function(nullptr, &size)) {
    api.ReleaseStatus(status);
    return {};
  }
  std::string result(size, '\0');
  if (OrtStatus* status = function(result.data(), &size)) {
    api.ReleaseStatus(status);
    return {};
  }
  result.resize(size == 0 ? 0 : size - 1);  // the size counts the final zero
  return result;
}

// Whether the call succeeded; an error is swallowed.
bool succeeds(const OrtApi& api, OrtStatus* status) {
  if (status == nullptr) return true;
  api.ReleaseStatus(status);
  return false;
}

Element element_of(ONNXTensorElementDataType type, const char* name) {
  if (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) return Element::kFloat;
  if (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16) return Element::kHalf;
  throw Error("input '" + std::string(name) + "': it is neither float nor float16");
}

Activation read_activation(const KernelInfo& info, std::int64_t outputs) {
  Activation activation;
  activation.negative_slope = info.number("negative_slope").value_or(activation.negative_slope);
  activation.clip_min = info.number("clip_min").value_or(activation.clip_min);
  activation.clip_max = info.number("clip_max").value_or(activation.clip_max);
  if (!std::isfinite(activation.negative_slope)) throw Error("attribute 'negative_slope': it is not finite");
  if (std::isnan(activation.clip_min) || std::isnan(activation.clip_max)) {
    throw Error("attributes 'clip_min' and 'clip_max': NaN is no bound");
  }
  if (const std::optional<Constant> given = info.constant("slope")) {
    given->expect_shape({outputs}, "one number per output channel of W");
    activation.slopes = given->floats();
    for (const float value : activation.slopes) {
      if (!std::isfinite(value)) throw Error("input 'slope': a number is not finite");
    }
  }
  return activation;
}

std::int64_t read_largest_tile(const KernelInfo& info) {
  const std::int64_t edge = info.integer("largest_tile").value_or(kLargestTile);
  if (edge != 0 && edge != 2 && edge != 4) {
    throw Error("attribute 'largest_tile': " + std::to_string(edge) + " instead of 0, 2 or 4");
  }
  return edge;
}

}  // namespace

void check(const OrtApi& api, OrtStatus* status) {
  if (status == nullptr) return;
  const std::string message = api.GetErrorMessage(status);
  api.ReleaseStatus(status);
  throw std::runtime_error(message);
}

std::vector<std::int64_t> dimensions(const OrtApi& api, const OrtValue* value, ONNXTensorElementDataType* type) {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  check(api, api.GetTensorTypeAndShape(value, &info));
  const std::unique_ptr<OrtTensorTypeAndShapeInfo, decltype(api.ReleaseTensorTypeAndShapeInfo)> owner(
      info, api.ReleaseTensorTypeAndShapeInfo);
  std::size_t rank = 0;
  check(api, api.GetDimensionsCount(info, &rank));
  std::vector<std::int64_t> dims(rank);
  check(api, api.GetDimensions(info, dims.data(), rank));
  check(api, api.GetTensorElementType(info, type));
  return dims;
}

std::string shape_text(const std::vector<std::int64_t>& dims) {
  std::string text = "[";
  for (std::size_t i = 0; i < dims.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(dims[i]);
  return text + "]";
}

std::int64_t Constant::elements() const {
  std::int64_t count = 1;
  for (const std::int64_t dim : dims) {
    if (dim < 0 || __builtin_mul_overflow(count, dim, &count)) {
      throw Error("input '" + std::string(name) + "': shape " + shape_text(dims) + " is too large");
    }
  }
  return count;
}

std::size_t Constant::element_bytes() const {
  return with_type_of(element_of(type, name), [](auto value) { return sizeof value; });
}

void Constant::expect_shape(const std::vector<std::int64_t>& shape, const char* meaning) const {
  if (dims != shape) {
    throw Error("input '" + std::string(name) + "': shape " + shape_text(dims) + " instead of " + shape_text(shape) +
                " (" + meaning + ")");
  }
}

std::vector<float> Constant::floats() const {
  std::vector<float> result(static_cast<std::size_t>(elements()));
  if (element_of(type, name) == Element::kFloat) {
    const auto* from = static_cast<const float*>(data);
    for (std::size_t i = 0; i < result.size(); ++i) result[i] = from[i];
  } else {
    const auto* from = static_cast<const Half*>(data);
    std::transform(from, from + result.size(), result.begin(), [](Half value) { return to_float(value); });
  }
  return result;
}

std::string KernelInfo::describe() const {
  const std::string name =
      text(api_, [&](char* out, std::size_t* size) { return api_.KernelInfo_GetNodeName(info_, out, size); });
  if (!name.empty()) return std::string(signature_.name) + " node '" + name + "'";
  const std::string output =
      text(api_, [&](char* out, std::size_t* size) { return api_.KernelInfo_GetOutputName(info_, 0, out, size); });
  return std::string(signature_.name) + " node with output '" + output + "'";
}

bool KernelInfo::has_attribute(const char* name) const {
  std::size_t size = 0;
  std::int64_t integer = 0;
  float number = 0;
  return succeeds(api_, api_.KernelInfoGetAttribute_int64(info_, name, &integer)) ||
         succeeds(api_, api_.KernelInfoGetAttribute_float(info_, name, &number)) ||
         succeeds(api_, api_.KernelInfoGetAttribute_string(info_, name, nullptr, &size)) ||
         succeeds(api_, api_.KernelInfoGetAttributeArray_int64(info_, name, nullptr, &size)) ||
         succeeds(api_, api_.KernelInfoGetAttributeArray_float(info_, name, nullptr, &size));
}

void KernelInfo::wrong_type(const char* name, const char* wanted) const {
  throw Error("attribute '" + std::string(name) + "': it must be " + wanted);
}

std::optional<std::vector<std::int64_t>> KernelInfo::ints(const char* name) const {
  signature_.expect(name, AttributeType::kInts);
  std::size_t size = 0;
  if (!succeeds(api_, api_.KernelInfoGetAttributeArray_int64(info_, name, nullptr, &size))) {
    if (has_attribute(name)) wrong_type(name, "a list of integers");
    return std::nullopt;
  }
  std::vector<std::int64_t> values(size);
  if (size > 0) check(api_, api_.KernelInfoGetAttributeArray_int64(info_, name, values.data(), &size));
  return values;
}

std::optional<std::int64_t> KernelInfo::integer(const char* name) const {
  signature_.expect(name, AttributeType::kInt);
  std::int64_t value = 0;
  if (succeeds(api_, api_.KernelInfoGetAttribute_int64(info_, name, &value))) return value;
  if (has_attribute(name)) wrong_type(name, "an integer");
  return std::nullopt;
}

std::optional<float> KernelInfo::number(const char* name) const {
  signature_.expect(name, AttributeType::kFloat);
  float value = 0;
  if (succeeds(api_, api_.KernelInfoGetAttribute_float(info_, name, &value))) return value;
  if (has_attribute(name)) wrong_type(name, "a float");
  return std::nullopt;
}

std::string KernelInfo::value_name(const char* input) const {
  const std::size_t index = signature_.input(input);
  std::size_t count = 0;
  check(api_, api_.KernelInfo_GetInputCount(info_, &count));
  if (index >= count) return {};
  return text(api_,
              [&](char* out, std::size_t* size) { return api_.KernelInfo_GetInputName(info_, index, out, size); });
}

std::optional<Constant> KernelInfo::constant(const char* name) const {
  const std::string given = value_name(name);
  if (given.empty()) return std::nullopt;
  std::optional<Constant> found = constant_if_any(name);
  if (!found) {
    throw Error("input '" + std::string(name) + "' ('" + given +
                "'): it must be a constant initializer that is not a graph input too");
  }
  return found;
}

std::optional<Constant> KernelInfo::constant_if_any(const char* name) const {
  if (!has_input(name)) return std::nullopt;
  int is_constant = 0;
  const OrtValue* value = nullptr;
  check(api_, api_.KernelInfoGetConstantInput_tensor(info_, signature_.input(name), &is_constant, &value));
  if (is_constant == 0 || value == nullptr) return std::nullopt;
  Constant result{name, ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED, {}, nullptr};
  result.dims = dimensions(api_, value, &result.type);
  void* data = nullptr;  // the interface has no const form; nothing is written
  check(api_, api_.GetTensorMutableData(const_cast<OrtValue*>(value), &data));
  result.data = data;
  return result;
}

Constant KernelInfo::required(const char* name) const {
  std::optional<Constant> found = constant(name);
  if (!found) throw Error("input '" + std::string(name) + "': it is missing");
  return *found;
}

ConvInputs::ConvInputs(const KernelInfo& info) {
  conv.layer = info.describe();
  const Constant weights = info.required("W");
  if (weights.dims.size() != 4) {
    throw Error("input 'W': shape " + shape_text(weights.dims) +
                " instead of [M, C/group, kernel height, kernel width]");
  }
  weights_ = weights.floats();
  conv.weights = weights_.data();
  conv.outputs = weights.dims[0];
  conv.inputs = weights.dims[1];
  conv.groups = info.integer("group").value_or(1);
  ConvGeometry& geometry = conv.geometry;
  geometry.kernel[0] = weights.dims[2];
  geometry.kernel[1] = weights.dims[3];
  for (const std::int64_t dim : weights.dims) {
    if (dim < 1) throw Error("input 'W': shape " + shape_text(weights.dims) + " has an empty dimension");
  }
  if (conv.groups < 1 || conv.outputs % conv.groups != 0) {  // so inputs * groups is no more than W
    throw Error("attribute 'group': " + std::to_string(conv.groups) + " does not divide the " +
                std::to_string(conv.outputs) + " output channels of W");
  }
  std::int64_t kernel_shape[2] = {geometry.kernel[0], geometry.kernel[1]};
  read_ints(info, "kernel_shape", kernel_shape, 2);
  if (kernel_shape[0] != geometry.kernel[0] || kernel_shape[1] != geometry.kernel[1]) {
    throw Error("attribute 'kernel_shape': " + shape_text({kernel_shape[0], kernel_shape[1]}) +
                " disagrees with W of shape " + shape_text(weights.dims));
  }
  read_ints(info, "strides", geometry.strides, 2);
  read_ints(info, "pads", geometry.pads, 4);
  read_ints(info, "dilations", geometry.dilations, 2);
  conv.activation = read_activation(info, conv.outputs);
  conv.largest_tile = read_largest_tile(info);
  if (const std::optional<Constant> bias = info.constant("B")) {
    bias->expect_shape({conv.outputs}, "one number per output channel of W");
    bias_ = bias->floats();
    conv.bias = bias_.data();
  }
}

void read_ints(const KernelInfo& info, const char* name, std::int64_t* values, std::size_t count) {
  const std::optional<std::vector<std::int64_t>> found = info.ints(name);
  if (!found) return;
  if (found->size() != count) {
    throw Error("attribute '" + std::string(name) + "': " + std::to_string(found->size()) + " numbers instead of " +
                std::to_string(count));
  }
  for (std::size_t i = 0; i < count; ++i) values[i] = (*found)[i];
}

std::optional<Indices> read_indices(const KernelInfo& info, const char* name) {
  const std::optional<Constant> given = info.constant(name);
  if (!given) return std::nullopt;
  if (given->type != ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32 || given->dims.size() != 1) {
    throw Error("input '" + std::string(name) + "': shape " + shape_text(given->dims) +
                "; it must be int32, a list of one dimension");
  }
  return Indices{static_cast<const std::int32_t*>(given->data), given->dims[0]};
}

MapSize read_map_size(const KernelInfo& info, const char* name) {
  const Constant given = info.required(name);
  if (given.type != ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64) {
    throw Error("input '" + std::string(name) + "': it must be int64");
  }
  given.expect_shape({2}, "height and width of the map");
  const auto* sizes = static_cast<const std::int64_t*>(given.data);
  return MapSize{sizes[0], sizes[1]}.checked(name);
}

Mask read_mask(const Constant& mask) {
  if (mask.type != ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL || mask.dims.size() != 2) {
    throw Error("input 'mask': shape " + shape_text(mask.dims) + "; it must be bool [output height, output width]");
  }
  constexpr std::int64_t kLargest = std::numeric_limits<std::int32_t>::max();
  for (const std::int64_t dim : mask.dims) {
    if (dim < 0 || dim > kLargest) throw Error("input 'mask': shape " + shape_text(mask.dims) + " is too large");
  }
  check_entries("mask", mask.elements(), 1);
  return Mask{static_cast<const bool*>(mask.data), mask.dims[0], mask.dims[1]};
}

const void* Call::input(const char* name, std::size_t rank, const char* meaning, Element* element,
                        std::vector<std::int64_t>* dims) const {
  const OrtValue* value = nullptr;
  check(api_, api_.KernelContext_GetInput(context_, signature_.input(name), &value));
  if (value == nullptr) throw Error("input '" + std::string(name) + "': it is missing");
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  *dims = dimensions(api_, value, &type);
  if (dims->size() != rank) {
    throw Error("input '" + std::string(name) + "': shape " + shape_text(*dims) + " instead of " + meaning);
  }
  void* data = nullptr;
  check(api_, api_.GetTensorMutableData(const_cast<OrtValue*>(value), &data));
  *element = element_of(type, name);
  return data;
}

Images Call::images(const char* name) const {
  Images x;
  std::vector<std::int64_t> dims;
  x.data = input(name, 4, "[N, C, H, W]", &x.element, &dims);
  x.images = dims[0];
  x.channels = dims[1];
  x.height = dims[2];
  x.width = dims[3];
  return x;
}

Rows Call::rows(const char* name) const {
  Rows rows;
  std::vector<std::int64_t> dims;
  rows.data = input(name, 3, "[N, rows, channels]", &rows.element, &dims);
  rows.images = dims[0];
  rows.rows = dims[1];
  rows.channels = dims[2];
  return rows;
}

void* Call::output(std::int64_t n, std::int64_t channels, std::int64_t height, std::int64_t width) const {
  const std::int64_t dims[4] = {n, channels, height, width};
  return output(dims, 4);
}

void* Call::output(std::int64_t n, std::int64_t rows, std::int64_t channels) const {
  const std::int64_t dims[3] = {n, rows, channels};
  return output(dims, 3);
}

void* Call::output(const std::int64_t* dims, std::size_t rank) const {
  OrtValue* value = nullptr;
  check(api_, api_.KernelContext_GetOutput(context_, 0, dims, rank, &value));
  void* data = nullptr;
  check(api_, api_.GetTensorMutableData(value, &data));
  return data;
}

}  // namespace perfonnx::ort
