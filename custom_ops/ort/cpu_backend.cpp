#include "ort/cpu_backend.h"

#include <exception>
#include <mutex>

namespace perfonnx::ort {
namespace {

OrtMemoryInfo* cpu_memory(const OrtApi& api) {
  OrtMemoryInfo* memory = nullptr;
  check(api, api.CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));
  return memory;
}

}  // namespace

CpuBackend::Shared::Shared(const KernelInfo& info) : memory_(cpu_memory(info.api()), info.api().ReleaseMemoryInfo) {}

CpuCall::CpuCall(const OrtApi& api, OrtKernelContext* context, const Signature& signature, const OrtMemoryInfo* memory)
    : Call(api, context, signature) {
  check(api, api.KernelContext_GetAllocator(context, memory, &allocator_));
}

CpuCall::~CpuCall() { api().ReleaseAllocator(allocator_); }

void CpuCall::run(std::size_t count, const std::function<void(std::size_t)>& task) {
  if (count == 0) return;
  struct SharedState {
    const std::function<void(std::size_t)>& task;
    std::mutex mutex;
    std::exception_ptr problem;
  } shared{task, {}, nullptr};
  const auto call = [](void* data, std::size_t i) {  // no exception may pass through onnxruntime's pool
    auto* state = static_cast<SharedState*>(data);
    try {
      state->task(i);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(state->mutex);
      if (!state->problem) state->problem = std::current_exception();
    }
  };
  if (count == 1) {
    call(&shared, 0);
  } else {
    check(api(), api().KernelContext_ParallelFor(ort_context(), call, count, 0, &shared));
  }
  if (shared.problem) std::rethrow_exception(shared.problem);
}

void* CpuCall::allocate(std::size_t bytes) {
  void* p = nullptr;
  check(api(), api().AllocatorAlloc(allocator_, bytes, &p));
  if (p == nullptr) throw std::bad_alloc();
  return p;
}

void CpuCall::release(void* p) noexcept { allocator_->Free(allocator_, p); }

}  // namespace perfonnx::ort
