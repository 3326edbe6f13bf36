#include "ort/cuda_backend.h"

#include <cstring>

namespace perfonnx::ort {
namespace {

// What onnxruntime's CUDA provider can be asked for in a call (cuda_resource.h, which packages of its headers lack).
constexpr int kResourceVersion = 3;
constexpr int kUseTf32 = 10011;

// KernelContext_GetScratchBuffer ends the process where memory lacks: an exception leaves it, which its interface
// forbids. Later versions give the stream away, in whose order the arena can then be asked itself. What these
// structures hold is only ever appended to; headers of earlier versions, which suffice to build, lack the ends of them.
constexpr std::uint32_t kVersionWithStreams = 31;
constexpr std::size_t kGetSyncStream = 423;  // of OrtApi's functions, all of which are pointers

struct StreamAwareAllocator {  // OrtAllocator
  std::uint32_t version;
  void* others[5];
  void*(ORT_API_CALL* allocate_on_stream)(OrtAllocator*, std::size_t bytes, void* stream);
};

using GetSyncStream = OrtStatus*(ORT_API_CALL*)(const OrtKernelContext*, void** stream);

GetSyncStream get_sync_stream(const OrtApi& api) {
  GetSyncStream function = nullptr;
  std::memcpy(&function, reinterpret_cast<const char*>(&api) + kGetSyncStream * sizeof(function), sizeof(function));
  return function;
}

using Arena = std::unique_ptr<OrtAllocator, void(ORT_API_CALL*)(OrtAllocator*)>;

Arena arena_of(const KernelInfo& info) {
  OrtAllocator* arena = nullptr;
  check(info.api(), info.api().KernelInfoGetAllocator(info.get(), OrtMemTypeDefault, &arena));
  return {arena, info.api().ReleaseAllocator};
}

class LastingMemory final : public Allocator {
 public:
  LastingMemory(const OrtApi& api, Arena arena) : api_(api), arena_(std::move(arena)) {}

  void* allocate(std::size_t bytes) override {
    void* p = nullptr;
    check(api_, api_.AllocatorAlloc(arena_.get(), bytes, &p));
    if (p == nullptr) throw std::bad_alloc();
    return p;
  }
  void release(void* p) noexcept override { arena_->Free(arena_.get(), p); }

 private:
  const OrtApi& api_;
  Arena arena_;
};

}  // namespace

std::vector<char> CudaBackend::on_host(Constant* constant) {
  std::vector<char> copy(checked_product(static_cast<std::size_t>(constant->elements()), constant->element_bytes()));
  if (!copy.empty()) cuda::check(perfonnx_cuda_download(copy.data(), constant->data, copy.size(), nullptr));
  cuda::check(perfonnx_cuda_wait(nullptr));
  constant->data = copy.data();
  return copy;
}

cuda::Memory CudaBackend::device(const KernelInfo& info) {
  return std::make_shared<LastingMemory>(info.api(), arena_of(info));
}

CudaBackend::Shared::Shared(const KernelInfo& info) : arena_(arena_of(info)) {}

CudaCall::CudaCall(const OrtApi& api, OrtKernelContext* context, const Signature& signature, OrtAllocator* arena)
    : Call(api, context, signature), arena_(arena) {}

cuda::Run CudaCall::context() {
#ifdef PERFONNX_CUDA_ON_HOST
  return {nullptr, cuda::Math::kStrict, *this};
#else
  void* stream = nullptr;
  check(api(), api().KernelContext_GetGPUComputeStream(ort_context(), &stream));
  void* tf32 = nullptr;
  check(api(), api().KernelContext_GetResource(ort_context(), kResourceVersion, kUseTf32, &tf32));
  return {stream, tf32 != nullptr ? cuda::Math::kTensorCores : cuda::Math::kStrict, *this};
#endif
}

void* CudaCall::allocate(std::size_t bytes) {
  void* p = nullptr;
  if (arena_->version >= kVersionWithStreams) {
    void* stream = nullptr;
    check(api(), get_sync_stream(api())(ort_context(), &stream));
    if (stream != nullptr) {
      // Throws what onnxruntime throws, a std::exception, or gives null.
      p = reinterpret_cast<const StreamAwareAllocator*>(arena_)->allocate_on_stream(arena_, bytes, stream);
    } else {
      check(api(), api().AllocatorAlloc(arena_, bytes, &p));
    }
  } else {
    const OrtMemoryInfo* memory = nullptr;
    check(api(), api().AllocatorGetInfo(arena_, &memory));
    check(api(), api().KernelContext_GetScratchBuffer(ort_context(), memory, bytes, &p));
  }
  if (p == nullptr) throw std::bad_alloc();
  return p;
}

void CudaCall::release(void* p) noexcept { arena_->Free(arena_, p); }

}  // namespace perfonnx::ort
