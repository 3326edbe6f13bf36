// An operator of the domain as onnxruntime wants to see it: a table of C functions, through which no exception passes.
#pragma once

#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "ort/api.h"
#ifndef PERFONNX_CUDA_ON_HOST
#include "ort/cpu_backend.h"
#endif
#if defined(PERFONNX_CUDA) || defined(PERFONNX_CUDA_ON_HOST)
#include "ort/cuda_backend.h"
#endif

namespace perfonnx::ort {

inline constexpr const char* kDomain = "ai.perfonnx";

// The type of an input of an operator whose T is `type`; undefined for any, which the kernel then checks.
inline ONNXTensorElementDataType element_type(InputType input, ONNXTensorElementDataType type) {
  switch (input) {
    case InputType::kT:
      return type;
    case InputType::kFactors:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
    case InputType::kBool:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL;
    case InputType::kInt32:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
    case InputType::kInt64:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
  }
  return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
}

// A kernel: what the engine built for a node, and what to say of the node in messages.
template <typename Op>
struct Kernel {
  const OrtApi* api;
  const Signature* signature;
  std::string node;
  typename Op::Backend::Shared shared;
  std::unique_ptr<const typename Op::Engine> engine;
};

// Runs a function and turns what it throws into a status that names the node.
template <typename Function>
OrtStatus* guarded(const OrtApi& api, const std::string& node, const Function& function) noexcept {
  const auto status = [&](OrtErrorCode code, const char* what) {
    try {
      return api.CreateStatus(code, ("perfonnx: " + node + ": " + what).c_str());
    } catch (...) {
      return api.CreateStatus(code, what);
    }
  };
  try {
    function();
    return nullptr;
  } catch (const Error& error) {
    return status(ORT_INVALID_ARGUMENT, error.what());
  } catch (const std::bad_alloc&) {
    return status(ORT_FAIL, "not enough memory");
  } catch (const std::exception& error) {
    return status(ORT_FAIL, error.what());
  } catch (...) {
    return status(ORT_FAIL, "unknown failure");
  }
}

// Op gives: Backend, where it runs; kName, that of its signature; Engine, the kernel of the engine; create(KernelInfo)
// -> unique_ptr of it; compute(const Engine&, a call of the backend&).
template <typename Op>
class CustomOp final : public OrtCustomOp {
 public:
  // type: what T stands for in this overload.
  explicit CustomOp(ONNXTensorElementDataType type) : OrtCustomOp{}, signature_(signature(Op::kName)), type_(type) {
    version = kApiVersion;
    GetName = [](const OrtCustomOp* op) { return of(op).name; };
    GetExecutionProviderType = [](const OrtCustomOp*) { return Op::Backend::kProvider; };
    GetInputTypeCount = [](const OrtCustomOp* op) { return of(op).inputs.size(); };
    GetInputType = [](const OrtCustomOp* op, std::size_t i) {
      return element_type(of(op).inputs[i].type, static_cast<const CustomOp*>(op)->type_);
    };
    GetInputCharacteristic = [](const OrtCustomOp* op, std::size_t i) {
      return of(op).inputs[i].optional ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
    };
    // Constants are read on the host, when a kernel is created.
    GetInputMemoryType = [](const OrtCustomOp* op, std::size_t i) {
      return Op::Backend::kOnHost || of(op).inputs[i].of_run ? OrtMemTypeDefault : OrtMemTypeCPUInput;
    };
    GetOutputTypeCount = [](const OrtCustomOp*) -> std::size_t { return 1; };
    GetOutputType = [](const OrtCustomOp* op, std::size_t) { return static_cast<const CustomOp*>(op)->type_; };
    GetOutputCharacteristic = [](const OrtCustomOp*, std::size_t) { return INPUT_OUTPUT_REQUIRED; };
    GetVariadicInputMinArity = [](const OrtCustomOp*) { return 1; };
    GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 0; };
    GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 1; };
    GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 0; };
    GetStartVersion = [](const OrtCustomOp*) { return 1; };
    GetEndVersion = [](const OrtCustomOp*) { return std::numeric_limits<int>::max(); };
    // No shape function: the value_info of a rewritten model says the shapes, and onnxruntime up to 1.23.2 crashes on
    // an operator that has such a function and a node that omits an input in the middle.
    InferOutputShapeFn = nullptr;
    CreateKernelV2 = create;
    KernelComputeV2 = compute;
    KernelDestroy = [](void* kernel) { delete static_cast<Kernel<Op>*>(kernel); };
  }

 private:
  static const Signature& of(const OrtCustomOp* op) noexcept { return static_cast<const CustomOp*>(op)->signature_; }

  static OrtStatus* ORT_API_CALL create(const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info,
                                        void** out) noexcept {
    std::string node = Op::kName;
    return guarded(*api, node, [&] {
      const KernelInfo kernel_info(*api, info, of(op));
      node = kernel_info.describe();
      auto kernel = std::make_unique<Kernel<Op>>(
          Kernel<Op>{api, &of(op), node, typename Op::Backend::Shared(kernel_info), nullptr});
      kernel->engine = Op::create(kernel_info);
      *out = kernel.release();
    });
  }

  static OrtStatus* ORT_API_CALL compute(void* data, OrtKernelContext* context) noexcept {
    const auto* kernel = static_cast<const Kernel<Op>*>(data);
    return guarded(*kernel->api, kernel->node, [&] {
      auto call = kernel->shared.call(*kernel->api, context, *kernel->signature);
      Op::compute(*kernel->engine, call);
    });
  }

  const Signature& signature_;
  ONNXTensorElementDataType type_;
};

// Both overloads of an operator on a backend.
template <typename Op>
void add_overloads(const OrtApi& api, OrtCustomOpDomain* domain) {
  static const CustomOp<Op> ops[] = {CustomOp<Op>(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT),
                                     CustomOp<Op>(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16)};
  for (const CustomOp<Op>& op : ops) check(api, api.CustomOpDomain_Add(domain, &op));
}

using AddOperator = void (*)(const OrtApi&, OrtCustomOpDomain*);

// Those that the library has. Filled while it is loaded, by the `Registration` in each operator's file.
std::vector<AddOperator>& operators();

// An operator on every backend that was built.
template <template <typename Backend> class Op>
struct Registration {
  Registration() {
#ifndef PERFONNX_CUDA_ON_HOST
    operators().push_back(add_overloads<Op<CpuBackend>>);
#endif
#if defined(PERFONNX_CUDA) || defined(PERFONNX_CUDA_ON_HOST)
    operators().push_back(add_overloads<Op<CudaBackend>>);
#endif
  }
};

}  // namespace perfonnx::ort
