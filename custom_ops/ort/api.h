// ONNX Runtime's C interface, with statuses turned into exceptions. Nothing here may be called across the C boundary:
// see custom_op.h, which catches everything.
#pragma once

#include <onnxruntime_c_api.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/images.h"
#include "core/layer.h"
#include "core/rows.h"
#include "core/signatures.h"

#if ORT_API_VERSION < 18
#error "perfonnx needs the headers of ONNX Runtime 1.18 or later: set ONNXRUNTIME_INCLUDE_DIR to newer ones"
#endif

namespace perfonnx::ort {

// The lowest version that has all that is used: one library then runs with every later onnxruntime.
inline constexpr std::uint32_t kApiVersion = 18;

// Throws std::runtime_error with the status's message, if there is one.
void check(const OrtApi& api, OrtStatus* status);

std::vector<std::int64_t> dimensions(const OrtApi& api, const OrtValue* value, ONNXTensorElementDataType* type);

std::string shape_text(const std::vector<std::int64_t>& dims);

// A constant input of a node. Lives as long as the session.
struct Constant {
  const char* name;
  ONNXTensorElementDataType type;
  std::vector<std::int64_t> dims;
  const void* data;

  std::int64_t elements() const;
  // Of float or float16 values; Error for others.
  std::size_t element_bytes() const;
  // Throws Error unless the shape is the one given, which `meaning` puts into words.
  void expect_shape(const std::vector<std::int64_t>& shape, const char* meaning) const;
  // float or float16 values as floats.
  std::vector<float> floats() const;
};

// What a node says when its kernel is created.
class KernelInfo {
 public:
  KernelInfo(const OrtApi& api, const OrtKernelInfo* info, const Signature& signature)
      : api_(api), info_(info), signature_(signature) {}

  const OrtApi& api() const noexcept { return api_; }
  const OrtKernelInfo* get() const noexcept { return info_; }
  // "PerforatedConv node 'conv1'", for messages; by its output where the node has no name.
  std::string describe() const;

  // Attributes and inputs are those of the signature, by name.
  // nullopt where the node has no such attribute; Error where it has one of another type.
  std::optional<std::vector<std::int64_t>> ints(const char* name) const;
  std::optional<std::int64_t> integer(const char* name) const;
  std::optional<float> number(const char* name) const;

  bool has_input(const char* name) const { return !value_name(name).empty(); }
  // nullopt where the input is omitted or not constant.
  std::optional<Constant> constant_if_any(const char* name) const;
  // nullopt where the input is omitted; Error where it is not constant.
  std::optional<Constant> constant(const char* name) const;
  Constant required(const char* name) const;

 private:
  // Of the value that the node reads; empty where the input is omitted.
  std::string value_name(const char* input) const;
  bool has_attribute(const char* name) const;
  [[noreturn]] void wrong_type(const char* name, const char* wanted) const;

  const OrtApi& api_;
  const OrtKernelInfo* info_;
  const Signature& signature_;
};

// The attributes and weights of a Conv (W, B) and the slopes of its activation; owns the floats that `conv` points to.
struct ConvInputs {
  explicit ConvInputs(const KernelInfo& info);
  ConvConstants conv;

 private:
  std::vector<float> weights_;
  std::vector<float> bias_;
};

// Sets `count` integers to those of an attribute, if the node has it.
void read_ints(const KernelInfo& info, const char* name, std::int64_t* values, std::size_t count);

// A list of numbers, int32 [entries]; nullopt where the input is omitted.
std::optional<Indices> read_indices(const KernelInfo& info, const char* name);

// Height and width of a map, int64 [2].
MapSize read_map_size(const KernelInfo& info, const char* name);

// bool [height, width]
Mask read_mask(const Constant& mask);

// One call of a kernel: its inputs and output.
class Call {
 public:
  Call(const OrtApi& api, OrtKernelContext* context, const Signature& signature)
      : api_(api), context_(context), signature_(signature) {}
  virtual ~Call() = default;
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  Images images(const char* name) const;
  Rows rows(const char* name) const;
  // The only output, of these dimensions.
  void* output(std::int64_t n, std::int64_t channels, std::int64_t height, std::int64_t width) const;
  void* output(std::int64_t n, std::int64_t rows, std::int64_t channels) const;

 protected:
  const OrtApi& api() const noexcept { return api_; }
  OrtKernelContext* ort_context() const noexcept { return context_; }

 private:
  // Data, type and dimensions of an input; Error unless it has `rank` dimensions, which `meaning` names.
  const void* input(const char* name, std::size_t rank, const char* meaning, Element* element,
                    std::vector<std::int64_t>* dims) const;
  void* output(const std::int64_t* dims, std::size_t rank) const;

  const OrtApi& api_;
  OrtKernelContext* context_;
  const Signature& signature_;
};

}  // namespace perfonnx::ort
