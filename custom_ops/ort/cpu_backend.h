// The operators on the CPU.
#pragma once

#include "cpu/isa.h"
#include "cpu/operators.h"
#include "cpu/row_operators.h"
#include "ort/api.h"

namespace perfonnx::ort {

// One call of a kernel, with onnxruntime's thread pool and arena.
class CpuCall final : public Call, private ParallelFor, private Allocator {
 public:
  CpuCall(const OrtApi& api, OrtKernelContext* context, const Signature& signature, const OrtMemoryInfo* memory);
  ~CpuCall() override;
  Context context() { return Context{*this, *this}; }

 private:
  void run(std::size_t count, const std::function<void(std::size_t)>& task) override;
  void* allocate(std::size_t bytes) override;
  void release(void* p) noexcept override;

  OrtAllocator* allocator_ = nullptr;
};

struct CpuBackend {
  static constexpr const char* kProvider = nullptr;  // onnxruntime's word for it
  static constexpr bool kOnHost = true;

  using Compact = perfonnx::Compact;
  using Expand = perfonnx::Expand;
  using SampledConv = perfonnx::SampledConv;
  using SampledRadiusAdaptiveConv = perfonnx::SampledRadiusAdaptiveConv;
  using SampledPool = perfonnx::SampledPool;
  using MaskedConv = perfonnx::MaskedConv;
  using RadiusAdaptiveConv = perfonnx::RadiusAdaptiveConv;

  // Makes a constant of an input that may also come with a run readable; what is returned owns it.
  static std::vector<char> on_host(Constant*) { return {}; }

  // What kernels of the engine are made with.
  static const KernelSet& device(const KernelInfo&) { return default_kernels(); }

  // What all calls of a kernel share.
  class Shared {
   public:
    explicit Shared(const KernelInfo& info);
    CpuCall call(const OrtApi& api, OrtKernelContext* context, const Signature& signature) const {
      return {api, context, signature, memory_.get()};
    }

   private:
    std::unique_ptr<OrtMemoryInfo, void(ORT_API_CALL*)(OrtMemoryInfo*)> memory_;
  };
};

}  // namespace perfonnx::ort
