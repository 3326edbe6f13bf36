// The operators on onnxruntime's CUDA provider.
#pragma once

#include "cuda/operators.h"
#include "ort/api.h"

namespace perfonnx::ort {

// One call of a kernel: onnxruntime's stream, and memory from its arena, which knows in which order streams use it.
class CudaCall final : public Call, private Allocator {
 public:
  CudaCall(const OrtApi& api, OrtKernelContext* context, const Signature& signature, OrtAllocator* arena);
  cuda::Run context();

 private:
  void* allocate(std::size_t bytes) override;
  void release(void* p) noexcept override;

  OrtAllocator* arena_;
};

struct CudaBackend {
#ifdef PERFONNX_CUDA_ON_HOST  // a library of the tests: these operators on the host, in the CPU's place
  static constexpr const char* kProvider = nullptr;
#else
  static constexpr const char* kProvider = "CUDAExecutionProvider";
#endif
  static constexpr bool kOnHost = false;

  using Compact = cuda::Compact;
  using Expand = cuda::Expand;
  using SampledConv = cuda::SampledConv;
  using SampledRadiusAdaptiveConv = cuda::SampledRadiusAdaptiveConv;
  using SampledPool = cuda::SampledPool;
  using MaskedConv = cuda::MaskedConv;
  using RadiusAdaptiveConv = cuda::RadiusAdaptiveConv;

  static std::vector<char> on_host(Constant* constant);

  // The provider's memory, for what kernels of the engine keep.
  static cuda::Memory device(const KernelInfo& info);

  class Shared {
   public:
    explicit Shared(const KernelInfo& info);
    CudaCall call(const OrtApi& api, OrtKernelContext* context, const Signature& signature) const {
      return {api, context, signature, arena_.get()};
    }

   private:
    std::unique_ptr<OrtAllocator, void(ORT_API_CALL*)(OrtAllocator*)> arena_;
  };
};

}  // namespace perfonnx::ort
